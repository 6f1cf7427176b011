"""Functions that write and read prepared rows (Arrow tables), and the data set that serves them, `PreparedDataset`.

Prepared rows are tokenized training examples with the columns of `SCHEMA`. They are kept in memory, or in a folder of
shards with a file `meta.json` that describes how they were prepared. A shard is one Arrow IPC file that holds
consecutive rows of a source. It is written under a temporary name and then renamed, so that a shard that exists is
complete. The metadata of its schema lists the rows that were skipped while it was made. `index.arrow` in the same
folder repeats the few bytes per row that planning needs, so that `load_prepared` need not open every shard.

A file that is missing, cut short or damaged raises `DamagedDataError`, which names it: a file when it is opened, a row
when it is read (see `integrity.damage`).
"""

import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import islice
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
from .integrity.damage import CHECKSUM, DamagedDataError, RowReader, check_offsets, checksum, damaged, read_arrow
from .integrity.manifest_file import META, count_ids, read_manifest
from .integrity.precision import warn_of_precision
from .schema import TASKS
from .streams.addresses import refuse_address
from .streams.stream_parts import part_name


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
INDEX = "index.arrow"
REMAKE_INDEX = "delete this file, which is then made again in memory from the shards"
OPEN_SHARDS = 4096  # shards memory-mapped at a time; Linux allows a process 65,530 maps of all kinds
_SKIPPED = b"janus_hf.skipped"
_LATE = b"janus_hf.late_columns"


def make_table(
    rows: Sequence[Mapping[str, Any]], skipped: Sequence[tuple[int, str, str]] = (), late: Sequence[str] = ()
) -> pa.Table:
    """Return prepared rows as a table with the columns of `SCHEMA` and `CHECKSUM`, and one chunk per column.

    Args:
        rows: Dicts with the columns of `SCHEMA`.
        skipped: `(row of the source, reason, message)` of every skipped row, kept in the schema's metadata.
        late: Columns without content that only later rows of a stream have; also kept there.
    """
    ids, labels = ([np.asarray(row[name], dtype=np.int32) for row in rows] for name in ("input_ids", "labels"))
    content = {name: [row[name] for row in rows] for name in SCHEMA.names} | {"input_ids": ids, "labels": labels}
    content[CHECKSUM.name] = [
        checksum(ids[number], labels[number], row["task"].encode(), row["prompt_end"], row["images"])
        for number, row in enumerate(rows)
    ]
    schema = SCHEMA.append(CHECKSUM)
    columns = [pa.array(content[field.name], type=field.type) for field in schema]
    metadata = {_SKIPPED: json.dumps(skipped)} | ({_LATE: json.dumps(late)} if late else {})
    return pa.Table.from_arrays(columns, schema=schema.with_metadata(metadata))


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
    """Map a shard or an index (Arrow files) into memory and return its table; only the values that are used are read.

    Raises:
        DamagedDataError: If the file is missing, is no Arrow file, or has other columns.
    """
    if Path(path).name == INDEX:
        return read_arrow(path, INDEX_SCHEMA, REMAKE_INDEX)
    return read_arrow(path, SCHEMA)


def read_whole(path: str | os.PathLike[str]) -> pa.Table:
    """Return the table of a shard, like `read_shard`, after its lengths, tasks and offsets have been checked too."""
    table = read_shard(path)
    check_offsets(table, path)
    return table


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
    return read_shard(path) if path.is_file() else make_index(map(read_whole, shard_paths(folder)))


class _Shards(Sequence[pa.Table]):
    """Sequence of the tables in the shards (Arrow files) of a folder: item `i` is the table of shard `i`.

    A shard is opened whenever its item is read.

    Args:
        paths: Paths of the shards.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: Any) -> Any:
        return read_shard(self.paths[index])


class PreparedDataset:
    """Map-style data set of prepared rows: `dataset[i]` is row `i`, as the dict that `RowReader` returns.

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
        # The shards of an index are in order, so searching needs no copy of the column, which may have 1e8 rows.
        shards = self.index.column("shard").to_numpy()
        self._open = lru_cache(OPEN_SHARDS)(self.open_shard)
        self.starts = np.searchsorted(shards, np.arange(len(tables) + 1, dtype=shards.dtype))

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
        row: dict[str, Any] = self._open(shard)[int(index - self.starts[shard])]
        if row["length"] != (expected := self.index.column("length")[int(index)].as_py()):
            raise damaged(self.name_shard(shard), f"{row['length']} ids in a row that has {expected} in the {INDEX}")
        return row

    @property
    def num_ids(self) -> int | None:
        """Size of the text vocabulary and of the codebook together, as `meta.json` states it."""
        return count_ids(self.meta)

    def name_shard(self, shard: int) -> str:
        """Return the path of a shard, or words for it if the rows are in memory."""
        return str(self.tables.paths[shard]) if isinstance(self.tables, _Shards) else f"shard {shard}"

    def open_shard(self, shard: int) -> RowReader:
        """Return the rows of a shard. Raise `DamagedDataError` if their number is not that of the index."""
        table = self.tables[shard]
        if len(table) != (expected := int(self.starts[shard + 1] - self.starts[shard])):
            raise damaged(self.name_shard(shard), f"{len(table)} rows where the {INDEX} has {expected}")
        return RowReader(table, self.name_shard(shard), self.num_ids)

    def check_shards(self, rank: int = 0, world_size: int = 1) -> None:
        """Open every `world_size`-th shard from number `rank` on, and raise `DamagedDataError` for a damaged one.

        This finds shards that are missing or were cut short, without reading their rows. Rows are checked when they
        are read.
        """
        for shard in range(rank, len(self.tables), world_size):
            self._open(shard)

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


def shard_name(number: int) -> str:
    """Return the name of the shard (Arrow file of prepared rows) with this number, from 0."""
    return f"shard-{number:06d}.arrow"


def shard_names(meta: Mapping[str, Any]) -> Iterator[str]:
    """Yield the names of all shards (Arrow files of prepared rows) of a folder, in order.

    Args:
        meta: Content of the folder's `meta.json`. The shards of a stream are numbered by its parts.
    """
    if (parts := meta.get("parts")) is None:
        yield from map(shard_name, range(meta["num_shards"]))
    else:
        yield from (part_name(part, shard) for part, (shards, _) in enumerate(parts) for shard in range(shards))


def shard_paths(folder: str | os.PathLike[str]) -> list[Path]:
    """Return the paths of the finished shards (Arrow files of prepared rows) in a folder, in order."""
    return sorted(Path(folder).glob("shard-*.arrow"))


def index_checksum(index: pa.Table) -> int:
    """Return the CRC-32 of the values of an index, by which `meta.json` tells whether the file was changed."""
    value = 0
    for field in INDEX_SCHEMA:
        value = zlib.crc32(index.column(field.name).to_numpy(), value)
    return value


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
    refuse_address("folder", folder)
    path = Path(folder, META)
    if not path.is_file():
        raise FileNotFoundError(
            f"`folder` must be one that janus-hf prepare wrote, got {str(folder)!r}, which has no {META}: prepare the "
            "source first, or correct the path."
        )
    meta = read_manifest(folder)
    shards = shard_paths(folder)
    if not meta["complete"]:
        raise ValueError(
            f"The preparation of `folder` must be finished, got {str(folder)!r}, which is not finished ({len(shards)} "
            "shards so far): run it again, and it goes on where it stopped."
        )
    # The number may be damaged, so names are listed only a little beyond those that exist.
    expected = set(islice(shard_names(meta), 2 * len(shards) + 8))
    found = {shard.name for shard in shards}
    if found != expected:
        missing, extra = sorted(expected - found), sorted(found - expected)
        raise DamagedDataError(
            f"{str(folder)!r} must hold {meta['num_shards']} shards, got {len(shards)}; missing: "
            f"{', '.join(missing[:3]) or 'none'}; not its own: {', '.join(extra[:3]) or 'none'}. Take away files that "
            f"do not belong there, and run the same preparation again, which makes only what is missing ({META} must "
            "stay)."
        )
    index = read_index(folder)
    if len(index) != meta["num_rows"]:
        raise ValueError(
            f"{str(folder)!r} must hold {meta['num_rows']} rows, got {len(index)} in its {INDEX}: delete that file, "
            "which is made again in memory, or prepare the folder again."
        )
    if meta.get("index_checksum", check := index_checksum(index)) != check:
        raise damaged(Path(folder, INDEX), "another checksum than meta.json states", REMAKE_INDEX)
    dataset = PreparedDataset(_Shards(shards), meta, os.fspath(folder), index)
    dataset.check(model=model, processor=processor)
    if TASKS.index("drawing") in pc.unique(index.column("task")).to_pylist():
        warn_of_precision(meta, repr(str(folder)))
    return dataset


__all__ = [
    "INDEX",
    "META",
    "OPEN_SHARDS",
    "SCHEMA",
    "PreparedDataset",
    "index_checksum",
    "load_prepared",
    "make_index",
    "make_table",
    "read_index",
    "read_shard",
    "read_whole",
    "shard_name",
    "shard_names",
    "shard_paths",
    "skipped_rows",
    "write_json",
    "write_shard",
]
