"""Prepared rows: Arrow tables in memory, or a folder of Arrow shards beside a `meta.json` that says what made them.

A shard is one Arrow IPC file written under a temporary name and then renamed, so it is there whole or not at all; what
was skipped while making it is in its schema's metadata. `index.arrow` beside them repeats the few bytes per row that
planning needs, so that opening the folder need not open every shard.
"""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..processing import JanusProProcessor
from .fingerprint import check_fingerprint, fingerprint, processor_fingerprint
from .schema import TASKS


SCHEMA = pa.schema(
    {
        "input_ids": pa.list_(pa.int32()),  # joint ids: text below V, image code c as V + c
        "labels": pa.list_(pa.int32()),  # the same ids, or -100 where nothing is trained; always so at first
        "task": pa.string(),  # text, understanding or drawing
        "length": pa.int32(),
        "images": pa.list_(pa.large_binary()),  # encoded files, of understanding rows only
        "prompt_end": pa.int32(),  # index of begin-of-image in drawings, -1 otherwise
    }
)
INDEX_SCHEMA = pa.schema({"length": pa.int32(), "task": pa.int8(), "shard": pa.int32()})  # task: number in TASKS
META = "meta.json"
INDEX = "index.arrow"
OPEN_SHARDS = 4096  # mapped at a time; Linux allows a process 65,530 maps of everything
_SKIPPED = b"janus_hf.skipped"


def make_table(rows: Sequence[Mapping[str, Any]], skipped: Sequence[tuple[int, str, str]] = ()) -> pa.Table:
    """Prepared rows and `(row of the source, reason, message)` of those skipped -> one chunk per column."""
    columns = [pa.array([row[name] for row in rows], type=SCHEMA.field(name).type) for name in SCHEMA.names]
    return pa.Table.from_arrays(columns, schema=SCHEMA.with_metadata({_SKIPPED: json.dumps(skipped)}))


def skipped_rows(schema: pa.Schema) -> list[tuple[int, str, str]]:
    """What `make_table` was told, from a shard's schema."""
    return [(row, reason, message) for row, reason, message in json.loads(schema.metadata[_SKIPPED])]


def write_shard(table: pa.Table, path: Path) -> None:
    """Atomically, and on the disk when this returns."""
    temporary = _temporary(path)
    with open(temporary, "wb") as file:
        with pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def write_json(content: Any, path: Path) -> None:
    """Atomically."""
    temporary = _temporary(path)
    temporary.write_text(json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def _temporary(path: Path) -> Path:
    """Nobody else's name: process numbers repeat between nodes that share a file system."""
    return path.with_name(f".{path.name}.{uuid4().hex}")


def read_shard(path: str | os.PathLike[str]) -> pa.Table:
    """Memory-mapped: nothing is read until it is looked at."""
    return pa.ipc.open_file(pa.memory_map(os.fspath(path))).read_all()


def table_row(table: pa.Table, index: int) -> dict[str, Any]:
    """One row of a table of one chunk per column: ids and labels as int64 arrays `(T,)`, the rest as Python values."""
    row: dict[str, Any] = {}
    for name in SCHEMA.names:
        scalar = table.column(name).chunk(0)[index]
        is_ids = name in ("input_ids", "labels")
        row[name] = scalar.values.to_numpy().astype(np.int64) if is_ids else scalar.as_py()
    return row


def make_index(tables: Iterable[pa.Table]) -> pa.Table:
    """Length, task and shard of every row, in order; `tables` are the shards, looked at one after the other."""
    columns: list[list[np.ndarray]] = [[], [], []]
    for shard, table in enumerate(tables):
        columns[0].append(table.column("length").to_numpy())
        columns[1].append(pc.index_in(table.column("task"), pa.array(TASKS)).to_numpy())
        columns[2].append(np.full(len(table), shard))
    arrays = [
        pa.array(np.concatenate([np.empty(0, dtype=np.int32), *parts]).astype(field.type.to_pandas_dtype()))
        for parts, field in zip(columns, INDEX_SCHEMA, strict=True)
    ]
    return pa.Table.from_arrays(arrays, schema=INDEX_SCHEMA)


def read_index(folder: str | os.PathLike[str]) -> pa.Table:
    """`index.arrow`; made anew, in memory, for a folder without (not finished, or by an early version)."""
    path = Path(folder, INDEX)
    return read_shard(path) if path.is_file() else make_index(map(read_shard, shard_paths(folder)))


class _Shards(Sequence[pa.Table]):
    """Tables of files, opened as they are asked for; the `OPEN_SHARDS` used last stay open."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = paths
        self.read = lru_cache(OPEN_SHARDS)(read_shard)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: Any) -> Any:
        return self.read(self.paths[index])


class PreparedDataset:
    """Prepared rows by number; map-style, so any DataLoader reads it. `dataset[i]` is `table_row`'s dict.

    Args:
        tables: One per shard.
        meta: The content of `meta.json`.
        path: The folder, if there is one; then a copy in another process opens the files again.
        index: See `make_index`; by default made from the tables.
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
        """`(rows,)` int32, in ids."""
        lengths: np.ndarray = self.index.column("length").to_numpy()
        return lengths

    @property
    def tasks(self) -> np.ndarray:
        """`(rows,)` of str."""
        return np.array(TASKS)[self.index.column("task").to_numpy()]

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f"Expected a row in [0, {len(self)}); got {index}.")
        shard = int(np.searchsorted(self.starts, index, side="right")) - 1
        return table_row(self.tables[shard], int(index - self.starts[shard]))

    def __reduce__(self) -> Any:
        if self.path is not None:
            return load_prepared, (self.path,)
        return PreparedDataset, (self.tables, self.meta)

    def check(self, *, model: Any = None, processor: JanusProProcessor | None = None) -> None:
        """Raises `ValueError` if the rows were not prepared for this model and processor (either may be None)."""
        expected: dict[str, Any] = {}
        if model is not None and processor is not None:
            expected = fingerprint(model, processor)
        elif processor is not None:
            expected = {"processor": processor_fingerprint(processor)}
        check_fingerprint(self.meta, expected, repr(self.path or self.meta.get("source")))


def shard_paths(folder: str | os.PathLike[str]) -> list[Path]:
    """Those that are complete, in order."""
    return sorted(Path(folder).glob("shard-*.arrow"))


def load_prepared(
    folder: str | os.PathLike[str], *, model: Any = None, processor: JanusProProcessor | None = None
) -> PreparedDataset:
    """What `prepare` wrote, memory-mapped.

    Raises:
        FileNotFoundError: There is no prepared data.
        ValueError: Preparation is not finished, or was done for another model or processor.
    """
    path = Path(folder, META)
    if not path.is_file():
        raise FileNotFoundError(f"Expected a folder written by janus-hf prepare; {str(folder)!r} has no {META}.")
    meta = json.loads(path.read_text(encoding="utf-8"))
    shards = shard_paths(folder)
    if not meta["complete"]:
        raise ValueError(
            f"The preparation of {str(folder)!r} is not finished ({len(shards)} shards so far). Run it again: it goes "
            "on where it stopped."
        )
    if len(shards) != meta["num_shards"]:
        raise ValueError(
            f"Expected {meta['num_shards']} shards in {str(folder)!r}; found {len(shards)}. Prepare it again."
        )
    index = read_index(folder)
    if len(index) != meta["num_rows"]:
        raise ValueError(
            f"Expected {meta['num_rows']} rows in {str(folder)!r}; its {INDEX} has {len(index)}. Delete that file, "
            "which can be done without, or prepare the folder again."
        )
    dataset = PreparedDataset(_Shards(shards), meta, os.fspath(folder), index)
    dataset.check(model=model, processor=processor)
    return dataset
