"""`PartFiles`, the weights and the configuration of a public checkpoint from which one part of a model is taken.

Only names and shapes are read at first. The values of a weight are read when they are asked for, from files that are
mapped into memory where their format allows it.
"""

import argparse
import os
import pickle
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from ...arguments import check_path
from ...errors import CheckpointError
from ...hub.opening import CONFIG_FILE, Source, open_source
from ...layouts.part_layouts import LAYOUTS, Part, PartLayout, find_layout
from ...modeling.weight_files import weight_file_names


# Names of the weight file of a part, in the order in which they are looked for. The first that exists is taken,
# because the others hold the same weights in another format.
_FILES: dict[Part, tuple[str, ...]] = {
    "language_model": tuple(weight_file_names()),
    "vision_tower": (*weight_file_names(), "open_clip_model.safetensors", "open_clip_pytorch_model.bin"),
    "codec": tuple(weight_file_names()),
}
# Names of LlamaGen, whose files hold different weights.
_ALTERNATIVES: dict[Part, tuple[str, ...]] = {
    "language_model": (),
    "vision_tower": (),
    "codec": ("vq_ds16_t2i.pt", "vq_ds16_c2i.pt"),
}
_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")

# Entries of a training checkpoint that may hold the weights, in the order in which LlamaGen's own evaluation takes
# them, and the entries beside them.
_HOLDERS = ("ema", "model", "state_dict")
_BESIDE = {*_HOLDERS, "optimizer", "discriminator", "optimizer_disc", "steps", "args"}

# `organisation/name`, optionally `@revision` and the path of a file, as in huggingface_hub's file system.
_HUB_NAME = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[^/]+))?(/(?P<file>.+))?")


@dataclass(frozen=True)
class StoredWeight:
    """Shape of a weight in a file, and the function that reads its values."""

    shape: tuple[int, ...]
    read: Callable[[], torch.Tensor]


@dataclass(frozen=True)
class PartFiles:
    """The files of one part.

    Args:
        part: The part.
        source: The folder or repository.
        files: Names of the weight files.
        layout: How the weights are named.
        weights: Weights by their names in the files.
        config: Content of config.json; empty if there is none.
    """

    part: Part
    source: Source
    files: tuple[str, ...]
    layout: PartLayout
    weights: Mapping[str, StoredWeight]
    config: dict[str, Any]  # Any: JSON

    @property
    def label(self) -> str:
        """Argument, source and kind of the part, for messages."""
        return f"`{self.part}` {str(self.source.path)!r} ({self.layout.title})"


def card_name(source: Source, *files: str) -> str:
    """Return the name of a source for a model card: a repository with its commit; a folder's path means nothing.

    Args:
        source: The folder or repository.
        files: Names of its files that were read; a single one is part of the name.
    """
    file = f", file `{files[0]}`" if len(files) == 1 else ""
    return f"`{source.path}` (commit `{source.commit}`{file})" if source.commit else f"a local folder{file}"


def locate(name: str | os.PathLike[str], argument: str, hub_kwargs: dict[str, Any]) -> tuple[Source, str | None]:
    """Return the folder or repository that `name` stands for, and the file in it if `name` is that of a file.

    Args:
        name: A folder, a file, or on the Hub `organisation/name[@revision][/file]`.
        argument: Name of the caller's argument, for messages.
        hub_kwargs: Arguments of Hub calls (`HUB_ARGUMENTS`).

    Raises:
        TypeError: If `name` is neither a string nor a path.
        ValueError: If `name` is none of these.
        OSError: If the repository cannot be opened.
    """
    path = Path(check_path(name, argument, "a folder, a file, or a repository `organisation/name[@revision][/file]`"))
    if path.is_dir():
        return Source(path), None
    if path.is_file():
        return Source(path.parent), path.name
    match = _HUB_NAME.fullmatch(str(name))
    if match is None:
        raise ValueError(
            f"`{argument}` must be a folder, a file, or a repository `organisation/name[@revision][/file]`, got "
            f"{str(name)!r}, which is no path on this machine: check the spelling."
        )
    where = {**hub_kwargs, **({"revision": match["revision"]} if match["revision"] else {})}
    return open_source(match["repo"], where, first=match["file"] or CONFIG_FILE), match["file"]


def open_part(part: Part, name: str | os.PathLike[str], hub_kwargs: dict[str, Any]) -> PartFiles:
    """Open the files of a part: download them if necessary, and read the names and shapes of their weights.

    Args:
        part: The part.
        name: A folder, a file, or on the Hub `organisation/name[@revision][/file]`. Without a file, the files are
            those of transformers, open_clip or LlamaGen, or the only weight file of a folder.
        hub_kwargs: Arguments of Hub calls (`HUB_ARGUMENTS`).

    Raises:
        ValueError: If there is no weight file, or several that could be meant.
        CheckpointError: If a file is damaged, holds code, or its weights have names that are in no row of the table.
        OSError: If a repository or file cannot be had.
    """
    source, file = locate(name, part, hub_kwargs)
    files = _shards(source, file or _find_weight_file(part, source))
    weights: dict[str, StoredWeight] = {}
    for file in files:
        weights |= _read_table(_download(source, file))
    layout = find_layout(part, weights)
    if layout is None:
        kinds = "; ".join(f"{row.title} has {row.marker!r}" for row in LAYOUTS[part])
        raise CheckpointError(
            f"`{part}` must be a checkpoint of a known kind ({kinds}), got {str(name)!r}, whose {len(weights)} "
            f"weights are named otherwise, such as {min(weights, default=None)!r}: name the checkpoint that "
            "holds this part."
        )
    return PartFiles(part, source, files, layout, weights, source.read_json(CONFIG_FILE) or {})


def _find_weight_file(part: Part, source: Source) -> str:
    """Return the name of the weight file, or of the index of several, in a folder or repository.

    Raises:
        ValueError: If there is none, or several that could be meant.
    """
    if first := next((name for name in _FILES[part] if source.find(name)), None):
        return first
    found = [name for name in _ALTERNATIVES[part] if source.find(name)]
    if not found and os.path.isdir(source.path):
        found = sorted(path.name for path in Path(source.path).iterdir() if path.suffix in _SUFFIXES)
    if len(found) != 1:
        names = ", ".join((*_FILES[part], *_ALTERNATIVES[part]))
        got = f"several: {', '.join(found)}" if found else "none"
        raise ValueError(
            f"`{part}` must hold one file of weights ({names}), got {str(source.path)!r} with {got}: name the file "
            f"itself, {source.path}/FILE."
        )
    return found[0]


def _shards(source: Source, name: str) -> tuple[str, ...]:
    """Return the names of the files that an index lists, or `name` if it is no index."""
    if not name.endswith(".json"):
        return (name,)
    index = source.read_json(name) or {}
    if not isinstance(index.get("weight_map"), dict):
        raise CheckpointError(
            f"{name} of {str(source.path)!r} must have a 'weight_map' of weight names to files, got {sorted(index)}: "
            "it is not a checkpoint index. Download it again."
        )
    folder = name.rpartition("/")[0]
    return tuple(os.path.join(folder, shard) for shard in sorted(set(index["weight_map"].values())))


def _download(source: Source, name: str) -> str:
    path = source.find(name)
    if path is None:
        raise CheckpointError(
            f"{str(source.path)!r} must hold {name}, got no such file: check the name, or copy or download it again."
        )
    return path


def _read_table(path: str) -> dict[str, StoredWeight]:
    """Return the weights of one file by name.

    Raises:
        CheckpointError: If the file is damaged, holds something else than weights, or is a pickle with code in it.
    """
    try:
        if path.endswith(".safetensors"):
            file = safe_open(path, framework="pt")
            return {
                name: StoredWeight(tuple(file.get_slice(name).get_shape()), _reader(file.get_tensor, name))
                for name in file.keys()  # noqa: SIM118 - the file is no mapping
            }
        tensors = _unwrap(_load_pickle(path), path)
    except SafetensorError as error:
        raise CheckpointError(
            f"{path} cannot be read ({error}): it is cut short or holds no weights. Download it again."
        ) from error
    return {name: StoredWeight(tuple(tensor.shape), tensor.detach) for name, tensor in tensors.items()}


def _reader(get_tensor: Callable[[str], torch.Tensor], name: str) -> Callable[[], torch.Tensor]:
    return lambda: get_tensor(name)


def _load_pickle(path: str) -> object:
    """Return the content of a file of `torch.save`, mapped into memory if its format allows it; run no code of it."""
    with open(path, "rb") as file:
        is_zip = file.read(2) == b"PK"  # files of torch before 1.6 are bare pickles, which cannot be mapped
    try:
        # LlamaGen's training writes its command-line arguments into the file; their class only holds values.
        with torch.serialization.safe_globals([argparse.Namespace]):
            content: object = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except pickle.UnpicklingError as error:
        # torch's message advises to switch the protection off.
        raise CheckpointError(
            f"{path} must hold tensors only, got a pickle that is damaged or holds other objects, whose code is not "
            "run: convert it to safetensors where you trust it, or download it again."
        ) from error
    except (RuntimeError, EOFError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{path} cannot be read ({reason}): it is cut short or holds no weights. Download it again."
        ) from error
    return content


def _unwrap(content: object, path: str) -> dict[str, torch.Tensor]:
    """Return the state dict in the content of a file: the content itself, or an entry of a training checkpoint.

    Raises:
        CheckpointError: If there is none, or it has entries that are no tensors.
    """
    if isinstance(content, Mapping) and (holder := next((name for name in _HOLDERS if name in content), None)):
        if unknown := sorted(str(name) for name in content.keys() - _BESIDE):
            raise CheckpointError(
                f"{path} must hold weights, alone or in a training checkpoint with the entries {sorted(_BESIDE)}, got "
                f"the entries {unknown} too: save the weights alone.",
                unexpected=unknown,
            )
        content = content[holder]
    if not isinstance(content, Mapping) or not content:
        kind = "an empty mapping" if isinstance(content, Mapping) else type(content).__name__
        raise CheckpointError(f"{path} must hold weights by name, got {kind}: name the file of the weights.")
    others = sorted(str(name) for name, value in content.items() if not isinstance(value, torch.Tensor))
    if others:
        raise CheckpointError(
            f"{path} must hold tensors by name, got other entries too: save the weights alone.", unexpected=others
        )
    return dict(content)


__all__ = ["PartFiles", "StoredWeight", "card_name", "locate", "open_part"]
