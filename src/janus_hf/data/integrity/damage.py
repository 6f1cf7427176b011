"""Checks of prepared files: a file that is cut short or damaged raises an error that names it.

Arrow trusts the numbers in the files that it maps into memory. It ends the process if an offset points behind the end
of an array. So `RowReader` reads offsets as numbers, and compares them with the sizes of the buffers before it uses
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
_TASKS = {task.encode() for task in TASKS}
# Column -> the Arrow buffers that hold its offsets and values, with their dtypes.
_BUFFERS: dict[str, list[tuple[int, Any]]] = {
    "input_ids": [(1, np.int32), (3, np.int32)],
    "labels": [(1, np.int32), (3, np.int32)],
    "task": [(1, np.int32), (2, np.uint8)],
    "length": [(1, np.int32)],
    "images": [(1, np.int32), (3, np.int64), (4, np.uint8)],
    "prompt_end": [(1, np.int32)],
    CHECKSUM.name: [(1, np.uint32)],
}
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


class RowReader(Sequence[dict[str, Any]]):
    """Sequence of the prepared rows of a table that `read_arrow` or `store.make_table` returned.

    A row is a dict with the columns of `store.SCHEMA`: ids and labels as int64 arrays `(T,)`, the others as Python
    values. A damaged one raises `DamagedDataError` when it is read.

    Args:
        table: The table.
        path: File of the table, for error messages.
        num_ids: Size of both vocabularies together, those of text and of image codes; None does not compare it.
    """

    def __init__(self, table: pa.Table, path: str | os.PathLike[str], num_ids: int | None = None) -> None:
        self.path, self.num_rows = path, len(table)
        self.largest = np.iinfo(np.int32).max if num_ids is None else num_ids - 1
        chunks = {name: table.column(name).chunk(0) for name in table.column_names} if len(table) else {}
        # Views of the buffers, made once: for lists and strings the offsets come before the values.
        self._views = {
            name: [_values(chunks[name], buffer, dtype) for buffer, dtype in _BUFFERS[name]] for name in chunks
        }
        self._offsets = {name: chunk.offset for name, chunk in chunks.items()}

    def __len__(self) -> int:
        return self.num_rows

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < self.num_rows:
            raise IndexError(f"`index` must be in [0, {self.num_rows}), got {index}.")
        try:
            ids, labels = self._slice("input_ids", index), self._slice("labels", index)
            task, images = self._slice("task", index).tobytes(), self._images(index)
            length, prompt_end = self._number("length", index), self._number("prompt_end", index)
            stored = self._number(CHECKSUM.name, index) if CHECKSUM.name in self._views else None
        except _OutOfRangeError as error:
            raise damaged(self.path, f"{error} in its row {index}") from error
        wrong = self._find_wrong(ids, labels, task, length, prompt_end)
        if wrong is None and stored is not None and checksum(ids, labels, task, prompt_end, images) != stored:
            wrong = "another checksum"
        if wrong is not None:
            raise damaged(self.path, f"{wrong} in its row {index}")
        return {
            "input_ids": ids.astype(np.int64),
            "labels": labels.astype(np.int64),
            "task": task.decode(),
            "length": length,
            "images": images,
            "prompt_end": prompt_end,
        }

    def _find_wrong(
        self, ids: np.ndarray, labels: np.ndarray, task: bytes, length: int, prompt_end: int
    ) -> str | None:
        """Return words for the first value of a row that is out of its range, or None."""
        if not len(ids) or len(ids) != length or len(ids) != len(labels):
            return f"{len(ids)} ids, {len(labels)} labels and the length {length}"
        if (lowest := int(ids.min())) < 0 or (highest := int(ids.max())) > self.largest:
            return f"the id {lowest if lowest < 0 else highest} (ids are 0 to {self.largest})"
        if (others := (labels != ids) & (labels != IGNORE)).any():
            place = int(others.argmax())
            return f"the label {labels[place]} of the id {ids[place]}"
        if task not in _TASKS:
            return f"the task {task!r}"
        return f"the end of the prompt {prompt_end} of {length} ids" if not -1 <= prompt_end < length else None

    def _number(self, name: str, index: int) -> int:
        """Return the entry `index` of a column of numbers."""
        (values,) = self._views[name]
        if not (place := self._offsets[name] + index) < len(values):
            raise _OutOfRangeError(f"{len(values)} values of {name}")
        return int(values[place])

    def _slice(self, name: str, index: int) -> np.ndarray:
        """Return the entry `index` of a column of lists of int32 or of strings, without copying it."""
        offsets, values = self._views[name]
        start, end = _bounds(offsets, self._offsets[name] + index, len(values))
        return values[start:end]

    def _images(self, index: int) -> list[bytes]:
        """Return the encoded image files of a row."""
        outer, inner, values = self._views["images"]
        first, last = _bounds(outer, self._offsets["images"] + index, max(len(inner) - 1, 0))
        bounds = [_bounds(inner, image, len(values)) for image in range(first, last)]
        return [values[start:end].tobytes() for start, end in bounds]


class _OutOfRangeError(ValueError):
    """Raised when an offset points behind the end of its buffer."""


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


__all__ = [
    "CHECKSUM",
    "DamagedDataError",
    "RowReader",
    "check_offsets",
    "checksum",
    "damaged",
    "read_arrow",
]
