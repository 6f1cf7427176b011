"""`pack`, which fills packs of a fixed length with documents of known lengths and moves no document far in the order.

A pack is a list of documents (tokenized rows) that share one row of the batch.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar


POOL_SIZE = 256
SLACK = 128  # a pack is full when less than 1/128 of it is free

T = TypeVar("T")


def pack(
    documents: Iterable[tuple[int, T] | None],
    max_length: int,
    *,
    pool_size: int = POOL_SIZE,
    pool: "Pool[T] | None" = None,
) -> Iterator[list[T]]:
    """Yield packs: lists of documents (tokenized rows) that together have at most `max_length` tokens.

    Documents are chosen from a pool of those that come next. A pack begins with the oldest document of the pool, and
    then takes the oldest that fit, until one or two documents of the pool fill the rest of the pack almost exactly. So
    no document waits long, and a mixture of sources stays mixed.

    Args:
        documents: Pairs `(number of tokens, document)`; the document may be any object. None in between asks for a
            pack of the documents in the pool before the next document is read, and is repeated until the pool is
            empty.
        max_length: Largest number of tokens in a pack.
        pool_size: Number of documents in the pool.
        pool: Buffer of documents that were read and not packed yet, updated in place. It and the number of documents
            read are the whole state, so that packing can be resumed from them. By default an empty one.

    Raises:
        ValueError: If a document is longer than a pack.
    """
    stream = iter(documents)
    pool = Pool() if pool is None else pool
    while True:
        while len(pool.ages) < pool_size:
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
            # The first member is always the oldest document, so that no document waits forever for a fitting pack.
            last = pool.fill(room, max_length // SLACK) if members else ()
            for position in last or (oldest,):
                length, document = pool.take(position)
                members.append(document)
                room -= length
            if last:
                break
        yield members


class Pool(Generic[T]):
    """Buffer of documents (tokenized rows) that wait to be packed; it finds them by length and by age.

    It uses plain lists, sorted by length, because they are faster than arrays for a few hundred documents.
    """

    def __init__(self) -> None:
        self.lengths: list[int] = []  # shortest first; of equal lengths the oldest first
        self.ages: list[int] = []  # ages of the same documents: their number in the order of adding
        self.waiting: dict[int, tuple[int, T]] = {}  # age -> (length, document), oldest first
        self.added = 0  # number of documents added so far

    def add(self, length: int, document: T) -> None:
        """Add a document of `length` tokens to the pool, as its youngest document."""
        position = bisect_right(self.lengths, length)
        self.lengths.insert(position, length)
        self.ages.insert(position, self.added)
        self.waiting[self.added] = length, document
        self.added += 1

    def take(self, position: int) -> tuple[int, T]:
        """Remove a document from the pool and return `(length, document)`.

        Args:
            position: Index of the document in `lengths`, the sorted list of the lengths of all documents in the pool.
        """
        del self.lengths[position]
        return self.waiting.pop(self.ages.pop(position))

    def oldest(self, room: int) -> int | None:
        """Return the index of the oldest document of at most `room` tokens; None if all documents are longer.

        The index is that in `lengths`, the sorted list of the lengths of all documents in the pool.
        """
        if not self.lengths or self.lengths[0] > room:
            return None
        for length, _ in self.waiting.values():
            if length <= room:
                break
        # Documents of equal length are sorted by age, so the first position of this length is the document found.
        return bisect_left(self.lengths, length)

    def fill(self, room: int, slack: int) -> tuple[int, ...]:
        """Return the indices of one or two documents that together fill `room` tokens, the higher index first.

        The indices are those in `lengths`, the sorted list of the lengths of all documents in the pool. Up to `slack`
        of the `room` tokens may stay free. One document is preferred to two. If there are several pairs, the one with
        the most tokens is chosen, and of equally long pairs the one whose longer document is shortest. The result is
        empty if neither a document nor a pair fills the room.
        """
        lengths, least = self.lengths, room - slack
        single = bisect_right(lengths, room) - 1
        if single >= 0 and lengths[single] >= least:
            return (single,)
        if len(lengths) < 2 or lengths[-1] + lengths[-2] < least:
            return ()
        # The longer document of a pair has at least half of its tokens, and leaves room for the shortest document.
        first, end = max(bisect_left(lengths, (least + 1) // 2), 1), bisect_right(lengths, room - lengths[0])
        best = least - 1
        found: tuple[int, ...] = ()
        # The longer one document is, the shorter its partner: `partner` only decreases, so one pass finds all pairs.
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
