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
    """Yield packs: lists of documents that together have at most `max_length` tokens.

    A pack begins with the oldest document of the pool and takes older ones first, so that no document waits long and a
    mixture stays mixed, until one or two documents of the pool fill the rest of the pack almost exactly.

    Args:
        documents: Pairs of a number of tokens and any object that stands for the document.
        max_length: Largest number of tokens in a pack.
        pool_size: Number of documents to choose from.
        num_packs: Stop after this number of packs. Towards the end the pool is used up, so that no kind of document is
            left behind. By default all documents are packed.
        pool: Buffer of unpacked documents, updated in place. With the stream's position it is the whole state, so
            packing can resume from it. By default an empty one.

    Raises:
        ValueError: If a document is longer than a pack.
    """
    stream = iter(documents)
    pool = Pool() if pool is None else pool
    count = 0
    while num_packs is None or count < num_packs:
        # Near the end, read only as many tokens as the remaining packs hold: documents read beyond that would be lost.
        while len(pool.ages) < pool_size and (num_packs is None or pool.total < (num_packs - count) * max_length):
            if (following := next(stream, None)) is None:
                break
            if following[0] > max_length:
                raise ValueError(
                    f"`documents` must have at most `max_length`={max_length} tokens, got one of {following[0]}: "
                    "raise max_length, or leave long documents out."
                )
            pool.add(*following)
        if not pool.ages:
            return
        members: list[T] = []
        room = max_length
        while (oldest := pool.oldest(room)) is not None:
            # The first member is always the oldest document, so that none waits forever for a pack that it completes.
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
    """Buffer of unpacked documents that are found by length and by age.

    Plain lists, sorted by length: at a few hundred documents they are faster than arrays.
    """

    def __init__(self) -> None:
        self.lengths: list[int] = []  # shortest first; of equal lengths the oldest first
        self.ages: list[int] = []  # ages of the same documents: their number in the order of adding
        self.waiting: dict[int, tuple[int, T]] = {}  # age -> (length, document), oldest first
        self.added = 0  # number of documents added so far
        self.total = 0  # number of tokens of all documents in the pool

    def add(self, length: int, document: T) -> None:
        """Add a document, which is then the youngest."""
        position = bisect_right(self.lengths, length)
        self.lengths.insert(position, length)
        self.ages.insert(position, self.added)
        self.waiting[self.added] = length, document
        self.added += 1
        self.total += length

    def take(self, position: int) -> tuple[int, T]:
        """Remove the document at a position of `lengths` and return `(length, document)`."""
        self.total -= self.lengths.pop(position)
        return self.waiting.pop(self.ages.pop(position))

    def oldest(self, room: int) -> int | None:
        """Return the position in `lengths` of the oldest document of at most `room` tokens; None if there is none."""
        if not self.lengths or self.lengths[0] > room:
            return None
        for length, _ in self.waiting.values():
            if length <= room:
                break
        # Of equal lengths the oldest stands first, so the first position of this length is the document found.
        return bisect_left(self.lengths, length)

    def fill(self, room: int, slack: int) -> tuple[int, ...]:
        """Return positions in `lengths`, the higher first, of one or two documents that fill `room`.

        Up to `slack` of the `room` tokens may stay free. One document is preferred to two. Of the pairs, the fullest
        is chosen, and of equally full ones the pair whose longer document is shortest. The result is empty if no
        document and no pair fills the room.
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
        # As the longer one grows, its partner shrinks: `partner` only moves down, so all pairs take one pass.
        partner = bisect_right(lengths, room - lengths[first]) - 1
        for position in range(first, end):
            rest = room - lengths[position]
            while lengths[partner] > rest:
                partner -= 1
            shorter = min(partner, position - 1)  # considers each pair once and pairs no document with itself
            if (together := lengths[position] + lengths[shorter]) > best:
                best, found = together, (position, shorter)
                if best == room:
                    break
        return found


__all__ = ["POOL_SIZE", "Pool", "pack"]
