"""`StreamParts`, which divides a stream between processes, and lets a later run go on where an earlier one stopped.

A stream consists of parts, which `datasets` calls shards: mostly one per file. They can be read independently. Each
process reads parts of its own and cuts them into shards, which are files of consecutive prepared rows. When a process
comes to the end of a part, it writes a small file that says how many shards and rows the part has. So the folder alone
tells what is left to be done, and the order of the rows depends neither on the number of processes nor on restarts.
"""

import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, count, islice
from pathlib import Path
from typing import Any, TypeAlias

import datasets

from ...files import write_atomically
from .addresses import without_secrets


# Kinds of streams that are equal to their parts one after another, by the names that their states have. Others, such
# as interleaved streams or `take`, are one part.
_IN_ORDER = {
    "ArrowExamplesIterable",
    "ExamplesIterable",
    "FilteredExamplesIterable",
    "FormattedExamplesIterable",
    "MappedExamplesIterable",
    "RebatchedArrowExamplesIterable",
    "SelectColumnsIterable",
    "VerticallyConcatenatedMultiSourcesExamplesIterable",
}

Ends: TypeAlias = "dict[int, tuple[int, int]]"
"""Number of a part -> number of its shards and of its rows, the skipped ones included."""


@dataclass(frozen=True)
class Chunk:
    """Rows that become one shard.

    Args:
        name: Name of the shard's file.
        rows: The rows, which must be read before the next chunk is asked for.
        start: Number of the first of them in the part.
        place: Words for the part in messages.
    """

    name: str
    rows: Iterable[Mapping[str, Any]]
    start: int
    place: str


class StreamParts:
    """The parts of a stream whose prepared rows are in a folder, and what is left to be done there.

    Args:
        rows: The stream. It must have the same rows in the same order in every run.
        size: Number of rows in every shard; the last of a part may have fewer.
        output: Folder of the shards.
        files: The files that the rows come from, in their order, if they are known.
        explain: Function that makes the error for a row that cannot be read, of its number in its part, words for the
            part, its file (None if it is not known) and the error; None leaves errors as they are.
    """

    def __init__(
        self,
        rows: datasets.IterableDataset,
        size: int,
        output: Path,
        *,
        files: Sequence[str] = (),
        explain: Callable[[int, str, str | None, Exception], Exception] | None = None,
    ) -> None:
        self.rows, self.size, self.output, self.explain = rows, size, output, explain
        self.number = rows.num_shards if _kinds(rows) <= _IN_ORDER else 1
        self.files = list(files) if len(files) == self.number else []

    def chunks(self, rank: int, world_size: int) -> Iterator[Chunk]:
        """Yield the rows of each shard that a process has to make. A shard must exist before the next is asked for.

        Each part is read by one process. If there are fewer parts than processes, several read one, and make its
        shards in turn.

        Args:
            rank: Number of the process.
            world_size: Number of processes.
        """
        ends = find_ends(self.output, self.number)
        if world_size <= self.number:
            for part in range(rank, self.number, world_size):
                yield from self._chunks_of(part, ends.get(part), 0, 1)
        else:
            part, member = rank % self.number, rank // self.number
            members = len(range(part, world_size, self.number))
            yield from self._chunks_of(part, ends.get(part), member, members)

    def _chunks_of(self, part: int, end: tuple[int, int] | None, member: int, members: int) -> Iterator[Chunk]:
        """Yield the rows of the shards of one part that do not exist yet; see `chunks`.

        Args:
            part: Number of the part.
            end: Number of its shards and rows, if an earlier run came to its end.
            member: Number of this process among those that read the part.
            members: Number of these processes.
        """

        def is_due(shard: int) -> bool:
            """Return whether this process has to make a shard."""
            return shard % members == member and not (self.output / part_name(part, shard)).exists()

        shards: Iterable[int] = count() if end is None else range(end[0])
        first = next((shard for shard in shards if is_due(shard)), None)
        if first is None:
            return
        last = None if end is None else max(shard for shard in range(end[0]) if is_due(shard))
        rows = self.rows if self.number == 1 else self.rows.shard(self.number, part)
        place = "the source" if self.number == 1 else f"part {part} of the source"
        place += f" ({without_secrets(self.files[part])})" if self.files else ""
        read = _Counter(self._read(rows.skip(first * self.size) if first else rows, first * self.size, place, part))
        for shard in count(first):
            before = read.count
            some = islice(read, self.size)
            if is_due(shard):
                for row in islice(some, 1):
                    yield Chunk(part_name(part, shard), chain([row], some), shard * self.size, place)
            deque(some, maxlen=0)
            if (got := read.count - before) < self.size:
                write_end(self.output, part, shard + (got > 0), first * self.size + read.count)
                return
            if shard == last:
                return

    def _read(self, rows: datasets.IterableDataset, start: int, place: str, part: int) -> Iterator[Mapping[str, Any]]:
        """Yield the rows of a part, and raise the error that `explain` makes for a row that cannot be read."""
        iterator = iter(rows)
        for number in count(start):
            try:
                row = next(iterator)
            except StopIteration:
                return
            except Exception as error:  # `datasets`, its file systems and its readers raise errors of all kinds
                if self.explain is None:
                    raise
                raise self.explain(number, place, self.files[part] if self.files else None, error) from error
            yield row


class _Counter(Iterator[Any]):
    """Iterator that counts the items it has returned."""

    def __init__(self, items: Iterator[Any]) -> None:
        self.items, self.count = items, 0

    def __next__(self) -> Any:
        item = next(self.items)
        self.count += 1
        return item


def part_name(part: int, shard: int) -> str:
    """Return the name of a shard (Arrow file of prepared rows) of a part of a stream, both counted from 0."""
    return f"shard-{part:06d}-{shard:06d}.arrow"


def write_end(output: Path, part: int, shards: int, rows: int) -> None:
    """Write the file that says how many shards and rows a part has."""
    write_atomically(_end_path(output, part), json.dumps([shards, rows]))


def find_ends(output: Path, number: int, parts: Sequence[Sequence[int]] | None = None) -> Ends:
    """Return the sizes of the parts whose ends were found.

    Args:
        output: Folder of the shards.
        number: Number of parts.
        parts: Sizes of all parts, if `meta.json` states them.
    """
    if parts is not None:
        return {part: (shards, rows) for part, (shards, rows) in enumerate(parts)}
    ends = {}
    for part in range(number):
        if (path := _end_path(output, part)).is_file():
            shards, rows = json.loads(path.read_text(encoding="utf-8"))
            ends[part] = shards, rows
    return ends


def forget_ends(output: Path) -> None:
    """Delete the files that `write_end` wrote, once `meta.json` states what they say."""
    for path in output.glob("end-*.json"):
        path.unlink(missing_ok=True)


def _end_path(output: Path, part: int) -> Path:
    """Return the path of the file that says how many shards and rows a part has."""
    return output / f"end-{part:06d}.json"


def _kinds(rows: datasets.IterableDataset) -> set[str]:
    """Return the kinds of a stream and of those that it is made of, as its state names them."""
    next(iter(rows), None)  # a stream has no state before
    found: set[str] = set()

    def visit(state: Any) -> None:
        """Note the kinds in a state."""
        if isinstance(state, Mapping):
            found.update({str(state["type"])} if "type" in state else ())
            for value in state.values():
                visit(value)
        elif isinstance(state, list):
            for value in state:
                visit(value)

    visit(rows.state_dict())
    return found


__all__ = ["Chunk", "Ends", "StreamParts", "find_ends", "forget_ends", "part_name", "write_end"]
