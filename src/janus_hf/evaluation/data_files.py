"""Functions that read the data files of benchmarks: JSON Lines, CSV and TSV. Errors name the file and the problem."""

import csv
import json
import os
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from .paper import look_up


Item = TypeVar("Item")


def where_to_get(benchmark: str) -> str:
    """Return a sentence that says where to get the data of a benchmark. Error messages end with it.

    Args:
        benchmark: Name of the benchmark, a key of `paper.BENCHMARKS`.
    """
    return f"Get {look_up(benchmark).data}."


def existing_path(path: str | os.PathLike[str], benchmark: str) -> Path:
    """Return `path` as a `Path` after checking that a file or folder exists there.

    Args:
        path: Path of a benchmark's data.
        benchmark: Name of the benchmark, a key of `paper.BENCHMARKS`, for the error message.

    Raises:
        FileNotFoundError: If there is nothing at the path. The message says where to get the data.
    """
    if not Path(path).exists():
        raise FileNotFoundError(
            f"There must be data of {benchmark} at {path}, and there is nothing. {where_to_get(benchmark)}"
        )
    return Path(path)


def choose(
    items: Sequence[Item],
    limit: int | None,
    sample_seed: int | None,
    *,
    group_of: Callable[[Item], Hashable] | None = None,
) -> list[Item]:
    """Return a part of a benchmark's prompts or questions, in their order.

    Args:
        items: All prompts or questions.
        limit: Number of those to return; None returns all.
        sample_seed: Seed of a random choice; None takes the first ones, which may all be of one kind.
        group_of: Function that returns the group of an item. A random choice takes groups as a whole, except for the
            last one if it exceeds the limit. By default every item is a group.
    """
    if limit is None or sample_seed is None or limit >= len(items):
        return list(items[:limit])
    groups: dict[Hashable, list[int]] = {}
    for index, item in enumerate(items):
        groups.setdefault(index if group_of is None else group_of(item), []).append(index)
    members = list(groups.values())
    order = np.random.default_rng(sample_seed).permutation(len(members))
    chosen = [index for number in order for index in members[number]][:limit]
    return [items[index] for index in sorted(chosen)]


def read_json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield `(line number, parsed value)` for every line of a JSON Lines file that is not blank. Numbers start at 1.

    Raises:
        ValueError: If a line is not JSON.
    """
    # Split at "\n" only: `str.splitlines` also splits at U+2028, which may occur unescaped inside a JSON string.
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if line.strip():
            try:
                value = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {number} must be JSON, got {line[:80]!r} ({error}).") from error
            yield number, value


def check_keys(value: Any, keys: Sequence[str], origin: str) -> dict[str, Any]:
    """Check that a value read from JSON is an object (a dict) with the required keys, and return it unchanged.

    Args:
        value: The value to check.
        keys: Keys that the object must have; it may have more.
        origin: Where the value was read, such as "line 3 of prompts.jsonl". The error message begins with it.

    Raises:
        ValueError: If the value is not an object, or lacks a key.
    """
    if not isinstance(value, dict) or not set(keys) <= value.keys():
        found = sorted(value) if isinstance(value, dict) else type(value).__name__
        raise ValueError(f"{origin} must be an object with {', '.join(map(repr, keys))}, got {found}.")
    return value


def read_table(path: Path, columns: Sequence[str], *, delimiter: str = ",") -> Iterator[dict[str, str]]:
    """Yield each row of a CSV or TSV file as a dictionary from column name to text. A missing cell becomes "".

    Args:
        path: The file, in UTF-8.
        columns: Names of columns that the file must have; it may have more.
        delimiter: Character between the cells of a row.

    Raises:
        ValueError: If the file lacks one of `columns`.
    """
    with path.open(encoding="utf-8-sig", newline="") as file, _long_cells():
        table = csv.DictReader(file, delimiter=delimiter, restval="")
        found = list(table.fieldnames or ())
        if missing := [name for name in columns if name not in found]:
            raise ValueError(f"{path} must have the columns {', '.join(columns)}, got {found}: {missing} are missing.")
        yield from table


@contextmanager
def _long_cells() -> Iterator[None]:
    """Raise the csv module's limit of 128 KiB per cell inside a `with` block, because base64 images are longer.

    The limit is global to the process, so the previous limit is restored at the end of the block.
    """
    before = csv.field_size_limit(2**31 - 1)
    try:
        yield
    finally:
        csv.field_size_limit(before)


__all__ = ["check_keys", "choose", "existing_path", "read_json_lines", "read_table", "where_to_get"]
