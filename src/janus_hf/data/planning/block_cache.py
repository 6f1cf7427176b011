"""`BlockCache`, which plans the blocks of a plan when they are first read and keeps the latest of them in memory.

A block is a number of consecutive packs. A pack is a list of documents (tokenized rows) that share one row of the
batch.
"""

import os
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from transformers.utils import logging

from ...files import atomic_path
from .blocks import Block, BlockPlanner, BlockState


class BlockCache:
    """Blocks (consecutive packs) of a plan by number, in any order: `cache[number]` is a `Block`.

    A pack is a list of documents (tokenized rows) that share one row of the batch. A block is planned when it is first
    read, after the blocks before it. The states of planning where blocks begin (`BlockState`) are all kept, so that a
    block that was dropped from memory is planned again without the blocks before it. If the plan has more than
    `capacity` blocks, the cache also writes the states to `folder`, and reads those that other processes wrote.

    Args:
        planner: `BlockPlanner` that plans the blocks.
        capacity: Largest number of blocks kept in memory.
        key: First part of the names of the state files, different for each of the plans that share `folder`.
        folder: Folder of the state files; None keeps the states in memory only.
    """

    def __init__(
        self, planner: BlockPlanner, *, capacity: int, key: str, folder: str | os.PathLike[str] | None = None
    ) -> None:
        self.planner, self.capacity, self.key = planner, capacity, key
        self.folder = None if folder is None else Path(folder)
        self._num_packs = planner.num_packs
        self._states = {0: planner.first_state()}
        self._blocks: dict[int, Block] = {}  # in the order in which they were planned

    @property
    def num_packs(self) -> int:
        """Number of packs of the plan. If it is not known yet, all blocks are planned to find it."""
        if self._num_packs is None:
            self.plan_all()
        assert self._num_packs is not None
        return self._num_packs

    @property
    def num_blocks(self) -> int:
        """Number of blocks of the plan that hold at least one pack."""
        return -(-self.num_packs // self.planner.block_size)

    def __getitem__(self, number: int) -> Block:
        """Return the block (consecutive packs) with this number.

        If it is not in memory, plan it, and before it all blocks from the last known state of planning on.
        """
        if (block := self._blocks.get(number)) is not None:
            return block
        nearest = self._nearest_state(number)
        with _progress((number - nearest + 1) * self.planner.block_size) as progress:
            for between in range(nearest, number):
                progress.update(len(self._make(between)))
            return self._make(number)

    def __iter__(self) -> Iterator[Block]:
        return (self[number] for number in range(self.num_blocks))

    def plan_all(self) -> None:
        """Plan all blocks (consecutive packs) of the plan in order, which also finds the number of packs."""
        total = 0
        with _progress(self._num_packs) as progress:
            for number in count():
                block = self._make(number)
                total += len(block)
                progress.update(len(block))
                if len(block) < self.planner.block_size:
                    break
        self._num_packs = total

    def _make(self, number: int) -> Block:
        """Plan and return the block (consecutive packs) with this number, and keep it in memory.

        The state of planning where the block begins must be in memory. The state where the next block begins is kept
        too, and for a plan of more than `capacity` blocks also written to `folder`.
        """
        block, following = self.planner.next_block(self._states[number])
        self._states[number + 1] = following
        # While `plan_all` counts, the packs before this block are all that is known of the plan's length.
        known_packs = number * self.planner.block_size if self._num_packs is None else self._num_packs
        if self.folder is not None and known_packs > self.capacity * self.planner.block_size:
            self._write_state(following)
        if len(block):
            self._blocks[number] = block
        # Training reads blocks in order, so the block that was planned first is the least likely to be read again.
        while len(self._blocks) > self.capacity:
            del self._blocks[next(iter(self._blocks))]
        return block

    def _nearest_state(self, number: int) -> int:
        """Return the largest block number, at most `number`, where planning can begin because its state is known.

        A state is known if it is in memory or in a file in `folder`. From a file, it is loaded into memory.
        """
        nearest = max(known for known in self._states if known <= number)
        if self.folder is None or nearest == number:
            return nearest
        written = [int(path.stem.rsplit("-", 1)[1]) for path in self.folder.glob(f"{self.key}-*.npz")]
        best = max((known for known in written if nearest < known <= number), default=nearest)
        if best > nearest:
            with np.load(self._state_path(self.folder, best)) as content:
                self._states[best] = BlockState(best, tuple(content["given"].tolist()), content["waiting"])
        return best

    def _write_state(self, state: BlockState) -> None:
        """Write the state of planning where a block begins to a file in `folder`, unless that file exists."""
        assert self.folder is not None
        # Every process that plans this block writes the same content, so an existing file need not be replaced.
        if not (path := self._state_path(self.folder, state.number)).exists():
            save_arrays(path, given=np.array(state.given), waiting=state.waiting)

    def _state_path(self, folder: Path, number: int) -> Path:
        """Return the path of the file for the state of planning where the block with this number begins."""
        return folder / f"{self.key}-{number:07d}.npz"


def save_arrays(path: str | os.PathLike[str], **arrays: Any) -> None:
    """Write named arrays to one .npz file, which is never incomplete: a temporary file is written and renamed."""
    # numpy appends .npz to a name that lacks it, as the temporary one does, but not to an open file.
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **arrays)


def _progress(num_packs: int | None) -> Any:
    """Return a progress bar over `num_packs` packs (None if unknown) that appears after two seconds."""
    return logging.tqdm(desc="planning", total=num_packs, unit="pack", leave=False, delay=2)


__all__ = ["BlockCache", "save_arrays"]
