"""Functions that write and read prepared rows (Arrow tables), and the data set that serves them, `PreparedDataset`.

Prepared rows are tokenized training examples with the columns of `SCHEMA`. They are kept in memory, or in a folder of
shards with a file `meta.json` that describes how they were prepared. A shard is one Arrow IPC file that holds
consecutive rows of a source. It is written under a temporary name and then renamed, so that a shard that exists is
complete. The metadata of its schema lists the rows that were skipped while it was made. `index.arrow` in the same
folder repeats the few bytes per row that planning needs, so that `load_prepared` need not open every shard.
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

from ..arguments import checked
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
OPEN_SHARDS = 4096  # shards memory-mapped at a time; Linux allows a process 65,530 maps of all kinds
_SKIPPED = b"janus_hf.skipped"
_LATE = b"janus_hf.late_columns"


def make_table(
    rows: Sequence[Mapping[str, Any]], skipped: Sequence[tuple[int, str, str]] = (), late: Sequence[str] = ()
) -> pa.Table:
    """Return prepared rows as a table with the columns of `SCHEMA` and one chunk per column.

    Args:
        rows: Dicts with the columns of `SCHEMA`.
        skipped: `(row of the source, reason, message)` of every skipped row, kept in the schema's metadata.
        late: Columns without content that only later rows of a stream have; also kept there.
    """
    columns = [pa.array([row[name] for row in rows], type=SCHEMA.field(name).type) for name in SCHEMA.names]
    metadata = {_SKIPPED: json.dumps(skipped)} | ({_LATE: json.dumps(late)} if late else {})
    return pa.Table.from_arrays(columns, schema=SCHEMA.with_metadata(metadata))


def skipped_rows(schema: pa.Schema) -> list[tuple[int, str, str]]:
    """Return `(number in the source, reason, message)` of every row that was skipped while a shard was made.

    Args:
        schema: Schema of the shard, whose metadata lists these rows.
    """
    return [(row, reason, message) for row, reason, message in json.loads(schema.metadata[_SKIPPED])]


def late_columns(schema: pa.Schema) -> list[str]:
    """Return the columns without content that only later rows of a stream had, as the schema of a shard lists them."""
    return [str(name) for name in json.loads(schema.metadata.get(_LATE, b"[]"))]


def write_shard(table: pa.Table, path: Path) -> None:
    """Write a table of prepared rows to an Arrow IPC file, which is never incomplete and is on the disk afterwards.

    The file is written under a temporary name, synchronized with fsync and then renamed.
    """
    # A resumed preparation skips every shard that exists, so shards must survive a power failure.
    with (
        atomic_path(path, fsync=True) as temporary,
        open(temporary, "wb") as file,
        pa.ipc.new_file(file, table.schema) as writer,
    ):
        writer.write_table(table)


def write_json(content: Any, path: Path) -> None:
    """Write `content` as JSON to a file, which is never incomplete: a temporary file is written and renamed."""
    write_atomically(path, json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def read_shard(path: str | os.PathLike[str]) -> pa.Table:
    """Map an Arrow IPC file into memory and return its table; only the values that are used are read from the disk."""
    return pa.ipc.open_file(pa.memory_map(os.fspath(path))).read_all()


def table_row(table: pa.Table, index: int) -> dict[str, Any]:
    """Return the prepared row with the number `index` of a table that has one chunk per column.

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
    """Return a table with the length, task (index in `TASKS`) and shard number of every prepared row, in order.

    Args:
        tables: Tables of prepared rows, one per shard (Arrow file), in order. Each is read before the next one is
            requested, so an iterator need keep only one shard open.
    """
    columns: list[list[np.ndarray]] = [[], [], []]
    for shard, table in enumerate(tables):
        columns[0].append(table.column("length").to_numpy())
        columns[1].append(pc.index_in(table.column("task"), pa.array(TASKS)).to_numpy())
        columns[2].append(np.full(len(table), shard))
    arrays = [
        # The empty array is there because `concatenate` fails on an empty list, which is the case without shards.
        pa.array(np.concatenate([np.empty(0, dtype=np.int32), *parts]).astype(field.type.to_pandas_dtype()))
        for parts, field in zip(columns, INDEX_SCHEMA, strict=True)
    ]
    return pa.Table.from_arrays(arrays, schema=INDEX_SCHEMA)


def read_index(folder: str | os.PathLike[str]) -> pa.Table:
    """Return the index of a folder of prepared rows: the length, task and shard number of each row (see `make_index`).

    It is read from `index.arrow`. If that file is missing, because preparation is not finished or was done by an early
    version of this package, the index is computed from the shards (files of prepared rows) and not written.
    """
    path = Path(folder, INDEX)
    return read_shard(path) if path.is_file() else make_index(map(read_shard, shard_paths(folder)))


class _Shards(Sequence[pa.Table]):
    """Sequence of the tables in the shards (Arrow files) of a folder: item `i` is the table of shard `i`.

    A shard is opened at its first use. The `OPEN_SHARDS` (4096) shards used last stay open.

    Args:
        paths: Paths of the shards.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = paths
        self.read = lru_cache(OPEN_SHARDS)(read_shard)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: Any) -> Any:
        return self.read(self.paths[index])


class PreparedDataset:
    """Map-style data set of prepared rows: `dataset[i]` is row `i`, as the dict that `table_row` returns.

    Args:
        tables: One table of prepared rows per shard.
        meta: Content of `meta.json`, which describes how the rows were prepared.
        path: Folder of the shards; None if the rows are in memory only. A copy in another process, such as a
            DataLoader worker, opens the folder again and does not receive the rows.
        index: Table that `make_index` returned for `tables`; by default it is made here.
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
        """Task of every row ("text", "understanding" or "drawing"), `(rows,)` of str."""
        return np.array(TASKS)[self.index.column("task").to_numpy()]

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f"`index` must be in [0, {len(self)}), got {index}: the data set has {len(self)} rows.")
        # A shard without rows starts where the next one does; side="right" skips it.
        shard = int(np.searchsorted(self.starts, index, side="right")) - 1
        return table_row(self.tables[shard], int(index - self.starts[shard]))

    def __reduce__(self) -> Any:
        # Memory maps cannot be pickled, and the workers of a DataLoader must not receive a copy of the data.
        if self.path is not None:
            return load_prepared, (self.path,)
        return PreparedDataset, (self.tables, self.meta)

    def check(self, *, model: HasImageTokens | None = None, processor: JanusProProcessor | None = None) -> None:
        """Raise `ValueError` if the rows were prepared for another model or processor than those given here.

        Args:
            model: Model to compare with; it is compared only if `processor` is given too.
            processor: Processor to compare with; None compares nothing.
        """
        expected: dict[str, Any] = {}
        if model is not None and processor is not None:
            expected = fingerprint(model, processor)
        elif processor is not None:
            expected = {"processor": processor_fingerprint(processor)}
        check_fingerprint(self.meta, expected, repr(self.path or self.meta.get("source")))


def shard_paths(folder: str | os.PathLike[str]) -> list[Path]:
    """Return the paths of the finished shards (Arrow files of prepared rows) in a folder, in order."""
    return sorted(Path(folder).glob("shard-*.arrow"))


@checked()
def load_prepared(
    folder: str | os.PathLike[str], *, model: HasImageTokens | None = None, processor: JanusProProcessor | None = None
) -> PreparedDataset:
    """Return the prepared rows in a folder that `prepare` wrote. They are memory-mapped, and read when they are used.

    Args:
        folder: Folder with `meta.json` and shards (Arrow files of prepared rows).
        model: Check that the rows were prepared for this model; needs `processor` too.
        processor: Check that the rows were prepared for this processor.

    Raises:
        FileNotFoundError: If the folder holds no prepared data.
        ValueError: If preparation is not finished, the files contradict each other, or the rows were prepared for
            another model or processor.
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
