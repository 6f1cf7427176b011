"""`take_turns`, `VisitedRows` and `RowOrder`, which decide the order of rows before packing.

Sources (data sets) take turns in proportion to their ratios, and each hands out its rows in random order.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from typing import Any

import numpy as np


def take_turns(ratios: Sequence[float], given: Sequence[int] | None = None) -> Iterator[int]:
    """Yield the number of the source (data set) that has the next turn, without end, in proportion to `ratios`.

    After `n` turns, source `s` has had `n * ratios[s] / sum(ratios)` turns, to within one.

    Args:
        ratios: One positive number per source, in any unit.
        given: Number of turns that each source has had already; by default none.
    """
    # Python's floats give the same numbers as numpy's and are several times as fast for a handful of sources.
    shares = (np.asarray(ratios, dtype=np.float64) / np.sum(ratios)).tolist()
    had = [0] * len(shares) if given is None else list(given)
    for turn in count(sum(had) + 1):
        owed = [share * turn - turns for share, turns in zip(shares, had, strict=True)]
        # `index` returns the first of equal values, so that ties are decided the same way in every process.
        chosen = owed.index(max(owed))
        had[chosen] += 1
        yield chosen


class VisitedRows(ABC):
    """Order in which one source (data set) hands out its rows: all of them once, then all again, and so on.

    Each such pass is a visit. Subclasses say in which order a visit hands them out.

    Args:
        num_rows: Number of rows of the source.
    """

    def __init__(self, num_rows: int) -> None:
        self.num_rows = num_rows

    def rows(self, start: int, amount: int) -> np.ndarray:
        """Return the `amount` rows after the first `start` ones: row number and visit (from 0), `(amount, 2)` int32.

        Args:
            start: Number of rows handed out before, over all visits (passes over the source).
            amount: Number of rows to return.
        """
        pieces = [np.empty((0, 2), dtype=np.int32)]
        while amount:
            visit, offset = divmod(start, self.num_rows)
            rows = self.next_rows(visit, offset)[:amount]
            pieces.append(np.stack([rows, np.full_like(rows, visit)], axis=1))
            start, amount = start + len(rows), amount - len(rows)
        return np.concatenate(pieces)

    @abstractmethod
    def next_rows(self, visit: int, offset: int) -> np.ndarray:
        """Return numbers of rows, `(rows,)` int32, at least one, that follow the first `offset` ones of a visit."""


class RowOrder(VisitedRows):
    """Random order in which one source (data set) hands out its rows for training.

    Every visit has another order of all rows. The order depends on the arguments alone. The order of the latest visit
    is kept in memory, because shuffling a large source takes longer than planning a block (16,384 packs).

    Args:
        seed: Seed of the plan.
        source: Number of the source, so that two sources of one size have different orders.
        num_rows: Number of rows of the source.
    """

    def __init__(self, seed: int, source: int, num_rows: int) -> None:
        super().__init__(num_rows)
        self.seed, self.source = seed, source
        self._visit = -1
        self._order = np.empty(0, dtype=np.int32)

    def next_rows(self, visit: int, offset: int) -> np.ndarray:
        """Return all rows that follow the first `offset` ones of a visit, `(rows,)` int32."""
        return self._order_of(visit)[offset:]

    def _order_of(self, visit: int) -> np.ndarray:
        """Return all row numbers, `(num_rows,)` int32, in the order of pass `visit` (from 0) over the source."""
        if visit != self._visit:
            order = np.arange(self.num_rows, dtype=np.int32)
            # The constant 0 is part of the seed of plans that models were trained with; those plans must not change.
            np.random.default_rng([self.seed, 0, self.source, visit]).shuffle(order)
            self._visit, self._order = visit, order
        return self._order


def check_ratios(ratios: Mapping[str, float], sources: Mapping[str, Any]) -> None:
    """Raise `ValueError` unless `ratios` has a positive finite number for every name in `sources` and no others."""
    if set(ratios) != set(sources):
        raise ValueError(
            f"`ratios` must hold one ratio for each of the sources {sorted(sources)}, got ratios for "
            f"{sorted(ratios)}: add what is missing and leave out what is no source."
        )
    if wrong := {name: ratio for name, ratio in ratios.items() if not 0 < ratio < float("inf")}:
        raise ValueError(f"`ratios` must be positive and finite, got {wrong}: leave out a source to not use it.")


__all__ = ["RowOrder", "VisitedRows", "check_ratios", "take_turns"]
