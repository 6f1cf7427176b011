"""`OpenedSource`, a source whose columns and files are sorted into used, ignored, and without content."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .reading.columns import SortedColumns, sort_columns, unknown_names
from .reading.content import is_covered
from .reading.folders import names_of
from .reading.tables import Rows
from .reading.turns import READABLE
from .sources import Source, class_names, column_names, empty_source, open_files


@dataclass(frozen=True)
class OpenedSource:
    """A source that is ready to be prepared.

    Args:
        source: The source as the user named it.
        rows: Its rows.
        columns: Its columns, sorted by use.
        class_names: Names of the classes in the column `label`, if it has them.
        unused_files: Names of the files of a folder from which no row comes.
        file_names: Names of all files of a folder.
        task: Task whose rows are kept; None keeps all.
        ignore: Names of content that may be lost.
        options: Arguments with which the source was opened.
        root: Folder or address that relative image paths start from; None for that of the source.
        files: The files that the rows come from, in their order, if they are known.
    """

    source: Source
    rows: Rows | Sequence[Mapping[str, Any]]
    columns: SortedColumns
    class_names: list[str] | None
    unused_files: list[str]
    file_names: list[str]
    task: str | None
    ignore: tuple[str, ...]
    options: dict[str, Any]
    root: str | None = None
    files: Sequence[str] = ()

    def find_unknown(self) -> list[str]:
        """Return the names to ignore that the source does not have. Later rows of a stream may have any name."""
        if not hasattr(self.rows, "__len__"):
            return []
        return unknown_names(self.ignore, {*self.columns.names, *self._names_of_files()}, self.rows)

    def never_used(self, names: Collection[str]) -> set[str]:
        """Return those of some names to ignore that name nothing which a prepared row may hold."""
        adapter = self.columns.adapter
        used = {*adapter.readable, *self._names_of_files()}
        if adapter.task is None:  # it reads conversations
            used |= READABLE
        return {name for name in names if not any(is_covered(one, [name]) for one in used)}

    def _names_of_files(self) -> set[str]:
        """Return all names by which files of the source can be ignored."""
        return {one for name in self.file_names for one in names_of(name)}


def open_for_preparation(
    source: Source,
    *,
    task: str | None = None,
    adapter: str | None = None,
    ignore: Sequence[str] = (),
    in_memory: bool = False,
    **options: Any,
) -> OpenedSource:
    """Open a source, choose its adapter, and check that nothing of its content would be lost.

    Args:
        source: See `prepare`, also for the other arguments.
        in_memory: Keep the rows of a list as they are. Otherwise they become a `datasets.Dataset`.

    Raises:
        ValueError: If the source cannot be opened, or no adapter reads its columns.
        SourceError: If a column or file holds content that no row would hold.
        TypeError: If the source is of another type.
    """
    if isinstance(ignore, str) or not all(isinstance(name, str) for name in ignore):
        raise ValueError(f"`ignore` must be a list of names, got {ignore!r}: write [{ignore!r}].")
    if isinstance(source, (list, tuple)) and not all(isinstance(row, Mapping) for row in source):
        raise TypeError(f"`source` must be a list of dicts, got {str(source)[:100]}: make each row a dict of columns.")
    names, unused_files, file_names, root = None, [], [], None
    files: Sequence[str] = ()
    rows: Any
    if isinstance(source, (list, tuple)) and in_memory:
        if not source:
            raise empty_source(source)
        # Rows of a list may differ in their columns, so the columns of the first row are not enough.
        rows, columns = source, list(dict.fromkeys(name for row in source for name in row))
    else:
        opened = open_files(source, ignore=ignore, **options)
        rows, unused_files, file_names = opened.rows, opened.unused, opened.names
        root, files = opened.root, opened.files
        columns, names = column_names(rows, source, files), class_names(rows)
    sorted_columns = sort_columns(rows, columns, adapter=adapter, task=task, ignore=ignore)
    ignored = tuple(sorted(ignore))
    return OpenedSource(
        source, rows, sorted_columns, names, unused_files, file_names, task, ignored, options, root, files
    )


def check_ignored(sources: Sequence[OpenedSource]) -> None:
    """Raise `ValueError` if a name to ignore is in none of the sources for which it was given."""
    unknown = [(source, source.find_unknown()) for source in sources]
    for name in dict.fromkeys(name for source in sources for name in source.ignore):
        given = [(source, names) for source, names in unknown if name in source.ignore]
        if all(name in names for _, names in given):
            columns = sorted({column for source, _ in given for column in source.columns.names})
            raise ValueError(
                f"`ignore` must name columns, files, or parts of messages of the source, got {name!r}, which is none "
                f"of its columns {columns}: check the spelling, or leave it out."
            )


__all__ = ["OpenedSource", "check_ignored", "open_for_preparation"]
