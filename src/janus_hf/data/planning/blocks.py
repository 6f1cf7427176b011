"""`BlockPlanner`, which plans one block of packs at a time from the state that the block before it left.

A pack is a list of documents (tokenized rows) that share one row of the batch; a block is a number of consecutive
packs of a plan. Planning a block needs two facts about the blocks before it: how many rows every source (data set) has
handed out, and which of those rows are in no pack yet. So any block can be planned, or planned again, from a state of
a few kilobytes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice
from typing import NamedTuple

import numpy as np

from .mixing import RowOrder, VisitedRows, take_turns
from .packing import Pool, pack


class Entry(NamedTuple):
    """One document of a pack: the row of a source (data set) that is trained on at this point of the plan.

    Args:
        source: Number of the source, in the order of the plan's ratios.
        row: Number of the row in that source.
        visit: Number of times that the row came before in the plan.
    """

    source: int
    row: int
    visit: int


@dataclass(frozen=True)
class Block:
    """Consecutive packs of a plan, as two arrays. A pack is a list of documents that share one row of the batch.

    Args:
        entries: `(documents, 3)` int32: source, row and visit (see `Entry`) of every document, pack after pack.
        starts: `(packs + 1,)` int64: pack `i` of the block is `entries[starts[i]:starts[i + 1]]`.
    """

    entries: np.ndarray
    starts: np.ndarray

    def __len__(self) -> int:
        return len(self.starts) - 1

    def pack(self, position: int) -> list[Entry]:
        """Return the documents of one pack, as a list of their entries (source, row and visit).

        Args:
            position: Index of the pack in the block.
        """
        return [Entry(*row) for row in self.entries[self.starts[position] : self.starts[position + 1]].tolist()]


@dataclass(frozen=True)
class BlockState:
    """State of planning where a block (consecutive packs) begins.

    It holds all that is needed of earlier blocks to plan this block.

    Args:
        number: Number of the block, from 0.
        given: Number of rows that each source has handed out.
        waiting: `(n, 3)` int32: source, row and visit (see `Entry`) of the rows that were handed out and are in no
            pack yet, oldest first.
    """

    number: int
    given: tuple[int, ...]
    waiting: np.ndarray


class BlockPlanner:
    """Planner that makes a plan one block (consecutive packs) at a time, each from the state where the block begins.

    Args:
        lengths: For each source (data set), the number of tokens of every row, `(rows,)` integers.
        ratios: Share of every source in rows, in any unit.
        seed: Seed of the order of the rows.
        max_length: Largest number of tokens in a pack.
        pool_size: Number of rows that packing chooses from.
        num_packs: Number of packs of the plan; None if `num_documents` decides where the plan ends.
        num_documents: Number of rows of the plan, repeated rows included; None if `num_packs` decides.
        epoch: Number of rows after which all rows read so far are packed before the next one is read; None never
            empties the pool of waiting rows before the end, where rows that fit badly are left out.
        block_size: Number of packs per block. The last block may be shorter, or empty.
        orders: Order in which each source hands out its rows; by default a random one of all rows (`RowOrder`).
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
        epoch: int | None = None,
        orders: Sequence[VisitedRows] | None = None,
    ) -> None:
        self.lengths, self.ratios = list(lengths), list(ratios)
        self.max_length, self.pool_size, self.block_size = max_length, pool_size, block_size
        self.num_packs, self.num_documents, self.epoch = num_packs, num_documents, epoch
        exact = (RowOrder(seed, source, len(rows)) for source, rows in enumerate(self.lengths))
        self._orders: list[VisitedRows] = list(exact if orders is None else orders)

    def first_state(self) -> BlockState:
        """Return the state of planning where block 0 begins: no row has been handed out, and none is waiting."""
        return BlockState(0, (0,) * len(self.lengths), np.empty((0, 3), dtype=np.int32))

    def next_block(self, state: BlockState) -> tuple[Block, BlockState]:
        """Return the block that begins at `state`, and the state where the next block begins.

        A block is a number of consecutive packs. The result depends only on `state` and the arguments of the planner.
        A block of less than `block_size` packs is the last one of the plan.
        """
        # `pack` handles each document as its index in the concatenated `parts`. Waiting rows come first there and in
        # the pool, so that `pool.added` is also the number of rows of `parts` that packing has read.
        parts = [state.waiting]
        pool: Pool[int] = Pool()
        for index, length in enumerate(gather_lengths(self.lengths, state.waiting).tolist()):
            pool.add(length, index)
        # Where the plan ends does not change its packs: a plan of fewer packs is the beginning of one of more.
        size = self.block_size
        if self.num_packs is not None:
            size = min(size, max(self.num_packs - state.number * self.block_size, 0))
        packing = pack(self._documents(state.given, parts, pool), self.max_length, pool_size=self.pool_size, pool=pool)
        packs = list(islice(packing, size))
        entries = np.concatenate(parts)
        members = np.fromiter((index for members in packs for index in members), dtype=np.int64)
        block = Block(entries[members], np.cumsum([0, *map(len, packs)]))

        # The stream makes rows in large pieces, and packing may not have read the last piece to its end. A row counts
        # as handed out only if the pool has read it.
        read = np.bincount(entries[len(state.waiting) : pool.added, 0], minlength=len(self.lengths)).tolist()
        given = tuple(had + more for had, more in zip(state.given, read, strict=True))
        waiting = entries[np.array([index for _, index in pool.waiting.values()], dtype=np.int64)]
        return block, BlockState(state.number + 1, given, waiting)

    def _documents(
        self, given: Sequence[int], parts: list[np.ndarray], pool: Pool[int]
    ) -> Iterator[tuple[int, int] | None]:
        """Yield `(number of tokens, index)` of the rows that come next in the mixture of all sources.

        Where an epoch has ended, yield None until the pool is empty.

        Args:
            given: Number of rows that each source has handed out before.
            parts: List to which the entries of the rows are appended, one `(n, 3)` array (see `Entry`) at a time. The
                yielded index is that of the row in the concatenation of all arrays, those already in the list
                included.
            pool: Buffer of the rows that were yielded and are in no pack yet.
        """
        while self.num_documents is None or sum(given) < self.num_documents:
            # Rows are made in pieces, because array operations over many rows are faster than one row at a time.
            size = self.block_size
            if self.num_documents is not None:
                size = min(size, self.num_documents - sum(given))
            if self.epoch is not None:
                into_epoch = sum(given) % self.epoch
                size = min(size, self.epoch - into_epoch)
                while into_epoch == 0 and pool.ages:
                    yield None
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
    """Return the number of tokens, `(n,)` int64, of each row in `entries`.

    Args:
        lengths: For each source (data set), the number of tokens of every row, `(rows,)` integers.
        entries: `(n, 3)` integers: source, row and visit of each row (see `Entry`).
    """
    gathered = np.zeros(len(entries), dtype=np.int64)
    for source, rows in enumerate(lengths):
        ours = entries[:, 0] == source
        gathered[ours] = rows[entries[ours, 1]]
    return gathered


__all__ = ["Block", "BlockPlanner", "BlockState", "Entry", "gather_lengths"]
