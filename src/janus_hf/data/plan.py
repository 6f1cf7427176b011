"""The pack plan: which rows of which source are seen, in which order, and which share a row of the batch.

A pure function of seed, ratios, lengths and sizes, computed before training: ratios are exact, every rank knows all
packs, and resuming is skipping numbers. Its hash tells whether a resumed run would see the same batches.

How: sources take turns in proportion to their ratios, so that any stretch of the row sequence has the right mixture;
each source hands out its rows in a new random order at every visit. `pack` then fills packs from a small pool of the
rows that are next.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from .packing import POOL_SIZE, pack


class Entry(NamedTuple):
    """One document of a pack: the `row` of `source` (by number), for the `visit`-th time (from 0)."""

    source: int
    row: int
    visit: int


@dataclass(frozen=True)
class PackPlan:
    """Args:
    settings: What made it: seed, ratios (in the order of the sources' numbers), max_length, counts.
    entries: `(documents, 3)` int64, see `Entry`.
    starts: `(packs + 1,)` int64: pack `i` is `entries[starts[i]:starts[i + 1]]`.
    """

    settings: dict[str, Any]
    entries: np.ndarray
    starts: np.ndarray

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, index: int) -> list[Entry]:
        if not 0 <= index < len(self):
            raise IndexError(f"Expected a pack in [0, {len(self)}); got {index}.")
        return [Entry(*entry) for entry in self.entries[self.starts[index] : self.starts[index + 1]].tolist()]

    @property
    def names(self) -> list[str]:
        """Of the sources, by number."""
        return list(self.settings["ratios"])

    @property
    def hash(self) -> str:
        """16 hexadecimal digits that differ if anything does."""
        digest = hashlib.sha256(json.dumps(self.settings, sort_keys=False).encode())
        digest.update(np.ascontiguousarray(self.entries).tobytes())
        digest.update(np.ascontiguousarray(self.starts).tobytes())
        return digest.hexdigest()[:16]

    def counts(self) -> dict[str, int]:
        """Documents per source."""
        found = np.bincount(self.entries[:, 0], minlength=len(self.names))
        return dict(zip(self.names, found.tolist(), strict=True))

    def efficiency(self, lengths: Mapping[str, np.ndarray]) -> float:
        """The share of `packs * max_length` positions that hold documents."""
        used = sum(
            int(np.asarray(lengths[name])[self.entries[self.entries[:, 0] == number, 1]].sum())
            for number, name in enumerate(self.names)
        )
        return used / (len(self) * self.settings["max_length"])

    def save(self, path: str | os.PathLike[str]) -> None:
        """One .npz file, atomically."""
        temporary = f"{os.fspath(path)}.{os.getpid()}"
        with open(temporary, "wb") as file:
            np.savez_compressed(file, entries=self.entries, starts=self.starts, settings=json.dumps(self.settings))
        os.replace(temporary, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "PackPlan":
        """Reads what `save` wrote."""
        with np.load(path) as content:
            return cls(json.loads(str(content["settings"])), content["entries"], content["starts"])

    def check_lengths(self, lengths: Mapping[str, np.ndarray]) -> None:
        """Raises `ValueError` unless the plan was made for rows of these lengths."""
        for name, digest in self.settings["rows"].items():
            if _digest(lengths[name]) != digest:
                raise ValueError(
                    f"The plan was made for other rows of the source {name!r} than the {len(lengths[name])} there are "
                    "now. Make a new plan."
                )

    def check_hash(self, expected: str) -> None:
        """Raises `ValueError` unless this is the plan that `expected` is the hash of."""
        if self.hash != expected:
            raise ValueError(
                f"The pack plan has changed: its hash is {self.hash}, the run to be resumed had {expected}. Resume "
                "with the same sources, ratios, seed, max_length and number of packs, or start a new run."
            )


def make_plan(
    lengths: Mapping[str, Sequence[int] | np.ndarray],
    *,
    max_length: int,
    ratios: Mapping[str, float] | None = None,
    seed: int = 0,
    num_packs: int | None = None,
    epochs: float | None = None,
    pool_size: int = POOL_SIZE,
) -> PackPlan:
    """Args:
        lengths: Source -> `(rows,)` lengths of its documents (`PreparedDataset.lengths`).
        max_length: Of a pack, in ids.
        ratios: Source -> its share in rows, in any unit (5, 1, 4). None: each source as large as it is, so that an
            epoch sees every row once.
        seed: Of the rows' and the packs' order.
        num_packs: How many packs, e.g. steps x packs per step; or
        epochs: How many times as many rows as all sources have together (1 by default).
        pool_size: Rows to choose from while packing, and so about how far one may be moved.

    Raises:
        ValueError: A source is unknown, empty, has no or no positive ratio, or holds a document longer than a pack.
    """
    arrays = {name: np.asarray(rows, dtype=np.int64) for name, rows in lengths.items()}
    ratios = {name: len(rows) for name, rows in arrays.items()} if ratios is None else dict(ratios)
    _check(arrays, ratios, max_length, num_packs, epochs, pool_size)
    columns = [arrays[name] for name in ratios]  # the names in `ratios` number the sources
    rows = _sequence(list(ratios.values()), list(map(len, columns)), seed)
    if num_packs is None:
        rows = islice(rows, max(round(sum(map(len, columns)) * (1 if epochs is None else epochs)), 1))
    sized = ((int(columns[source][row]), Entry(source, row, visit)) for source, row, visit in rows)
    packs = list(pack(sized, max_length, pool_size=pool_size, num_packs=num_packs))
    settings = {
        "max_length": max_length,
        "ratios": ratios,
        "rows": {name: _digest(arrays[name]) for name in ratios},
        "seed": seed,
        "pool_size": pool_size,
    }
    entries = np.array([entry for members in packs for entry in members], dtype=np.int64).reshape(-1, 3)
    return PackPlan(settings, entries, np.cumsum([0, *map(len, packs)]))


def take_turns(ratios: Sequence[float]) -> Iterator[int]:
    """Numbers of sources for ever; after `n` turns source `s` had `n * share[s]` of them, give or take one."""
    shares = np.asarray(ratios, dtype=np.float64) / np.sum(ratios)
    given = np.zeros(len(shares))
    turn = 0
    while True:
        turn += 1
        chosen = int(np.argmax(shares * turn - given))  # whom most is owed; the first of equals
        given[chosen] += 1
        yield chosen


def _digest(lengths: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(lengths, dtype=np.int64).tobytes()).hexdigest()[:16]


def _sequence(ratios: Sequence[float], sizes: Sequence[int], seed: int) -> Iterator[tuple[int, int, int]]:
    streams = [_visits(number, size, seed) for number, size in enumerate(sizes)]
    for source in take_turns(ratios):
        yield next(streams[source])


def _visits(source: int, size: int, seed: int) -> Iterator[tuple[int, int, int]]:
    visit = 0
    while True:
        order = np.random.default_rng([seed, 0, source, visit]).permutation(size)
        for row in order.tolist():
            yield source, row, visit
        visit += 1


def _check(
    lengths: Mapping[str, np.ndarray],
    ratios: Mapping[str, float],
    max_length: int,
    num_packs: int | None,
    epochs: float | None,
    pool_size: int,
) -> None:
    if not lengths:
        raise ValueError("Expected at least one source; got none.")
    check_ratios(ratios, lengths)
    for name, rows in lengths.items():
        if len(rows) == 0:
            raise ValueError(f"Expected rows; the source {name!r} is empty. Leave it out.")
        if rows.max() > max_length:
            raise ValueError(
                f"Expected documents of at most {max_length} ids; the source {name!r} has {(rows > max_length).sum()} "
                f"longer ones, up to {rows.max()}. Raise max_length, or prepare it with max_length={max_length}."
            )
    if num_packs is not None and epochs is not None:
        raise ValueError("Expected num_packs or epochs; got both.")
    for key, value in {"num_packs": num_packs, "epochs": epochs, "pool_size": pool_size}.items():
        if value is not None and not value > 0:
            raise ValueError(f"Expected {key} to be positive; got {value}.")


def check_ratios(ratios: Mapping[str, float], sources: Mapping[str, Any]) -> None:
    """Raises `ValueError` unless every source, and nothing else, has a positive finite ratio."""
    if set(ratios) != set(sources):
        raise ValueError(
            f"Expected a ratio for each of the sources {sorted(sources)}; got ratios for {sorted(ratios)}."
        )
    if wrong := {name: ratio for name, ratio in ratios.items() if not 0 < ratio < float("inf")}:
        raise ValueError(f"Expected positive ratios; got {wrong}. Leave a source out to not use it.")
