"""`sort_columns`, which chooses the adapter of a source and makes sure that no column with content is lost."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import datasets

from ..schema import Adapter, choose_adapter
from .adapter import open_members
from .content import LABEL, find_content, is_covered, name_kind
from .refusals import unused


SAMPLE = 100  # rows that are read to find out what columns hold


@dataclass(frozen=True)
class SortedColumns:
    """The columns of a source: which adapter reads them, and which it does not use.

    Args:
        adapter: The adapter that reads the source.
        names: Names of all columns.
        unused: Names of the columns that the adapter does not use. They hold no content, and the report names them.
        ignored: Names of the columns that are left out because the user said so.
    """

    adapter: Adapter
    names: tuple[str, ...]
    unused: tuple[str, ...]
    ignored: tuple[str, ...]


def sort_columns(
    rows: datasets.Dataset | datasets.IterableDataset | Sequence[Mapping[str, Any]],
    names: Sequence[str],
    *,
    adapter: str | None = None,
    task: str | None = None,
    ignore: Sequence[str] = (),
) -> SortedColumns:
    """Choose the adapter of a source, and check that the columns which it does not use hold no content.

    Rows of a stream are not read here, except for the first ones. `Adapter.convert` checks every row anyway.

    Args:
        rows: Rows of the opened source.
        names: Names of its columns.
        adapter: Name of the adapter, or None to choose it.
        task: Task of the rows, or None to choose it.
        ignore: Names of columns, and of content inside conversations, that may be lost.

    Raises:
        ValueError: If no adapter reads the columns, or adapters of two tasks use all of them.
        SourceError: If a column that the adapter does not use holds content.
    """
    # Several rows of a list, and one where reading takes time.
    first_rows = list(islice(iter(rows), SAMPLE if isinstance(rows, (list, tuple)) else 1))
    if "__key__" in names and "json" in names and not is_covered("json", ignore):
        # The members of a WebDataset archive: the keys of the json member are columns.
        members = dict.fromkeys(key for row in first_rows for key in open_members(row))
        names = [name for name in dict.fromkeys([*names, *members]) if name in members]
    ignored = [name for name in names if is_covered(name, ignore)]
    names = [name for name in names if name not in ignored]
    content = _find_columns_with_content(first_rows, names)
    chosen = choose_adapter(names, name=adapter, task=task, content=content)
    if isinstance(rows, datasets.Dataset):
        checked = _rows_to_check(rows, chosen, names)
    else:
        checked = rows if isinstance(rows, (list, tuple)) else first_rows
    for row in checked:
        chosen.fill(row, ignore)
    unused_names = tuple(name for name in names if name not in chosen.readable)
    return SortedColumns(chosen, (*names, *ignored), unused_names, tuple(ignored))


def unknown_names(ignore: Sequence[str], known: Collection[str], rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return those of the names to ignore that a source does not have.

    Args:
        ignore: Names that the user wants to ignore.
        known: Names of the columns and files.
        rows: All rows. They are read only if a name is not known, because it may be inside a message.
    """
    left = [name for name in ignore if not any(is_covered(one, [name]) for one in known)]
    for row in rows if left else ():
        inner = set(_inner_names(list(row.values())))
        left = [name for name in left if not any(is_covered(one, [name]) for one in inner)]
        if not left:
            break
    return left


def _inner_names(value: Any) -> Iterator[str]:
    """Yield the names of keys, types of parts and roles in a value."""
    if isinstance(value, Mapping):
        yield from (str(key) for key, item in value.items() if item is not None)
        yield from (str(value[key]) for key in ("type", "role", "from") if key in value)
        for item in value.values():
            yield from _inner_names(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _inner_names(item)


def _find_columns_with_content(first_rows: Iterable[Mapping[str, Any]], names: Sequence[str]) -> dict[str, str]:
    """Return a dict: column -> what content it holds, by the first rows of a source.

    A column that is empty in these rows holds what its name says.
    """
    found: dict[str, str] = {}
    filled = set()
    for row in first_rows:
        for name, value in open_members(row).items():
            if value is not None:
                filled.add(name)
                if name not in found and (what := find_content(name, value)) is not None:
                    found[name] = what
    by_name = {name: kind for name in names if name not in filled and (kind := name_kind(name)) is not None}
    return by_name | {name: what for name, what in found.items() if name in names}


def _rows_to_check(rows: datasets.Dataset, adapter: Adapter, names: Sequence[str]) -> Iterable[Mapping[str, Any]]:
    """Return the rows of a data set if unused columns of it may hold content, else none.

    Raises:
        SourceError: If a column of audio or video is not used.
    """
    used = adapter.uses(names)
    rest = [name for name in names if name not in used and not _is_harmless(rows.features.get(name), name)]
    for name in rest:
        if isinstance(rows.features.get(name), (datasets.Audio, datasets.Video)):
            raise unused(name, "audio or video", f"the form {adapter.name!r}")
    if not rest:
        return ()
    # Columns that are used need not be read, unless another one may replace them where they are empty.
    is_alone = len(used) == sum(name in names for name in adapter.readable)
    return _iterate(rows, [name for name in used if is_alone and name in rows.features])


def _iterate(rows: datasets.Dataset, unread: Sequence[str]) -> Iterator[Mapping[str, Any]]:
    """Yield the rows of a data set, read in batches, which is faster, with None in the columns `unread`."""
    blank = dict.fromkeys(unread)
    for batch in rows.remove_columns(list(unread)).iter(batch_size=1000):
        for values in zip(*batch.values(), strict=True):
            yield dict(zip(batch, values, strict=True)) | blank


def _is_harmless(feature: Any, name: str) -> bool:
    """Return whether no value of a column can be content, by its type and its name: numbers are only if they label."""
    is_number = isinstance(feature, datasets.Value) and not feature.dtype.endswith(("string", "binary", "view"))
    return is_number and name_kind(name) != LABEL


__all__ = ["SortedColumns", "sort_columns", "unknown_names"]
