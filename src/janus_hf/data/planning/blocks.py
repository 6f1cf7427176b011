"""Planning one block of packs from the state that the block before it left behind.

A pack is a list of documents that share one row of the batch; a block is a run of consecutive packs of a plan. A block
needs to know two facts about the blocks before it: how many rows every source has handed out, and which of those rows
are in no pack yet. So any block can be planned, or planned again, from a state of a few kilobytes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice
from typing import NamedTuple

import numpy as np

from .mixing import RowOrder, take_turns
from .packing import Pool, pack


class Entry(NamedTuple):
    """One document of a pack.

    Args:
        source: Number of its source, in the order of the plan's ratios.
        row: Number of the row in that source.
        visit: Number of times that the row came before in the plan.
    """

    source: int
    row: int
    visit: int


@dataclass(frozen=True)
class Block:
    """Consecutive packs of a plan, stored as two arrays. A pack is a list of documents that share a row of the batch.

    Args:
        entries: `(documents, 3)` int32: the fields of an `Entry` per document, pack after pack.
        starts: `(packs + 1,)` int64: pack `i` of the block is `entries[starts[i]:starts[i + 1]]`.
    """

    entries: np.ndarray
    starts: np.ndarray

    def __len__(self) -> int:
        return len(self.starts) - 1

    def pack(self, position: int) -> list[Entry]:
        """Return the documents of the pack at this position of the block."""
        return [Entry(*row) for row in self.entries[self.starts[position] : self.starts[position + 1]].tolist()]


@dataclass(frozen=True)
class BlockState:
    """State of planning where a block begins: all that the block needs to know of the blocks before it.

    Args:
        number: Number of the block, from 0.
        given: Number of rows that each source has handed out.
        waiting: `(n, 3)` int32: an `Entry` per row that was handed out and is in no pack yet, oldest first.
    """

    number: int
    given: tuple[int, ...]
    waiting: np.ndarray


class BlockPlanner:
    """Planner of blocks of consecutive packs, each from the state where the block begins.

    Args:
        lengths: Per source, the number of tokens of every row, `(rows,)` integers.
        ratios: Share of every source in rows, in any unit.
        seed: Seed of the order of the rows.
        max_length: Largest number of tokens in a pack.
        pool_size: Number of rows that packing chooses from.
        num_packs: Number of packs of the plan; None if `num_documents` decides.
        num_documents: Number of rows of the plan; None if `num_packs` decides.
        block_size: Number of packs per block. The last block may be shorter, or empty.
    """

    def __init__(
        self,
        lengths: Sequence[np.ndarray],
        ratios: Sequence[float],
        *,
        seed: int,
        max_length: int,
        pool_size: int,
        num_packs: int | None,
        num_documents: int | None,
        block_size: int,
    ) -> None:
        self.lengths, self.ratios = list(lengths), list(ratios)
        self.max_length, self.pool_size, self.block_size = max_length, pool_size, block_size
        self.num_packs, self.num_documents = num_packs, num_documents
        self._orders = [RowOrder(seed, source, len(rows)) for source, rows in enumerate(self.lengths)]

    def first_state(self) -> BlockState:
        """Return the state where block 0 begins."""
        return BlockState(0, (0,) * len(self.lengths), np.empty((0, 3), dtype=np.int32))

    def next_block(self, state: BlockState) -> tuple[Block, BlockState]:
        """Return the block that begins at `state`, and the state where the next block begins.

        This is a pure function of `state` and the planner's arguments. A block of less than `block_size` packs is the
        last one of the plan.
        """
        # `pack` knows a document by its index in the joined `parts`. Waiting rows come first there and in the pool, so
        # both count alike, and `pool.added` tells how far the stream was read.
        parts = [state.waiting]
        pool: Pool[int] = Pool()
        for index, length in enumerate(gather_lengths(self.lengths, state.waiting).tolist()):
            pool.add(length, index)
        remaining = None if self.num_packs is None else self.num_packs - state.number * self.block_size
        stream = self._documents(state.given, parts)
        packing = pack(stream, self.max_length, pool_size=self.pool_size, num_packs=remaining, pool=pool)
        packs = list(islice(packing, self.block_size))
        entries = np.concatenate(parts)
        members = np.fromiter((index for members in packs for index in members), dtype=np.int64)
        block = Block(entries[members], np.cumsum([0, *map(len, packs)]))

        # The stream makes rows in large pieces, of which packing may have left the end: a row counts as handed out
        # only if the pool has read it.
        read = np.bincount(entries[len(state.waiting) : pool.added, 0], minlength=len(self.lengths)).tolist()
        given = tuple(had + more for had, more in zip(state.given, read, strict=True))
        waiting = entries[np.array([index for _, index in pool.waiting.values()], dtype=np.int64)]
        return block, BlockState(state.number + 1, given, waiting)

    def _documents(self, given: Sequence[int], parts: list[np.ndarray]) -> Iterator[tuple[int, int]]:
        """Yield `(number of tokens, index)` of the rows after the first `given` ones of every source.

        Args:
            given: Number of rows that each source has handed out.
            parts: Receives the rows' entries, one `(n, 3)` array after another. The index counts through all of them.
        """
        while self.num_documents is None or sum(given) < self.num_documents:
            # In pieces, because array operations over many rows are faster than one row at a time.
            size = self.block_size
            if self.num_documents is not None:
                size = min(size, self.num_documents - sum(given))
            first = sum(map(len, parts))
            entries = np.empty((size, 3), dtype=np.int32)
            entries[:, 0] = list(islice(take_turns(self.ratios, given), size))
            amounts = np.bincount(entries[:, 0], minlength=len(given)).tolist()
            for source, amount in enumerate(amounts):
                entries[entries[:, 0] == source, 1:] = self._orders[source].rows(given[source], amount)
            parts.append(entries)
            given = [had + more for had, more in zip(given, amounts, strict=True)]
            yield from zip(gather_lengths(self.lengths, entries).tolist(), count(first))


def gather_lengths(lengths: Sequence[np.ndarray], entries: np.ndarray) -> np.ndarray:
    """Return the number of tokens `(n,)` int64 of the rows that `entries` name.

    Args:
        lengths: Per source, the number of tokens of every row, `(rows,)` integers.
        entries: `(n, 3)` integers, the fields of an `Entry` each.
    """
    gathered = np.zeros(len(entries), dtype=np.int64)
    for source, rows in enumerate(lengths):
        ours = entries[:, 0] == source
        gathered[ours] = rows[entries[ours, 1]]
    return gathered


__all__ = ["Block", "BlockPlanner", "BlockState", "Entry", "gather_lengths"]
