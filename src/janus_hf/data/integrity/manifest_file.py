"""`read_manifest`, which reads `meta.json`, the file that describes prepared rows, and checks what reading needs."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .damage import damaged


META = "meta.json"
REMAKE_ALL = "restore it from a copy of the folder, or prepare the source again into another folder"
# Entries that reading needs -> their types: in every folder, and besides in one whose preparation is finished.
_ALWAYS = {"complete": bool, "model": dict, "processor": dict}
_FINISHED = {"num_rows": int, "num_shards": int}


def read_manifest(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the content of `meta.json` in a folder of prepared rows.

    Raises:
        DamagedDataError: If the file is not JSON, or lacks an entry that reading needs.
    """
    path = Path(folder, META)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise damaged(path, f"no JSON ({error})", REMAKE_ALL) from error
    if not isinstance(content, dict):
        raise damaged(path, f"{type(content).__name__} instead of a mapping", REMAKE_ALL)
    needed = _ALWAYS if content.get("complete") is False else _ALWAYS | _FINISHED
    for name, kind in needed.items():
        if type(content.get(name)) is not kind:
            raise damaged(path, f"{name}={content.get(name)!r}, which is no {kind.__name__}", REMAKE_ALL)
    return content


def count_ids(meta: Mapping[str, Any]) -> int | None:
    """Return the size of the text vocabulary and of the codebook together; None if `meta.json` does not state it."""
    sizes = [meta.get("model", {}).get(name) for name in ("vocab_size", "num_codes")]
    return sum(sizes) if all(type(size) is int for size in sizes) else None


__all__ = ["META", "REMAKE_ALL", "count_ids", "read_manifest"]
