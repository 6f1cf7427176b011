"""`make_plan` and `PackPlan`: a plan of which rows are trained on, in which order, and which share a row of the batch.

A pack is a list of documents (tokenized rows) that together fill one row of the batch. The plan numbers all packs of a
training run. It is a pure function of seed, ratios, row lengths and sizes, so ratios are exact, every rank can compute
any pack without communication, and a run resumes by skipping packs. The plan's hash tells whether a resumed run would
train on the same batches.

Planning takes three steps. The example has eight rows, five answers and three texts, with these numbers of tokens:

>>> from itertools import islice
>>> from janus_hf.data.planning.mixing import RowOrder, take_turns
>>> lengths = {"answers": [60, 70, 50, 80, 40], "texts": [30, 20, 45]}

1. Sources (data sets) take turns in proportion to their ratios, so that every stretch of rows has the right mixture.
   Here answers are source 0 and texts are source 1:

   >>> list(islice(take_turns([5, 3]), 8))
   [0, 1, 0, 0, 1, 0, 1, 0]

2. At its turn a source hands out its next row. One visit to a source hands out every row once; each visit has a new
   random order:

   >>> RowOrder(seed=3, source=0, num_rows=5).rows(0, 5)[:, 0].tolist()
   [4, 2, 1, 3, 0]
   >>> RowOrder(seed=3, source=1, num_rows=3).rows(0, 3)[:, 0].tolist()
   [2, 0, 1]

3. Packs are filled from a small pool of the rows that come next (`packing.py`). Each pack begins with the oldest row
   of the pool. Pack 0 begins with answer 4 (40 tokens). Of the rows after it, answer 0 (60 tokens) fills the pack
   exactly:

   >>> plan = make_plan(lengths, max_length=100, ratios={"answers": 5, "texts": 3}, seed=3)
   >>> for number in range(len(plan)):
   ...     rows = [(plan.names[entry.source], entry.row) for entry in plan[number]]
   ...     print(number, rows, sum(lengths[name][row] for name, row in rows))
   0 [('answers', 4), ('answers', 0)] 100
   1 [('texts', 2), ('answers', 2)] 95
   2 [('answers', 1), ('texts', 0)] 100
   3 [('answers', 3), ('texts', 1)] 100
   >>> plan.counts(), plan.efficiency(lengths)
   ({'answers': 5, 'texts': 3}, 0.9875)

Packs are planned in blocks of consecutive packs (`blocks.py`). A plan of any length therefore takes little memory, and
its first packs can be used within seconds.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ...arguments import checked, integer, of_kind
from .block_cache import BlockCache, save_arrays
from .blocks import Block, BlockPlanner, Entry, gather_lengths
from .mixing import check_ratios
from .packing import POOL_SIZE
from .shard_order import ShardShuffle


BLOCK = 2**14  # packs planned at a time, about a second's work
# Plans of up to this number of packs are made at the start. Of a longer plan, this number of packs is kept in memory.
AHEAD = 2**18


class PackPlan:
    """Plan of all packs of a training run: `plan[i]` is the list of entries of pack `i`, one `Entry` per document.

    A pack is a list of documents (tokenized rows) that share one row of the batch. Call `make_plan` to make a plan; it
    checks the arguments.

    Args:
        settings: Everything that determines the plan, except where it ends: seed, ratios (in the order of the sources'
            numbers), max_length, pool_size, and hashes of the lengths of each source's rows.
        lengths: Source name -> the number of tokens of every row, `(rows,)` integers.
        num_packs: Number of packs; None if `num_documents` decides where the plan ends.
        num_documents: Number of documents; None if `num_packs` decides.
        folder: Folder for the progress of planning; see `make_plan`.
        shuffle: Order by shards; None is the exact one.
    """

    def __init__(
        self,
        settings: dict[str, Any],
        lengths: Mapping[str, np.ndarray],
        *,
        num_packs: int | None = None,
        num_documents: int | None = None,
        folder: str | os.PathLike[str] | None = None,
        shuffle: ShardShuffle | None = None,
    ) -> None:
        self.shuffle = shuffle
        self.settings, self.folder = settings, None if folder is None else Path(folder)
        self._recipe_hash = _hash_recipe(settings, num_packs, num_documents)
        self._planner = BlockPlanner(
            [lengths[name] for name in self.names],
            list(settings["ratios"].values()),
            seed=settings["seed"],
            max_length=settings["max_length"],
            pool_size=settings["pool_size"],
            num_packs=num_packs,
            num_documents=num_documents,
            block_size=BLOCK,
            orders=None if shuffle is None else shuffle.orders(settings["seed"], self.names),
        )
        self._blocks = BlockCache(self._planner, capacity=AHEAD // BLOCK, key=self._recipe_hash, folder=self.folder)

    def __len__(self) -> int:
        return self._blocks.num_packs

    def __getitem__(self, index: int) -> list[Entry]:
        if not 0 <= index < len(self):
            raise IndexError(f"`index` must be in [0, {len(self)}), the packs of the plan, got {index}.")
        number, position = divmod(int(index), self._planner.block_size)
        return self._blocks[number].pack(position)

    @property
    def names(self) -> list[str]:
        """Names of the sources (data sets). The field `source` of an `Entry` is an index in this list."""
        return list(self.settings["ratios"])

    @property
    def entries(self) -> np.ndarray:
        """Entries of all packs, `(documents, 3)` int32: source, row and visit of each document (see `Entry`).

        The whole plan is made for this and must fit in memory.
        """
        return np.concatenate([block.entries for block in self._blocks])

    @property
    def starts(self) -> np.ndarray:
        """Index of the first entry of each pack, `(packs + 1,)` int64: pack `i` is `entries[starts[i]:starts[i + 1]]`.

        The whole plan is made for this and must fit in memory.
        """
        return np.cumsum([0, *np.concatenate([np.diff(block.starts) for block in self._blocks]).tolist()])

    @property
    def hash(self) -> str:
        """Short SHA-256 of the plan, 16 hexadecimal digits.

        For a plan of up to `AHEAD` (262,144) packs it is computed from the settings and every entry; for a longer one,
        only from the settings that determine the entries.
        """
        if len(self) > AHEAD:
            return self._recipe_hash
        # Keys are not sorted, because the order of the ratios numbers the sources. Entries are stored as int32 but
        # hashed as int64, as they always were, so that hashes in older checkpoints stay valid.
        digest = hashlib.sha256(json.dumps(self.settings, sort_keys=False).encode())
        digest.update(np.ascontiguousarray(self.entries, dtype=np.int64).tobytes())
        digest.update(self.starts.tobytes())
        return digest.hexdigest()[:16]

    def counts(self) -> dict[str, int]:
        """Return a dict: source name -> the number of documents of this source in the plan.

        All packs of a plan of up to `AHEAD` (262,144) packs are counted. Of a longer plan only the first `BLOCK`
        (16,384) packs are counted, because planning all of them takes long.
        """
        found = sum(np.bincount(block.entries[:, 0], minlength=len(self.names)) for block in self._sample())
        return dict(zip(self.names, np.asarray(found).tolist(), strict=True))

    def efficiency(self, lengths: Mapping[str, np.ndarray]) -> float:
        """Return the share of the packs' positions that hold documents, not padding, in [0, 1].

        It covers the same packs as `counts`: all of up to `AHEAD` (262,144), or the first `BLOCK` (16,384) of a longer
        plan.

        Args:
            lengths: Source name -> the number of tokens of every row, `(rows,)` integers.
        """
        columns = [np.asarray(lengths[name]) for name in self.names]
        packs = used = 0
        for block in self._sample():
            packs += len(block)
            used += int(gather_lengths(columns, block.entries).sum())
        return used / (packs * self.settings["max_length"])

    def plan_ahead(self) -> None:
        """Plan all packs now if there are at most `AHEAD` (262,144).

        DataLoader workers that are forked later then share the result. A plan that ends after a number of documents is
        always planned to its end, because its number of packs is not known before.
        """
        if self._planner.num_packs is None or self._planner.num_packs <= AHEAD:
            self._blocks.plan_all()

    def _sample(self) -> Iterator[Block]:
        """Return an iterator over the blocks (consecutive packs) that `counts` and `efficiency` cover.

        The choice does not depend on which blocks are in memory.
        """
        return iter(self._blocks) if len(self) <= AHEAD else islice(self._blocks, 1)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything that determines the plan, and its hash, to one .npz file, which is never incomplete."""
        extent = {"num_packs": self._planner.num_packs, "num_documents": self._planner.num_documents}
        facts: dict[str, Any] = {"settings": self.settings, "hash": self.hash, **extent}
        lengths = zip(self.names, self._planner.lengths, strict=True)
        content = {f"length.{name}": np.asarray(rows, dtype=np.int32) for name, rows in lengths}
        if self.shuffle is not None:
            content |= {f"shards.{name}": np.asarray(self.shuffle.starts[name]) for name in self.names}
        save_arrays(path, facts=np.array(json.dumps(facts)), **content)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "PackPlan":
        """Return the plan in a file that `save` wrote. It is made again from its settings, and its hash is checked.

        Raises:
            ValueError: If this version of the package makes another plan from the same settings.
        """
        with np.load(path) as content:
            facts = json.loads(str(content["facts"]))
            settings, expected = facts.pop("settings"), facts.pop("hash")
            lengths = {name: content[f"length.{name}"] for name in settings["ratios"]}
            if order := settings.get("order"):
                starts = {name: content[f"shards.{name}"] for name in lengths}
                facts["shuffle"] = ShardShuffle(starts, order["buffer"])
            plan = cls(settings, lengths, **facts)
        plan.plan_ahead()
        plan.check_hash(expected)
        return plan

    def check_lengths(self, lengths: Mapping[str, np.ndarray]) -> None:
        """Raise `ValueError` unless the plan was made for rows of these lengths.

        Args:
            lengths: Source name -> the number of tokens of every row, `(rows,)` integers.
        """
        for name, digest in self.settings["rows"].items():
            if digest_lengths(lengths[name]) != digest:
                raise ValueError(
                    f"`lengths` must be those that the plan was made for, got {len(lengths[name])} other rows of the "
                    f"source {name!r}: make a new plan."
                )

    def check_hash(self, expected: str) -> None:
        """Raise `ValueError` unless the hash of this plan is `expected`, the hash in the run to be resumed."""
        if self.hash != expected:
            raise ValueError(
                f"The pack plan has changed: its hash is {self.hash}, the run to be resumed had {expected}. Resume "
                "with the same sources, ratios, seed, max_length and number of packs, or start a new run."
            )


def _are_lengths(value: object) -> bool:
    return isinstance(value, Mapping) and all(np.ndim(one) == 1 for one in value.values())


@checked(
    seed=integer(0, 0), lengths=of_kind("a dict from names to lists of lengths", _are_lengths, {"texts": [12, 7]})
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
    folder: str | os.PathLike[str] | None = None,
    shuffle: ShardShuffle | None = None,
) -> PackPlan:
    """Plan which rows are trained on, in which order, and which of them are packed into one row of the batch.

    A pack is a list of documents (tokenized rows) that share one row of the batch. Up to `AHEAD` (262,144) packs are
    planned immediately; a longer plan is planned in blocks (16,384 packs each), when they are first read.

    Args:
        lengths: Source name -> the number of tokens of every row, `(rows,)` (`PreparedDataset.lengths`).
        max_length: Largest number of tokens in a pack.
        ratios: Source name -> its share in rows, in any unit (5, 1, 4). None gives each source a ratio of its number
            of rows, so that an epoch uses every row once.
        seed: Seed of the order of rows, and so of packs.
        num_packs: Number of packs, for example steps x packs per step. Not together with `epochs`.
        epochs: Number of rows of the plan, as a multiple of the number of rows that all sources have together; 1 by
            default.
        pool_size: Number of rows to choose from while packing, and so about how far a row may be moved in the order.
        folder: Folder where a plan of more than `AHEAD` packs writes the state of planning after every block, a few
            kilobytes each, so that other processes and resumed runs continue from there instead of planning from the
            start. Any number of plans and processes may share it.
        shuffle: Order in which shards are shuffled, and then the rows of a few shards at a time; see `ShardShuffle`.
            By default all rows of a source are shuffled.

    Raises:
        ValueError: If a source is empty, has no positive ratio or holds a document longer than a pack, a ratio names
            no source, or an argument is out of range.
    """
    # The order of `ratios`, not that of `lengths`, numbers the sources.
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
    if shuffle is not None:
        settings["order"] = shuffle.settings({name: arrays[name] for name in ratios})
    num_documents = None
    if num_packs is None:
        num_documents = max(round(sum(map(len, arrays.values())) * (1 if epochs is None else epochs)), 1)
    plan = PackPlan(settings, arrays, num_packs=num_packs, num_documents=num_documents, folder=folder, shuffle=shuffle)
    plan.plan_ahead()
    return plan


def digest_lengths(lengths: np.ndarray) -> str:
    """Return a short SHA-256, 16 hexadecimal digits, of the number of tokens of every row of a source.

    Args:
        lengths: Number of tokens of every row, `(rows,)` integers.
    """
    digest = hashlib.sha256()
    for start in range(0, len(lengths), 2**20):  # in pieces, because an int64 copy of all lengths would be large
        digest.update(np.ascontiguousarray(lengths[start : start + 2**20], dtype=np.int64).tobytes())
    return digest.hexdigest()[:16]


def _hash_recipe(settings: dict[str, Any], num_packs: int | None, num_documents: int | None) -> str:
    """Return a short SHA-256, 16 hexadecimal digits, of everything that determines a plan: settings and where it ends.

    Args:
        settings: The settings of a `PackPlan`.
        num_packs: Number of packs; None if `num_documents` decides where the plan ends.
        num_documents: Number of documents; None if `num_packs` decides.
    """
    recipe = [settings, {"num_packs": num_packs, "num_documents": num_documents}]
    return hashlib.sha256(json.dumps(recipe).encode()).hexdigest()[:16]


def _check(
    lengths: Mapping[str, np.ndarray],
    ratios: Mapping[str, float],
    max_length: int,
    num_packs: int | None,
    epochs: float | None,
    pool_size: int,
) -> None:
    """Raise `ValueError` if one of these arguments of `make_plan` is out of range, or they contradict each other."""
    if not lengths:
        raise ValueError("`lengths` must hold at least one source, got none: name the data to train on.")
    check_ratios(ratios, lengths)
    for name, rows in lengths.items():
        if len(rows) == 0:
            raise ValueError(f"Every source must have rows, got the source {name!r}, which is empty: leave it out.")
        if rows.max() > max_length:
            raise ValueError(
                f"`max_length` must be at least the length of every document, got {max_length}, and the source "
                f"{name!r} has {(rows > max_length).sum()} longer ones, up to {rows.max()}: raise max_length, or "
                f"prepare the source with max_length={max_length}."
            )
    if num_packs is not None and epochs is not None:
        raise ValueError("`num_packs` and `epochs` must not be given together, got both: choose one.")
    for key, value in {"num_packs": num_packs, "epochs": epochs, "pool_size": pool_size}.items():
        if value is not None and not value > 0:
            raise ValueError(f"`{key}` must be positive, got {value}: raise it, or leave it out.")


__all__ = ["AHEAD", "BLOCK", "Entry", "PackPlan", "digest_lengths", "make_plan"]
