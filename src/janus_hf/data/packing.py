"""Filling packs of a fixed length from a sequence of documents of known lengths, without moving any of them far."""

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator
from itertools import islice
from operator import itemgetter
from typing import Generic, TypeVar

import numpy as np


POOL_SIZE = 256
SLACK = 128  # a pack is full when less than 1/128 of it is free

T = TypeVar("T")


def pack(
    documents: Iterable[tuple[int, T]], max_length: int, *, pool_size: int = POOL_SIZE, num_packs: int | None = None
) -> Iterator[list[T]]:
    """Packs a sequence of `(length, document)`, looking `pool_size` documents ahead.

    A pack begins with the oldest document and takes older ones first, so that nothing waits long and a mixture stays
    mixed, until one or two documents of the pool fill what is left of it almost exactly.

    Args:
        num_packs: Stop after so many. Towards the end the pool is used up, so that no kind of document is left behind.

    Raises:
        ValueError: A document is longer than a pack.
    """
    stream = iter(documents)
    pool: _Pool[T] = _Pool()
    count = 0
    while num_packs is None or count < num_packs:
        while len(pool) < pool_size and (num_packs is None or pool.total < (num_packs - count) * max_length):
            following = list(islice(stream, 1))
            if not following:
                break
            if (length := following[0][0]) > max_length:
                raise ValueError(f"Expected documents of at most {max_length} ids; got one of {length}.")
            pool.add(*following[0])
        if not len(pool):
            return
        members: list[T] = []
        room = max_length
        while (oldest := pool.oldest(room)) is not None:
            last = pool.fill(room, max_length // SLACK) if members else ()
            for position in last or (oldest,):
                length, document = pool.take(position)
                members.append(document)
                room -= length
            if last:
                break
        yield members
        count += 1


class _Pool(Generic[T]):
    """Documents that wait, found by length and by age."""

    def __init__(self) -> None:
        self.waiting: list[tuple[int, int, T]] = []  # (length, age, document), shortest first
        self.lengths: dict[int, int] = {}  # age -> length, oldest first
        self.added = 0
        self.total = 0

    def __len__(self) -> int:
        return len(self.waiting)

    def add(self, length: int, document: T) -> None:
        insort(self.waiting, (length, self.added, document), key=itemgetter(0, 1))
        self.lengths[self.added] = length
        self.added += 1
        self.total += length

    def take(self, position: int) -> tuple[int, T]:
        """Removes and returns `(length, document)`."""
        length, age, document = self.waiting.pop(position)
        del self.lengths[age]
        self.total -= length
        return length, document

    def oldest(self, room: int) -> int | None:
        """The position of the oldest document that is not longer than `room`."""
        found = next(((length, age) for age, length in self.lengths.items() if length <= room), None)
        return None if found is None else bisect_left(self.waiting, found, key=itemgetter(0, 1))

    def fill(self, room: int, slack: int) -> tuple[int, ...]:
        """Positions, the higher first, of one or two documents that fill `room` up to `slack`; empty if none do."""
        lengths = np.array([entry[0] for entry in self.waiting], dtype=np.int64)
        single = int(np.searchsorted(lengths, room, side="right")) - 1
        if single >= 0 and room - lengths[single] <= slack:
            return (single,)
        partners = np.searchsorted(lengths, room - lengths, side="right") - 1
        partners = np.minimum(partners, np.arange(len(lengths)) - 1)  # each pair once, and nobody its own partner
        sums = np.where(partners >= 0, lengths + lengths[partners], -1)
        best = int(np.argmax(sums))
        return (best, int(partners[best])) if 0 <= room - sums[best] <= slack else ()
