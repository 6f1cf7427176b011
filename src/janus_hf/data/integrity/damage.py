"""Checks of prepared files: a file that is cut short or damaged raises an error that names it.

Arrow trusts the numbers in the files that it maps into memory. It ends the process if an offset points behind the end
of an array. So `read_row` reads offsets as numbers, and compares them with the sizes of the buffers before it uses
them. A checksum per row finds every changed byte, also one that leaves ids and offsets in their ranges.
"""

import os
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..documents import IGNORE
from ..schema import TASKS


CHECKSUM = pa.field("checksum", pa.uint32())  # the last column of a shard; early versions of this package had none
REMAKE = (
    "delete this file, and run the command that made it again (`janus-hf prepare` or `janus-hf train`), which makes "
    "only the missing file again"
)


class DamagedDataError(ValueError):
    """Raised when a file of prepared data is missing, cut short or damaged. The message names the file."""


def damaged(path: str | os.PathLike[str], got: object, remedy: str = REMAKE) -> DamagedDataError:
    """Return, without raising it, the error for a damaged file.

    Args:
        path: Path of the file.
        got: What was found instead of what should be there.
        remedy: What to do, an imperative without a full stop.
    """
    return DamagedDataError(f"{os.fspath(path)} must be a complete file of prepared data, got {got}: {remedy}.")


def read_arrow(path: str | os.PathLike[str], schema: pa.Schema, remedy: str = REMAKE) -> pa.Table:
    """Map an Arrow IPC file into memory, and return its table; only the values that are used are read from the disk.

    Its columns, their sizes and the number of their chunks are checked here. The values are not.

    Args:
        path: Path of the file.
        schema: Columns that the table must have; the column `CHECKSUM` may come after them.
        remedy: What to do if the file is damaged.

    Raises:
        DamagedDataError: If the file is missing, is no Arrow file, or has other columns.
    """
    try:
        table = pa.ipc.open_file(pa.memory_map(os.fspath(path))).read_all()
        table.validate()
        found = {field.name: field.type for field in table.schema if field != CHECKSUM}
    except (pa.ArrowException, OSError, ValueError) as error:
        raise damaged(path, str(error).partition("\n")[0], remedy) from error
    if found != {field.name: field.type for field in schema} or len(found) < len(table.schema) - 1:
        raise damaged(path, f"the columns {table.column_names}", remedy)
    for name, column in zip(table.column_names, table.columns, strict=True):
        # One chunk per column means that no search for the chunk of a row is needed.
        if len(table) and (column.num_chunks != 1 or len(column) != len(table) or column.null_count):
            raise damaged(path, f"a column {name!r} that is not whole", remedy)
    return table


def check_offsets(table: pa.Table, path: str | os.PathLike[str]) -> None:
    """Raise `DamagedDataError` unless every row of a shard has a task and as many ids as its length says.

    Ids and images are not read.

    Args:
        table: Table that `read_arrow` returned for the shard.
        path: Path of the shard.
    """
    if not len(table):
        return
    try:
        table.validate(full=True)
    except pa.ArrowException as error:
        raise damaged(path, str(error).partition("\n")[0]) from error
    if unknown := set(pc.unique(table.column("task")).to_pylist()) - set(TASKS):
        raise damaged(path, f"the task {unknown.pop()!r}")
    lengths = table.column("length")
    for name in ("input_ids", "labels"):
        differ = pc.not_equal(pc.list_value_length(table.column(name)), lengths).to_numpy()
        if differ.any():
            raise damaged(path, f"another number of {name} than its length says in its row {int(differ.argmax())}")


def checksum(ids: np.ndarray, labels: np.ndarray, task: bytes, prompt_end: int, images: Sequence[Any]) -> int:
    """Return the CRC-32 of the content of a prepared row.

    Args:
        ids: Joint ids, `(T,)` int32.
        labels: Labels, `(T,)` int32.
        task: Name of the task in UTF-8.
        prompt_end: See `store.SCHEMA`.
        images: Encoded image files, each bytes or an array of bytes.
    """
    sizes = [len(ids), len(labels), prompt_end, len(images), *map(len, images)]
    value = zlib.crc32(task, zlib.crc32(np.array(sizes, dtype="<i8").tobytes()))
    for part in (ids, labels, *images):
        value = zlib.crc32(part, value)
    return value


def read_row(
    table: pa.Table, index: int, *, path: str | os.PathLike[str], num_ids: int | None = None
) -> dict[str, Any]:
    """Return the prepared row with the number `index` of a table that `read_arrow` or `store.make_table` returned.

    Args:
        table: The table.
        index: Number of the row in the table.
        path: File of the table, for the error message.
        num_ids: Size of both vocabularies together, those of text and of image codes; None does not compare it.

    Returns:
        A dict with the columns of `store.SCHEMA`: ids and labels as int64 arrays `(T,)`, the others as Python values.

    Raises:
        DamagedDataError: If the row is damaged.
    """
    try:
        row, found = _take_row(table, index)
    except (_OutOfRangeError, UnicodeDecodeError) as error:
        raise damaged(path, f"{error} in its row {index}") from error
    ids, labels = row["input_ids"], row["labels"]
    largest = np.iinfo(np.int32).max if num_ids is None else num_ids - 1
    if not len(ids) or len(ids) != row["length"] or len(ids) != len(labels):
        raise damaged(path, f"{len(ids)} ids, {len(labels)} labels and the length {row['length']} in its row {index}")
    if (lowest := int(ids.min())) < 0 or (highest := int(ids.max())) > largest:
        wrong = lowest if lowest < 0 else highest
        raise damaged(path, f"the id {wrong} in its row {index}, where ids are 0 to {largest}")
    if (wrong_labels := (labels != ids) & (labels != IGNORE)).any():
        place = int(wrong_labels.argmax())
        raise damaged(path, f"the label {labels[place]} of the id {ids[place]} in its row {index}")
    if row["task"] not in TASKS:
        raise damaged(path, f"the task {row['task']!r} in its row {index}")
    if not -1 <= row["prompt_end"] < len(ids):
        raise damaged(path, f"the end of the prompt {row['prompt_end']} in its row {index} of {len(ids)} ids")
    if found is not None and found != row.pop("checksum"):
        raise damaged(path, f"another checksum in its row {index}")
    return row


class _OutOfRangeError(ValueError):
    """Raised when an offset points behind the end of its buffer."""


def _take_row(table: pa.Table, index: int) -> tuple[dict[str, Any], int | None]:
    """Return a row and the checksum that is stored with it; the row's own `checksum` is computed from its content.

    Raises:
        _OutOfRangeError: If an offset points behind the end of its buffer.
    """
    columns = {name: table.column(name).chunk(0) for name in table.column_names}
    ids, labels = (_int_list(columns[name], index) for name in ("input_ids", "labels"))
    task, images = _bytes(columns["task"], index), _images(columns["images"], index)
    prompt_end, length = (_number(columns[name], index, np.int32) for name in ("prompt_end", "length"))
    row = {
        "input_ids": ids.astype(np.int64),
        "labels": labels.astype(np.int64),
        "task": task.decode(),
        "length": length,
        "images": images,
        "prompt_end": prompt_end,
    }
    if CHECKSUM.name not in columns:
        return row, None
    row["checksum"] = checksum(ids, labels, task, prompt_end, images)
    return row, _number(columns[CHECKSUM.name], index, np.uint32)


def _values(array: pa.Array, buffer: int, dtype: Any) -> np.ndarray:
    """Return one buffer of an Arrow array as an array of numbers, without copying it."""
    content = array.buffers()[buffer]
    if content is None:  # Arrow has no buffer for an array without values
        return np.empty(0, dtype)
    return np.frombuffer(content, dtype, count=content.size // np.dtype(dtype).itemsize)


def _bounds(offsets: np.ndarray, index: int, size: int) -> tuple[int, int]:
    """Return where the values of the entry `index` begin and end among `size` values."""
    if not 0 <= index < len(offsets) - 1:
        raise _OutOfRangeError(f"{len(offsets)} offsets")
    start, end = int(offsets[index]), int(offsets[index + 1])
    if not 0 <= start <= end <= size:
        raise _OutOfRangeError(f"values {start} to {end} of {size}")
    return start, end


def _number(array: pa.Array, index: int, dtype: Any) -> int:
    """Return the entry `index` of an array of numbers."""
    values = _values(array, 1, dtype)
    if not array.offset + index < len(values):
        raise _OutOfRangeError(f"{len(values)} values")
    return int(values[array.offset + index])


def _int_list(array: pa.Array, index: int) -> np.ndarray:
    """Return the entry `index` of an array of lists of int32, without copying it."""
    values = _values(array, 3, np.int32)
    start, end = _bounds(_values(array, 1, np.int32), array.offset + index, len(values))
    return values[start:end]


def _bytes(array: pa.Array, index: int) -> bytes:
    """Return the entry `index` of an array of strings as UTF-8."""
    values = _values(array, 2, np.uint8)
    start, end = _bounds(_values(array, 1, np.int32), array.offset + index, len(values))
    return values[start:end].tobytes()


def _images(array: pa.Array, index: int) -> list[bytes]:
    """Return the entry `index` of an array of lists of large binaries."""
    inner, values = _values(array, 3, np.int64), _values(array, 4, np.uint8)
    first, last = _bounds(_values(array, 1, np.int32), array.offset + index, max(len(inner) - 1, 0))
    bounds = [_bounds(inner, image, len(values)) for image in range(first, last)]
    return [values[start:end].tobytes() for start, end in bounds]


__all__ = [
    "CHECKSUM",
    "DamagedDataError",
    "check_offsets",
    "checksum",
    "damaged",
    "read_arrow",
    "read_row",
]
