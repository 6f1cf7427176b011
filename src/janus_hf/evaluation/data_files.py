"""Read the files that benchmarks are published in: JSON lines and tables, with errors that name the line."""

import csv
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .paper import look_up


def where_to_get(benchmark: str) -> str:
    """Return the sentence that says where a benchmark's data can be had, for the end of an error message."""
    return f"Get {look_up(benchmark).data}."


def existing_path(path: str | os.PathLike[str], benchmark: str) -> Path:
    """Return the path of a benchmark's data.

    Raises:
        FileNotFoundError: If there is nothing at the path. The message says where to get the data.
    """
    if not Path(path).exists():
        raise FileNotFoundError(
            f"There must be data of {benchmark} at {path}, and there is nothing. {where_to_get(benchmark)}"
        )
    return Path(path)


def read_json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield the number (from 1) and the value of every line of a JSON Lines file that is not blank.

    Raises:
        ValueError: If a line is not JSON.
    """
    # Split at "\n" only: `str.splitlines` also splits at U+2028, which may stand unescaped inside a JSON string.
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if line.strip():
            try:
                value = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {number} must be JSON, got {line[:80]!r} ({error}).") from error
            yield number, value


def check_keys(value: Any, keys: Sequence[str], origin: str) -> dict[str, Any]:
    """Return a JSON value that must be an object with certain keys.

    Args:
        value: The value.
        keys: Keys that it must have.
        origin: Where it was read, such as "line 3 of prompts.jsonl"; part of the error message.

    Raises:
        ValueError: If it is not an object, or lacks a key.
    """
    if not isinstance(value, dict) or not set(keys) <= value.keys():
        found = sorted(value) if isinstance(value, dict) else type(value).__name__
        raise ValueError(f"{origin} must be an object with {', '.join(map(repr, keys))}, got {found}.")
    return value


def read_table(path: Path, columns: Sequence[str], *, delimiter: str = ",") -> Iterator[dict[str, str]]:
    """Yield the rows of a CSV or TSV file as dictionaries by column. A missing cell is "".

    Args:
        path: The file, in UTF-8.
        columns: Columns that it must have; it may have more.
        delimiter: Separator of the cells.

    Raises:
        ValueError: If a column is missing.
    """
    with path.open(encoding="utf-8-sig", newline="") as file, _long_cells():
        table = csv.DictReader(file, delimiter=delimiter, restval="")
        found = list(table.fieldnames or ())
        if missing := [name for name in columns if name not in found]:
            raise ValueError(f"{path} must have the columns {', '.join(columns)}, got {found}: {missing} are missing.")
        yield from table


@contextmanager
def _long_cells() -> Iterator[None]:
    """Allow cells above the csv module's limit of 128 KiB, because base64 images are longer.

    The limit is global to the process, so the previous one is restored at the end.
    """
    before = csv.field_size_limit(2**31 - 1)
    try:
        yield
    finally:
        csv.field_size_limit(before)


__all__ = ["check_keys", "existing_path", "read_json_lines", "read_table", "where_to_get"]
