"""Filling packs of a fixed length from a sequence of documents of known lengths, without moving any of them far."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar


POOL_SIZE = 256
SLACK = 128  # a pack is full when less than 1/128 of it is free

T = TypeVar("T")


def pack(
    documents: Iterable[tuple[int, T]],
    max_length: int,
    *,
    pool_size: int = POOL_SIZE,
    num_packs: int | None = None,
    pool: "Pool[T] | None" = None,
) -> Iterator[list[T]]:
    """Packs a sequence of `(length, document)`, looking `pool_size` documents ahead.

    A pack begins with the oldest document and takes older ones first, so that nothing waits long and a mixture stays
    mixed, until one or two documents of the pool fill what is left of it almost exactly.

    Args:
        num_packs: Stop after so many. Towards the end the pool is used up, so that no kind of document is left behind.
        pool: Where documents wait; it may hold some already. Between two packs it is all there is to know.

    Raises:
        ValueError: A document is longer than a pack.
    """
    stream = iter(documents)
    pool = Pool() if pool is None else pool
    count = 0
    while num_packs is None or count < num_packs:
        while len(pool.ages) < pool_size and (num_packs is None or pool.total < (num_packs - count) * max_length):
            if (following := next(stream, None)) is None:
                break
            if following[0] > max_length:
                raise ValueError(f"Expected documents of at most {max_length} ids; got one of {following[0]}.")
            pool.add(*following)
        if not pool.ages:
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


class Pool(Generic[T]):
    """Documents that wait, found by length and by age. Plain lists: at this size they beat arrays."""

    def __init__(self) -> None:
        self.lengths: list[int] = []  # shortest first, of equals the oldest first
        self.ages: list[int] = []  # of the same documents
        self.waiting: dict[int, tuple[int, T]] = {}  # age -> (length, document), oldest first
        self.added = 0
        self.total = 0

    def add(self, length: int, document: T) -> None:
        """One more, younger than all that wait."""
        position = bisect_right(self.lengths, length)
        self.lengths.insert(position, length)
        self.ages.insert(position, self.added)
        self.waiting[self.added] = length, document
        self.added += 1
        self.total += length

    def take(self, position: int) -> tuple[int, T]:
        """Removes and returns `(length, document)`."""
        self.total -= self.lengths.pop(position)
        return self.waiting.pop(self.ages.pop(position))

    def oldest(self, room: int) -> int | None:
        """The position of the oldest document that is not longer than `room`."""
        if not self.lengths or self.lengths[0] > room:
            return None
        for length, _ in self.waiting.values():
            if length <= room:
                break
        return bisect_left(self.lengths, length)

    def fill(self, room: int, slack: int) -> tuple[int, ...]:
        """Positions, the higher first, of one or two documents that fill `room` up to `slack`; empty if none do.

        One if one will do, else the fullest pair, of equals the one whose longer document is shortest.
        """
        lengths, least = self.lengths, room - slack
        single = bisect_right(lengths, room) - 1
        if single >= 0 and lengths[single] >= least:
            return (single,)
        if len(lengths) < 2 or lengths[-1] + lengths[-2] < least:
            return ()
        # The longer one of a pair is at least half of it, and leaves room for the shortest document.
        first, end = max(bisect_left(lengths, (least + 1) // 2), 1), bisect_right(lengths, room - lengths[0])
        best = least - 1
        found: tuple[int, ...] = ()
        partner = bisect_right(lengths, room - lengths[first]) - 1
        for position in range(first, end):
            rest = room - lengths[position]
            while lengths[partner] > rest:
                partner -= 1
            shorter = min(partner, position - 1)  # each pair once, and nobody its own partner
            if (together := lengths[position] + lengths[shorter]) > best:
                best, found = together, (position, shorter)
                if best == room:
                    break
        return found
