"""Functions that replace an earlier save of a model by a new one, so that none of its outdated files is loaded."""

import os
import re
import tempfile
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from transformers.utils import ADAPTER_CONFIG_NAME


_SHARD = r"(?:-\d{5}-of-\d{5})?"
_VARIANT = r"(?:\.(?P<variant>[\w.-]+?))?"
_WEIGHT_FILES = [
    re.compile(pattern)
    for stem, suffix in (("model", "safetensors"), ("pytorch_model", "bin"), ("adapter_model", "(?:safetensors|bin)"))
    for pattern in (rf"{stem}{_VARIANT}{_SHARD}\.{suffix}", rf"{stem}\.{suffix}\.index{_VARIANT}\.json")
]


def outdated_files(written: Collection[str], present: Iterable[str]) -> list[str]:
    """Return the files of earlier saves that would be loaded in place of, or together with, the files just written.

    These are weight files and indices of the same variant as a written weight file. If a whole model was written, they
    are also the files of an adapter, which loaders would open instead of the model. Files in subfolders are kept.

    Args:
        written: Names of the files that were written.
        present: Names of the files that the folder or repository holds.
    """
    kinds = {kind for name in written if (kind := _kind_of_weights(name))}
    has_model = any(family == "model" for family, _ in kinds)

    def is_outdated(name: str) -> bool:
        kind = _kind_of_weights(name)
        is_adapter = name == ADAPTER_CONFIG_NAME or (kind is not None and kind[0] == "adapter")
        return kind in kinds or (has_model and is_adapter)

    return sorted(name for name in set(present) - set(written) if is_outdated(name))


def _kind_of_weights(name: str) -> tuple[str, str | None] | None:
    """Return the family ("model" or "adapter") and the variant of a weight file or index; None for another file."""
    match = next((match for pattern in _WEIGHT_FILES if (match := pattern.fullmatch(name))), None)
    return match and ("adapter" if name.startswith("adapter_") else "model", match["variant"])


@contextmanager
def replaced_save(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield an empty folder inside `folder`, and replace an earlier save in `folder` by its files when the block ends.

    If the block raises an error, `folder` keeps its files as they are, or is removed if it is new. Otherwise the new
    files are moved to `folder`, and the files that `outdated_files` returns are deleted. All other files are kept.

    Args:
        folder: Folder to save to; it is created if it does not exist.

    Raises:
        ValueError: If `folder` is a file; or if a whole model was written and `folder` holds an adapter, which loaders
            would open instead of the model. An upload deletes such an adapter, because the Hub's history keeps it;
            nothing could restore it on a disk.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"`save_directory` must be a folder, got {folder}, which is a file: choose another name.")
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as temporary:
            yield Path(temporary)
            _move(Path(temporary), folder)
    except BaseException:
        if is_new:
            with suppress(OSError):  # the error of the block is the one to report
                folder.rmdir()
        raise


def _move(new: Path, folder: Path) -> None:
    """Move all files from `new` to `folder`, and delete the files in `folder` that they make outdated."""
    written = os.listdir(new)
    outdated = outdated_files(written, os.listdir(folder))
    if ADAPTER_CONFIG_NAME in outdated:
        raise ValueError(
            f"`save_directory` must be a folder without an adapter, got {folder} with {ADAPTER_CONFIG_NAME}, which "
            "would be opened instead of the model: choose another folder, or delete the adapter first."
        )
    for name in written:
        os.replace(new / name, folder / name)
    for name in outdated:
        (folder / name).unlink()


__all__ = ["outdated_files", "replaced_save"]
