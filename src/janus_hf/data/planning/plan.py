"""The pack plan: which rows of which source are seen, in which order, and which share a row of the batch.

A pure function of seed, ratios, lengths and sizes: ratios are exact, every rank knows any pack, and resuming is
skipping numbers. Its hash tells whether a resumed run would see the same batches.

How: sources take turns in proportion to their ratios, so that any stretch of the row sequence has the right mixture;
each source hands out its rows in a new random order at every visit. `pack` then fills packs from a small pool of the
rows that are next.

Packs are planned in blocks. All that a block needs of those before it is how many rows every source has handed out and
which of them still wait in the pool; so a plan of any length takes little memory, and begins at once.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import numpy as np
from transformers.utils import logging

from .packing import POOL_SIZE, Pool, pack


BLOCK = 2**14  # packs planned at a time: about a second's work
AHEAD = 2**18  # plans of up to so many packs are made at once and kept; of longer ones, so many packs are kept


class Entry(NamedTuple):
    """One document of a pack: the `row` of `source` (by number), for the `visit`-th time (from 0)."""

    source: int
    row: int
    visit: int


@dataclass(frozen=True)
class _State:
    """Where a block begins: `given` rows per source, and the `(n, 3)` entries that wait, oldest first."""

    given: list[int]
    waiting: np.ndarray


@dataclass(frozen=True)
class _Block:
    """`(documents, 3)` int32 entries, and `(packs + 1,)` int64 starts within them."""

    entries: np.ndarray
    starts: np.ndarray

    def __len__(self) -> int:
        return len(self.starts) - 1


class PackPlan:
    """What `make_plan` returns; `plan[i]` lists the entries of pack `i`.

    Args:
        settings: What makes it: seed, ratios (in the order of the sources' numbers), max_length, ...
        lengths: Source -> `(rows,)` integers.
        num_packs, num_documents: Where it ends; one of them is None.
        folder: See `make_plan`.
    """

    def __init__(
        self,
        settings: dict[str, Any],
        lengths: Mapping[str, np.ndarray],
        *,
        num_packs: int | None = None,
        num_documents: int | None = None,
        folder: str | os.PathLike[str] | None = None,
    ) -> None:
        self.settings, self.folder = settings, None if folder is None else Path(folder)
        self._lengths = {name: lengths[name] for name in self.names}
        self._extent = {"num_packs": num_packs, "num_documents": num_documents}
        self._states = {0: _State([0] * len(self.names), np.empty((0, 3), dtype=np.int32))}
        self._blocks: dict[int, _Block] = {}  # the latest last
        self._orders: dict[int, tuple[int, np.ndarray]] = {}  # source -> visit, rows in its order
        if num_packs is not None and num_packs > AHEAD:
            self._length = num_packs
            return
        self._length = 0
        with _progress(num_packs) as progress:
            for number in count():
                block = self._make_block(number)
                self._length += len(block)
                progress.update(len(block))
                if len(block) < BLOCK:
                    break

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> list[Entry]:
        if not 0 <= index < len(self):
            raise IndexError(f"Expected a pack in [0, {len(self)}); got {index}.")
        number, place = divmod(int(index), BLOCK)
        block = self._block(number)
        return [Entry(*entry) for entry in block.entries[block.starts[place] : block.starts[place + 1]].tolist()]

    @property
    def names(self) -> list[str]:
        """Of the sources, by number."""
        return list(self.settings["ratios"])

    @property
    def entries(self) -> np.ndarray:
        """`(documents, 3)` int32, see `Entry`, of all packs: for plans that fit in memory."""
        return np.concatenate([block.entries for block in self._all_blocks()])

    @property
    def starts(self) -> np.ndarray:
        """`(packs + 1,)` int64: pack `i` is `entries[starts[i]:starts[i + 1]]`. For plans that fit in memory."""
        return np.cumsum([0, *np.concatenate([np.diff(block.starts) for block in self._all_blocks()]).tolist()])

    @property
    def hash(self) -> str:
        """16 hexadecimal digits that differ if anything does.

        Of all entries; of more than `AHEAD` packs, of what determines them.
        """
        if len(self) > AHEAD:
            return self._recipe_hash
        digest = hashlib.sha256(json.dumps(self.settings, sort_keys=False).encode())
        digest.update(np.ascontiguousarray(self.entries, dtype=np.int64).tobytes())
        digest.update(self.starts.tobytes())
        return digest.hexdigest()[:16]

    @property
    def _recipe_hash(self) -> str:
        return hashlib.sha256(json.dumps([self.settings, self._extent]).encode()).hexdigest()[:16]

    def counts(self) -> dict[str, int]:
        """Documents per source in the packs that are in memory: all of up to `AHEAD`, else the latest, at least one
        block of them.
        """
        found = sum(np.bincount(block.entries[:, 0], minlength=len(self.names)) for block in self._known_blocks())
        return dict(zip(self.names, np.asarray(found).tolist(), strict=True))

    def efficiency(self, lengths: Mapping[str, np.ndarray]) -> float:
        """The share of `packs * max_length` positions that hold documents, in the same packs as `counts`."""
        columns = [np.asarray(lengths[name]) for name in self.names]
        blocks = self._known_blocks()
        used = sum(int(_gather(columns, block.entries).sum()) for block in blocks)
        return used / (sum(map(len, blocks)) * self.settings["max_length"])

    def save(self, path: str | os.PathLike[str]) -> None:
        """One .npz file, atomically: what makes the plan, and its hash."""
        content = {f"length.{name}": np.asarray(rows, dtype=np.int32) for name, rows in self._lengths.items()}
        facts = json.dumps({"settings": self.settings, "hash": self.hash, **self._extent})
        _save_arrays(Path(path), facts=np.array(facts), **content)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "PackPlan":
        """Makes the plan that `save` wrote down again.

        Raises:
            ValueError: It was made by a version that plans otherwise.
        """
        with np.load(path) as content:
            facts = json.loads(str(content["facts"]))
            settings, expected = facts.pop("settings"), facts.pop("hash")
            plan = cls(settings, {name: content[f"length.{name}"] for name in settings["ratios"]}, **facts)
        plan.check_hash(expected)
        return plan

    def check_lengths(self, lengths: Mapping[str, np.ndarray]) -> None:
        """Raises `ValueError` unless the plan was made for rows of these lengths."""
        for name, digest in self.settings["rows"].items():
            if digest_lengths(lengths[name]) != digest:
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

    def _all_blocks(self) -> Iterator[_Block]:
        return (self._block(number) for number in range(-(-len(self) // BLOCK)))

    def _known_blocks(self) -> list[_Block]:
        if not self._blocks:
            self._block(0)
        return list(self._blocks.values())

    def _block(self, number: int) -> _Block:
        if (block := self._blocks.get(number)) is not None:
            return block
        nearest = self._nearest_state(number)
        if nearest == number:
            return self._make_block(number)
        with _progress((number - nearest + 1) * BLOCK) as progress:
            for between in range(nearest, number):
                progress.update(len(self._make_block(between)))
            return self._make_block(number)

    def _nearest_state(self, number: int) -> int:
        """The last block up to this one of which it is known where it begins, by us or by whoever wrote `folder`."""
        nearest = max(known for known in self._states if known <= number)
        if self.folder is None or nearest == number:
            return nearest
        written = [int(path.stem.rsplit("-", 1)[1]) for path in self.folder.glob(f"{self._recipe_hash}-*.npz")]
        best = max((known for known in written if nearest < known <= number), default=nearest)
        if best > nearest:
            with np.load(self._state_path(best)) as content:
                self._states[best] = _State(content["given"].tolist(), content["waiting"])
        return best

    def _state_path(self, number: int) -> Path:
        assert self.folder is not None
        return self.folder / f"{self._recipe_hash}-{number:07d}.npz"

    def _make_block(self, number: int) -> _Block:
        """Packs `number * BLOCK` and on, from where the block begins; notes where the next one does."""
        state = self._states[number]
        pool: Pool[int] = Pool()
        columns, parts = list(self._lengths.values()), [state.waiting]
        for place, length in enumerate(_gather(columns, state.waiting).tolist()):
            pool.add(length, place)
        num_packs, num_documents = self._extent.values()
        limits: dict[str, Any] = {"pool_size": self.settings["pool_size"]}
        if num_packs is not None:
            limits["num_packs"] = num_packs - number * BLOCK
        documents = self._documents(state.given, num_documents, columns, parts)
        packs = list(islice(pack(documents, self.settings["max_length"], pool=pool, **limits), BLOCK))
        known = np.concatenate(parts)
        members = np.fromiter((place for pack in packs for place in pack), dtype=np.int64)
        block = _Block(known[members], np.cumsum([0, *map(len, packs)]))

        taken = known[len(state.waiting) : pool.added, 0]  # by the pool; the last part may go on
        given = [
            had + got
            for had, got in zip(state.given, np.bincount(taken, minlength=len(columns)).tolist(), strict=True)
        ]
        waiting = known[np.array([place for _, place in pool.waiting.values()], dtype=np.int64)]
        self._note(number + 1, _State(given, waiting))
        self._blocks[number] = block
        while len(self._blocks) > AHEAD // BLOCK:
            del self._blocks[next(iter(self._blocks))]
        return block

    def _note(self, number: int, state: _State) -> None:
        self._states[number] = state
        if self.folder is not None and len(self) > AHEAD and not (path := self._state_path(number)).exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            _save_arrays(path, given=np.array(state.given), waiting=state.waiting)

    def _documents(
        self, given: list[int], limit: int | None, columns: list[np.ndarray], parts: list[np.ndarray]
    ) -> Iterator[tuple[int, int]]:
        """`(length, place)` of the rows that come after the `given` ones; adds their entries to `parts`, where the
        places count.
        """
        while limit is None or sum(given) < limit:
            size = BLOCK if limit is None else min(BLOCK, limit - sum(given))
            first = sum(map(len, parts))
            entries = np.empty((size, 3), dtype=np.int32)
            entries[:, 0] = list(islice(take_turns(list(self.settings["ratios"].values()), given), size))
            numbers = np.bincount(entries[:, 0], minlength=len(given)).tolist()
            for source, amount in enumerate(numbers):
                entries[entries[:, 0] == source, 1:] = self._rows(source, given[source], amount)
            parts.append(entries)
            given = [had + got for had, got in zip(given, numbers, strict=True)]
            yield from zip(_gather(columns, entries).tolist(), count(first))

    def _rows(self, source: int, start: int, amount: int) -> np.ndarray:
        """`(amount, 2)` rows and visits that a source hands out after its first `start` ones."""
        size = len(self._lengths[self.names[source]])
        pieces = [np.empty((0, 2), dtype=np.int32)]
        while amount:
            visit, offset = divmod(start, size)
            if self._orders.get(source, (-1,))[0] != visit:
                order = np.arange(size, dtype=np.int32)
                np.random.default_rng([self.settings["seed"], 0, source, visit]).shuffle(order)
                self._orders[source] = visit, order
            rows = self._orders[source][1][offset : offset + amount]
            pieces.append(np.stack([rows, np.full_like(rows, visit)], axis=1))
            start, amount = start + len(rows), amount - len(rows)
        return np.concatenate(pieces)


def make_plan(
    lengths: Mapping[str, Sequence[int] | np.ndarray],
    *,
    max_length: int,
    ratios: Mapping[str, float] | None = None,
    seed: int = 0,
    num_packs: int | None = None,
    epochs: float | None = None,
    pool_size: int = POOL_SIZE,
    folder: str | os.PathLike[str] | None = None,
) -> PackPlan:
    """Plans packs: up to a quarter of a million (`AHEAD`) at once; of a longer plan, blocks as they are asked for.

    Args:
        lengths: Source -> `(rows,)` lengths of its documents (`PreparedDataset.lengths`).
        max_length: Of a pack, in ids.
        ratios: Source -> its share in rows, in any unit (5, 1, 4). None: each source as large as it is, so that an
            epoch sees every row once.
        seed: Of the rows' and the packs' order.
        num_packs: How many packs, e.g. steps x packs per step; or
        epochs: How many times as many rows as all sources have together (1 by default).
        pool_size: Rows to choose from while packing, and so about how far one may be moved.
        folder: Of a long plan: where to note how far planning has come, a few kilobytes per block, so that other
            processes and resumed runs go on from there instead of planning from the start. Any number may share it.

    Raises:
        ValueError: A source is unknown, empty, has no or no positive ratio, or holds a document longer than a pack.
    """
    arrays = {name: np.asarray(rows) for name, rows in lengths.items()}
    ratios = {name: len(rows) for name, rows in arrays.items()} if ratios is None else dict(ratios)
    _check(arrays, ratios, max_length, num_packs, epochs, pool_size)
    settings = {
        "max_length": max_length,
        "ratios": ratios,
        "rows": {name: digest_lengths(arrays[name]) for name in ratios},
        "seed": seed,
        "pool_size": pool_size,
    }
    num_documents = None
    if num_packs is None:
        num_documents = max(round(sum(map(len, arrays.values())) * (1 if epochs is None else epochs)), 1)
    return PackPlan(settings, arrays, num_packs=num_packs, num_documents=num_documents, folder=folder)


def take_turns(ratios: Sequence[float], given: Sequence[int] | None = None) -> Iterator[int]:
    """Numbers of sources for ever; after `n` turns source `s` had `n * share[s]` of them, give or take one.

    Args:
        given: How many turns each source has had already.
    """
    # Python's floats: the same numbers as numpy's, and for a handful of sources several times as fast.
    shares = (np.asarray(ratios, dtype=np.float64) / np.sum(ratios)).tolist()
    had = [0] * len(shares) if given is None else list(given)
    for turn in count(sum(had) + 1):
        owed = [share * turn - turns for share, turns in zip(shares, had, strict=True)]
        chosen = owed.index(max(owed))  # whom most is owed; the first of equals
        had[chosen] += 1
        yield chosen


def digest_lengths(lengths: np.ndarray) -> str:
    """16 hexadecimal digits that tell one source's rows from another's."""
    digest = hashlib.sha256()
    for start in range(0, len(lengths), 2**20):  # a copy of all would be large
        digest.update(np.ascontiguousarray(lengths[start : start + 2**20], dtype=np.int64).tobytes())
    return digest.hexdigest()[:16]


def _gather(columns: Sequence[np.ndarray], entries: np.ndarray) -> np.ndarray:
    """`(n, 3)` entries -> `(n,)` lengths, from those of every source."""
    lengths = np.zeros(len(entries), dtype=np.int64)
    for number, column in enumerate(columns):
        ours = entries[:, 0] == number
        lengths[ours] = column[entries[ours, 1]]
    return lengths


def _save_arrays(path: Path, **arrays: Any) -> None:
    """Atomically, whoever else writes the same."""
    temporary = path.with_name(f".{path.name}.{uuid4().hex}")
    with open(temporary, "wb") as file:
        np.savez_compressed(file, **arrays)
    os.replace(temporary, path)


def _progress(num_packs: int | None) -> Any:
    return logging.tqdm(desc="planning", total=num_packs, unit="pack", leave=False, delay=2)


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
