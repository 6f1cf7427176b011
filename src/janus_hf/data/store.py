"""Prepared rows: Arrow tables in memory, or a folder of Arrow shards beside a `meta.json` that says what made them.

A shard is one Arrow IPC file that holds consecutive rows of a source. It is written under a temporary name and then
renamed, so it is there whole or not at all. The metadata of its schema lists the rows that were skipped while it was
made. `index.arrow` beside the shards repeats the few bytes per row that planning needs, so that opening the folder
need not open every shard.
"""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..files import atomic_path, write_atomically
from ..processing import JanusProProcessor
from ..protocols import HasImageTokens
from .fingerprint import check_fingerprint, fingerprint, processor_fingerprint
from .schema import TASKS


SCHEMA = pa.schema(
    {
        "input_ids": pa.list_(pa.int32()),  # joint ids: text ids below the vocabulary size V, image code c as V + c
        "labels": pa.list_(pa.int32()),  # the same ids, or -100 where nothing is trained; the first is always -100
        "task": pa.string(),  # text, understanding or drawing
        "length": pa.int32(),  # number of ids
        "images": pa.list_(pa.large_binary()),  # encoded image files of understanding rows, in reading order
        "prompt_end": pa.int32(),  # index of begin-of-image in drawing rows, -1 in others
    }
)
INDEX_SCHEMA = pa.schema({"length": pa.int32(), "task": pa.int8(), "shard": pa.int32()})  # task: index in TASKS
META = "meta.json"
INDEX = "index.arrow"
OPEN_SHARDS = 4096  # shards mapped at a time; Linux allows a process 65,530 maps of all kinds
_SKIPPED = b"janus_hf.skipped"


def make_table(rows: Sequence[Mapping[str, Any]], skipped: Sequence[tuple[int, str, str]] = ()) -> pa.Table:
    """Return a table of prepared rows with one chunk per column.

    Args:
        rows: Dicts with the columns of `SCHEMA`.
        skipped: `(row of the source, reason, message)` of every skipped row, kept in the schema's metadata.
    """
    columns = [pa.array([row[name] for row in rows], type=SCHEMA.field(name).type) for name in SCHEMA.names]
    return pa.Table.from_arrays(columns, schema=SCHEMA.with_metadata({_SKIPPED: json.dumps(skipped)}))


def skipped_rows(schema: pa.Schema) -> list[tuple[int, str, str]]:
    """Return `(row of the source, reason, message)` of the rows skipped in a shard, from the shard's schema."""
    return [(row, reason, message) for row, reason, message in json.loads(schema.metadata[_SKIPPED])]


def write_shard(table: pa.Table, path: Path) -> None:
    """Write a shard that is there whole or not at all, and on the disk when this returns."""
    # Preparation goes on after the shards that are there, so they must survive a power failure.
    with (
        atomic_path(path, fsync=True) as temporary,
        open(temporary, "wb") as file,
        pa.ipc.new_file(file, table.schema) as writer,
    ):
        writer.write_table(table)


def write_json(content: Any, path: Path) -> None:
    """Write a JSON file that is there whole or not at all."""
    write_atomically(path, json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def read_shard(path: str | os.PathLike[str]) -> pa.Table:
    """Map a shard into memory; only the values that are used are read from the disk."""
    return pa.ipc.open_file(pa.memory_map(os.fspath(path))).read_all()


def table_row(table: pa.Table, index: int) -> dict[str, Any]:
    """Return one row of a table that has one chunk per column.

    Returns:
        A dict with the columns of `SCHEMA`: ids and labels as int64 arrays `(T,)`, the others as Python values.
    """
    # One chunk per column means that no search for the chunk of a row is needed.
    row: dict[str, Any] = {}
    for name in SCHEMA.names:
        scalar = table.column(name).chunk(0)[index]
        is_ids = name in ("input_ids", "labels")
        row[name] = scalar.values.to_numpy().astype(np.int64) if is_ids else scalar.as_py()
    return row


def make_index(tables: Iterable[pa.Table]) -> pa.Table:
    """Return the length, task and shard number of every row, in order.

    Args:
        tables: The shards, in order. Each is read before the next one is requested, so they may be opened in turn.
    """
    columns: list[list[np.ndarray]] = [[], [], []]
    for shard, table in enumerate(tables):
        columns[0].append(table.column("length").to_numpy())
        columns[1].append(pc.index_in(table.column("task"), pa.array(TASKS)).to_numpy())
        columns[2].append(np.full(len(table), shard))
    arrays = [
        # The empty array gives `concatenate` something to work on where there are no shards.
        pa.array(np.concatenate([np.empty(0, dtype=np.int32), *parts]).astype(field.type.to_pandas_dtype()))
        for parts, field in zip(columns, INDEX_SCHEMA, strict=True)
    ]
    return pa.Table.from_arrays(arrays, schema=INDEX_SCHEMA)


def read_index(folder: str | os.PathLike[str]) -> pa.Table:
    """Return the content of `index.arrow`.

    A folder without one, whose preparation is not finished or was done by an early version, gets its index from the
    shards, in memory.
    """
    path = Path(folder, INDEX)
    return read_shard(path) if path.is_file() else make_index(map(read_shard, shard_paths(folder)))


class _Shards(Sequence[pa.Table]):
    """Tables of the shards of a folder, opened when they are used; the `OPEN_SHARDS` used last stay open."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = paths
        self.read = lru_cache(OPEN_SHARDS)(read_shard)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: Any) -> Any:
        return self.read(self.paths[index])


class PreparedDataset:
    """Prepared rows by number: `dataset[i]` is the dict of `table_row`. It is a map-style data set for DataLoaders.

    Args:
        tables: One table per shard.
        meta: The content of `meta.json`.
        path: The folder of the shards, if there is one. A copy in another process then opens the files again.
        index: The result of `make_index`; by default made from the tables.
    """

    def __init__(
        self,
        tables: Sequence[pa.Table],
        meta: Mapping[str, Any],
        path: str | None = None,
        index: pa.Table | None = None,
    ) -> None:
        self.tables, self.meta, self.path = tables, dict(meta), path
        self.index = make_index(tables) if index is None else index
        rows = np.bincount(self.index.column("shard").to_numpy(), minlength=len(tables))
        self.starts = np.concatenate([[0], np.cumsum(rows)])

    @property
    def lengths(self) -> np.ndarray:
        """Number of ids of every row, `(rows,)` int32."""
        lengths: np.ndarray = self.index.column("length").to_numpy()
        return lengths

    @property
    def tasks(self) -> np.ndarray:
        """Task of every row, `(rows,)` of str."""
        return np.array(TASKS)[self.index.column("task").to_numpy()]

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f"`index` must be in [0, {len(self)}), got {index}: the data set has {len(self)} rows.")
        # With side="right", shards without rows, which start where the next one does, are passed over.
        shard = int(np.searchsorted(self.starts, index, side="right")) - 1
        return table_row(self.tables[shard], int(index - self.starts[shard]))

    def __reduce__(self) -> Any:
        # Open maps cannot be pickled, and loader workers must not receive a copy of the data.
        if self.path is not None:
            return load_prepared, (self.path,)
        return PreparedDataset, (self.tables, self.meta)

    def check(self, *, model: HasImageTokens | None = None, processor: JanusProProcessor | None = None) -> None:
        """Raise `ValueError` if the rows were prepared for another model or processor.

        Args:
            model: Compared only together with `processor`.
            processor: None compares nothing.
        """
        expected: dict[str, Any] = {}
        if model is not None and processor is not None:
            expected = fingerprint(model, processor)
        elif processor is not None:
            expected = {"processor": processor_fingerprint(processor)}
        check_fingerprint(self.meta, expected, repr(self.path or self.meta.get("source")))


def shard_paths(folder: str | os.PathLike[str]) -> list[Path]:
    """Return the paths of the shards that are complete, in order."""
    return sorted(Path(folder).glob("shard-*.arrow"))


def load_prepared(
    folder: str | os.PathLike[str], *, model: HasImageTokens | None = None, processor: JanusProProcessor | None = None
) -> PreparedDataset:
    """Open a folder that `prepare` wrote. Rows are memory-mapped and read when they are used.

    Args:
        folder: Folder with `meta.json` and shards.
        model: Check that the rows were prepared for this model; needs `processor` too.
        processor: Check that the rows were prepared for this processor.

    Raises:
        FileNotFoundError: If the folder holds no prepared data.
        ValueError: If preparation is not finished, files do not fit each other, or the rows were prepared for another
            model or processor.
    """
    path = Path(folder, META)
    if not path.is_file():
        raise FileNotFoundError(
            f"`folder` must be one that janus-hf prepare wrote, got {str(folder)!r}, which has no {META}: prepare the "
            "source first, or correct the path."
        )
    meta = json.loads(path.read_text(encoding="utf-8"))
    shards = shard_paths(folder)
    if not meta["complete"]:
        raise ValueError(
            f"The preparation of `folder` must be finished, got {str(folder)!r}, which is not finished ({len(shards)} "
            "shards so far): run it again, and it goes on where it stopped."
        )
    if len(shards) != meta["num_shards"]:
        raise ValueError(
            f"{str(folder)!r} must hold {meta['num_shards']} shards, got {len(shards)}: prepare it again."
        )
    index = read_index(folder)
    if len(index) != meta["num_rows"]:
        raise ValueError(
            f"{str(folder)!r} must hold {meta['num_rows']} rows, got {len(index)} in its {INDEX}: delete that file, "
            "which is made again in memory, or prepare the folder again."
        )
    dataset = PreparedDataset(_Shards(shards), meta, os.fspath(folder), index)
    dataset.check(model=model, processor=processor)
    return dataset


__all__ = [
    "INDEX",
    "META",
    "OPEN_SHARDS",
    "SCHEMA",
    "PreparedDataset",
    "load_prepared",
    "make_index",
    "make_table",
    "read_index",
    "read_shard",
    "shard_paths",
    "skipped_rows",
    "table_row",
    "write_json",
    "write_shard",
]
