"""`name_bad_lines`, which finds the lines of local JSON-lines files that cannot be read."""

import glob
import json
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path


SHOWN = 3  # lines that are listed


def name_bad_lines(source: str | os.PathLike[str], error: Exception) -> ValueError:
    """Return, without raising it, the error for a source whose files `datasets` could not read.

    It names the first lines that are no JSON objects, and their file, if a local .jsonl file has such lines.

    Args:
        source: Path of a file or folder, glob pattern, or id on the Hub.
        error: The error that `datasets` raised.
    """
    found = list(islice(_bad_lines(os.fspath(source)), SHOWN))
    if not found:
        reason = error.__cause__ or error
        return ValueError(
            f"`source` must hold files that can be read, got {os.fspath(source)!r} and {type(reason).__name__}: "
            f"{str(reason)[:300]} Check that the files are complete."
        )
    listed = "; ".join(f"line {number} of {path}: {text}" for path, number, text in found)
    return ValueError(
        f"Every line of a .jsonl file must be a JSON object, got {listed}. Correct these lines or delete them"
        f"{', and look for more' if len(found) == SHOWN else ''}."
    )


def _bad_lines(source: str) -> Iterator[tuple[str, int, str]]:
    """Yield `(path, number from 1, what is wrong)` of the lines of local .jsonl files that are no JSON objects."""
    folder = Path(source)
    paths = sorted(map(str, folder.rglob("*.jsonl"))) if folder.is_dir() else sorted(glob.glob(source))
    for path in paths:
        if not path.endswith(".jsonl"):
            continue
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            for number, line in enumerate(file, 1):
                try:
                    content = json.loads(line.strip()) if line.strip() else None
                    # Half of a pair of surrogates ("\\ud83d") cannot be encoded, and `datasets` reads no such file.
                    json.dumps(content, ensure_ascii=False).encode()
                except ValueError as error:
                    yield path, number, str(error)
                else:
                    if content is not None and not isinstance(content, dict):
                        yield path, number, f"no object, but {line.strip()[:80]!r}"


__all__ = ["name_bad_lines"]
