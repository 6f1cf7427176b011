"""Functions for files on disk: atomic writes, hashes, permissions, and JSON whose errors name the file."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from .errors import CheckpointError


def read_json(path: str | os.PathLike[str]) -> Any:
    """Return the content of a JSON file of a checkpoint.

    Raises:
        CheckpointError: If the file is not JSON, for example because it was cut short.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(
            f"{path} must be JSON, got {error}: it is cut short or damaged. Copy or download it again."
        ) from error


@contextmanager
def atomic_path(path: str | os.PathLike[str], *, fsync: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside `path`, and rename the file to `path` when the `with` block ends without an error.

    Readers therefore see either the old file or the complete new one. The temporary name is a UUID, because process
    ids repeat between nodes that share a file system. If the block raises an error, the temporary file is removed and
    `path` is unchanged.

    Args:
        path: File to write; its folder is created if necessary.
        fsync: Wait until the content is on the disk before renaming, so that it survives a power failure.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        yield temporary
        if fsync:
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_unfinished(path: str | os.PathLike[str]) -> None:
    """Remove the temporary files that `atomic_path` has left beside `path` in processes that were killed.

    No other process may be writing the same file meanwhile.
    """
    path = Path(path)
    for temporary in path.parent.glob(f".{path.name}.*"):
        temporary.unlink(missing_ok=True)


def write_atomically(path: str | os.PathLike[str], content: bytes | str, *, fsync: bool = False) -> None:
    """Write `content` to a file so that readers never see an incomplete file (see `atomic_path`).

    Text is encoded as UTF-8.
    """
    with atomic_path(path, fsync=fsync) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def open_to_others(folder: str | os.PathLike[str]) -> None:
    """Give the weight files in a folder the permissions of the configuration beside them.

    These are the permissions that the user's umask allows. safetensors 0.8 writes files that only their owner can
    read, which locks colleagues on a shared disk out.
    """
    for config in (Path(folder, "config.json"), Path(folder, "adapter_config.json")):
        if config.is_file():
            for weights in Path(folder).glob("*.safetensors"):
                shutil.copymode(config, weights)


def hash_file(path: str | os.PathLike[str], algorithm: str = "sha256") -> str:
    """Return the hexadecimal digest of a file's content; `algorithm` is a name that `hashlib` accepts."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


__all__ = ["atomic_path", "hash_file", "open_to_others", "read_json", "remove_unfinished", "write_atomically"]
