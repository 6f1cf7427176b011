"""`ShardShuffle` and `ShardOrder`: an order of rows that is random and reads few shards (files of rows) at a time.

The exact order of `mixing.RowOrder` is a permutation of all rows. It takes 4 bytes of memory per row in every process,
and the rows of one pack lie in as many shards. Here the shards are shuffled, consecutive shards with about `buffer`
rows form a window, and the rows of each window are shuffled. So reading touches the shards of one window per source,
memory depends on the buffer and the number of shards, and an order for any position is found without those before it.

>>> starts = np.array([0, 3, 5, 8])  # three shards of 3, 2 and 3 rows
>>> ShardOrder(0, 0, starts, buffer=4).rows(0, 8)[:, 0].tolist()
[1, 6, 7, 2, 5, 0, 3, 4]
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .mixing import VisitedRows


BUFFER = 2**16  # rows of a window by default, eight shards of 8192 rows


@dataclass(frozen=True, eq=False)
class ShardShuffle:
    """Settings of the order by shards, for `make_plan`.

    Args:
        starts: Source name -> number of the first row of each shard, and at last the number of rows, `(shards + 1,)`
            integers (`PreparedDataset.starts`).
        buffer: Number of rows that are shuffled with each other. A window holds whole shards, so it may hold up to one
            shard more.
    """

    starts: Mapping[str, np.ndarray]
    buffer: int = BUFFER

    def __post_init__(self) -> None:
        if isinstance(self.buffer, bool) or not isinstance(self.buffer, int) or self.buffer < 1:
            raise ValueError(f"`buffer` must be an integer of 1 or more, got {self.buffer!r}: raise it.")

    def settings(self, lengths: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Return what determines the order, as JSON can hold it; it is part of the hash of a plan.

        Args:
            lengths: Source name -> the number of tokens of every row, in the order of the plan's sources.

        Raises:
            ValueError: If the shards of a source hold another number of rows.
        """
        for name, rows in lengths.items():
            if name not in self.starts or self.starts[name][-1] != len(rows):
                found = f"{self.starts[name][-1]} rows" if name in self.starts else "none"
                raise ValueError(
                    f"`starts` must be those of the {len(rows)} rows of the source {name!r}, got {found}: give "
                    "PreparedDataset.starts of the same data."
                )
        digests = {name: hashlib.sha256(_as_int64(self.starts[name]).tobytes()).hexdigest()[:16] for name in lengths}
        return {"shuffle": "shards", "buffer": self.buffer, "shards": digests}

    def orders(self, seed: int, names: Sequence[str]) -> "list[ShardOrder]":
        """Return the order of every source, in the order of `names`."""
        return [ShardOrder(seed, number, self.starts[name], self.buffer) for number, name in enumerate(names)]


class ShardOrder(VisitedRows):
    """Random order in which one source hands out its rows for training, window after window of shuffled shards.

    Like `RowOrder`, it hands out all rows once, and then all of them again in another random order; each such pass is
    a visit. The order depends on the arguments alone. The order of the latest window is kept in memory.

    Args:
        seed: Seed of the plan.
        source: Number of the source, so that two sources of one size have different orders.
        starts: Number of the first row of each shard, and at last the number of rows, `(shards + 1,)` integers.
        buffer: Number of rows of a window, to within one shard.
    """

    def __init__(self, seed: int, source: int, starts: np.ndarray, buffer: int) -> None:
        self.seed, self.source, self.starts, self.buffer = seed, source, _as_int64(starts), buffer
        super().__init__(int(self.starts[-1]))
        self._visit = self._window = -1
        self._shards = self._windows = self._ends = np.empty(0, dtype=np.int64)
        self._order = np.empty(0, dtype=np.int32)

    def next_rows(self, visit: int, offset: int) -> np.ndarray:
        """Return the rows of a window that follow the first `offset` ones of a visit, `(rows,)` int32."""
        self._enter_visit(visit)
        window = int(np.searchsorted(self._ends, offset, side="right"))
        first = int(self._ends[window - 1]) if window else 0
        return self._order_of(window)[offset - first :]

    def _enter_visit(self, visit: int) -> None:
        """Shuffle the shards for pass `visit` (from 0) over the source, and divide them into windows."""
        if visit == self._visit:
            return
        sizes = np.diff(self.starts)
        # The constant 1 separates these orders from the exact ones, whose seeds have 0 there.
        shards = np.random.default_rng([self.seed, 1, self.source, visit]).permutation(np.flatnonzero(sizes))
        ends = np.cumsum(sizes[shards])
        # A shard belongs to the window in which its first row falls.
        windows = (ends - sizes[shards]) // self.buffer
        last = np.flatnonzero(np.diff(windows, append=-1))  # the last shard of every window
        self._shards, self._ends = shards, ends[last]
        self._windows = np.concatenate([[0], last + 1])
        self._visit, self._window = visit, -1

    def _order_of(self, window: int) -> np.ndarray:
        """Return the numbers of the rows in a window of the current visit, `(rows,)` int32, in random order."""
        if window != self._window:
            shards = self._shards[self._windows[window] : self._windows[window + 1]].tolist()
            ranges = [np.arange(self.starts[shard], self.starts[shard + 1], dtype=np.int32) for shard in shards]
            order = np.concatenate(ranges)
            np.random.default_rng([self.seed, 1, self.source, self._visit, window]).shuffle(order)
            self._window, self._order = window, order
        return self._order


def _as_int64(numbers: Any) -> np.ndarray:
    """Return numbers as an int64 array, so that hashes do not depend on the type that they were given in."""
    return np.ascontiguousarray(numbers, dtype=np.int64)


__all__ = ["BUFFER", "ShardOrder", "ShardShuffle"]
