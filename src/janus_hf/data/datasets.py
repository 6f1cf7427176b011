"""Data sets of packs: `PackedDataset` reads the packs of a plan by number, `stream_packs` makes a stream of packs.

A pack is a list of documents (tokenized rows) that share one row of the batch. Both data sets yield a pack as
`{"documents": [...]}`. A plan is exact and can be resumed at any pack; a stream is for data too large to plan. A
document is the dict that `RowReader` returns, plus `source` (name of its data set), `row` (which row of the
source) and `visit` (number of times that the row came before). These three decide what is random about the document:
whether its caption is dropped. `JanusProCollator` makes a batch from a list of packs.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from ..arguments import checked, integer, of_kind
from .integrity.damage import RowReader
from .integrity.manifest_file import count_ids, read_manifest
from .planning.mixing import check_ratios, take_turns
from .planning.packing import POOL_SIZE, pack
from .planning.plan import PackPlan, make_plan
from .store import PreparedDataset, read_index, read_shard, shard_paths


class PackedDataset:
    """Map-style data set of the packs of a plan: `packed[i]` is pack `i` as `{"documents": [...]}`.

    A pack is a list of documents (tokenized rows) that share one row of the batch. Use a DataLoader without shuffling,
    because the order of the packs in the plan is random already.

    Args:
        sources: Source name -> prepared rows.
        plan: Plan that `make_plan` made for these sources. By default a plan in which every row comes once, in packs
            of `max_length`.
        max_length: Largest number of ids in a pack of the default plan.

    Raises:
        ValueError: If the plan was made for other sources, or both or neither of `plan` and `max_length` are given.
    """

    def __init__(
        self, sources: Mapping[str, PreparedDataset], plan: PackPlan | None = None, *, max_length: int | None = None
    ) -> None:
        if (plan is None) == (max_length is None):
            raise ValueError(
                "`plan`, or `max_length` for the default plan, must be given, got both or neither: choose one."
            )
        if plan is None:
            assert max_length is not None
            plan = make_plan(_lengths(sources), max_length=max_length)
        if set(plan.names) != set(sources):
            raise ValueError(
                f"`sources` must be those of the plan, {sorted(plan.names)}, got {sorted(sources)}: open the same "
                "sources, or make a new plan."
            )
        # The names would also match a source that was prepared again, with other rows.
        plan.check_lengths(_lengths(sources))
        self.sources, self.plan = dict(sources), plan

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, index: int) -> dict[str, list[dict[str, Any]]]:
        names = self.plan.names
        return {
            "documents": [
                self.sources[names[entry.source]][entry.row]
                | {"source": names[entry.source], "row": entry.row, "visit": entry.visit}
                for entry in self.plan[index]
            ]
        }

    def efficiency(self) -> float:
        """Return the share of the packs' positions that hold documents, not padding, in [0, 1]."""
        return self.plan.efficiency(_lengths(self.sources))

    def to_hf(self) -> datasets.Dataset:
        """Return the packs as a `datasets.Dataset`, the only kind of data set that TRL accepts.

        It has one column, `pack` (the number of the pack), and a transform that reads the documents, so that indexing
        it returns `{"documents": ...}`. Train with `remove_unused_columns=False`, because the Trainer would drop the
        documents otherwise.
        """
        dataset = datasets.Dataset.from_dict({"pack": np.arange(len(self), dtype=np.int32)})
        return dataset.with_transform(self._read)

    def _read(self, batch: Mapping[str, list[int]]) -> dict[str, list[Any]]:
        """Return `{"documents": [...]}`, with one list of documents for each of the pack numbers in `batch["pack"]`.

        `to_hf` sets this function as the transform of its data set.
        """
        return {"documents": [self[index]["documents"] for index in batch["pack"]]}


def _lengths(sources: Mapping[str, PreparedDataset]) -> dict[str, np.ndarray]:
    """Return a dict: source name -> the number of ids of every row of the source, `(rows,)` int32."""
    return {name: source.lengths for name, source in sources.items()}


def _are_folders(value: object) -> bool:
    return isinstance(value, Mapping) and all(isinstance(one, (str, os.PathLike)) for one in value.values())


@checked(
    seed=integer(0, 0),
    max_length=integer(1, 4096),
    pool_size=integer(1, POOL_SIZE),
    epochs=integer(1, 1, "leave it out for an endless stream"),
    folders=of_kind("a dict from names to folders", _are_folders, {"texts": "prepared/texts"}),
)
def stream_packs(
    folders: Mapping[str, str],
    *,
    max_length: int,
    ratios: Mapping[str, float],
    seed: int = 0,
    pool_size: int = POOL_SIZE,
    epochs: int | None = None,
) -> datasets.IterableDataset:
    """Return a stream of packs, made from rows that are read in random order and mixed by ratio, without a plan.

    A pack is a list of documents (tokenized rows) that share one row of the batch; the stream yields it as
    `{"documents": [...]}`. Shards (files of prepared rows) are distributed over ranks (by
    `datasets.distributed.split_dataset_by_node`, or the Trainer) and over the workers of a DataLoader. All get the
    same number of shards only if the number of shards (of the source that has fewest) is a multiple of ranks x
    workers. Ratios hold in the stream of each worker. Resuming is approximate: skipping packs gives the same stream
    only with the same ranks, workers and sources.

    Args:
        folders: Source name -> folder that `prepare` wrote.
        max_length: Largest number of ids in a pack. Reading a longer row raises `ValueError`.
        ratios: Source name -> its share in rows, in any unit.
        seed: Seed of the order of shards, and of rows within a shard.
        pool_size: Number of rows to choose from while packing; they are held in memory.
        epochs: Number of times that a source is read; the stream ends when any source has been read this often. None
            makes the stream endless (give the trainer `max_steps`).

    Raises:
        ValueError: If ratios and sources do not match, or a source has no rows.
    """
    check_ratios(ratios, folders)
    shards = {name: _shards_with_rows(folder) for name, folder in folders.items()}
    if empty := sorted(name for name, paths in shards.items() if not paths):
        raise ValueError(
            f"`folders` must hold prepared shards with rows, got none for the sources {empty}: run janus-hf prepare "
            "first."
        )
    # `datasets` distributes the elements of one list over ranks and workers. So each element (part) must hold shards
    # of every source, and there are no more parts than the smallest source has shards. Part `i` holds every `count`-th
    # shard, from the `i`-th on.
    count = min(map(len, shards.values()))
    parts = [{name: paths[index::count] for name, paths in shards.items()} for index in range(count)]
    settings = {
        "max_length": max_length,
        "ratios": dict(ratios),
        "seed": seed,
        "pool_size": pool_size,
        "epochs": epochs,
        "num_ids": {name: count_ids(read_manifest(folder)) for name, folder in folders.items()},
    }
    return datasets.IterableDataset.from_generator(_stream, gen_kwargs={"parts": parts, **settings})


def _shards_with_rows(folder: str) -> list[str]:
    """Return the paths of those shards (files of prepared rows) in a folder that hold at least one row.

    A worker that has only shards whose rows were all skipped would search for a row forever.
    """
    filled = set(read_index(folder).column("shard").to_numpy().tolist())
    return [str(path) for shard, path in enumerate(shard_paths(folder)) if shard in filled]


def _stream(
    parts: list[dict[str, list[str]]],
    max_length: int,
    ratios: dict[str, float],
    seed: int,
    pool_size: int,
    epochs: int | None,
    num_ids: dict[str, int | None],
) -> Iterator[dict[str, Any]]:
    """Yield the packs of one worker as `{"documents": [...]}`; the stream of `stream_packs` runs this function.

    Args:
        parts: The worker's shards (files of prepared rows), as dicts of source name -> paths.
        max_length: See `stream_packs`, also for the other arguments.
        num_ids: Source name -> size of both vocabularies together; None if it is not known.
    """
    names = list(ratios)
    paths = {name: [path for part in parts for path in part[name]] for name in names}
    rows = [_rows(name, paths[name], seed, epochs, num_ids[name]) for name in names]
    for documents in pack(_sized(rows, ratios), max_length, pool_size=pool_size):
        yield {"documents": documents}


def _sized(rows: list[Iterator[dict[str, Any]]], ratios: Mapping[str, float]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield pairs `(number of ids, document)` from all sources in turns; stop if a source has no row at its turn.

    Args:
        rows: One iterator over documents (tokenized rows) per source.
        ratios: Source name -> its share in rows, in the order of `rows`.
    """
    for source in take_turns(list(ratios.values())):
        if (document := next(rows[source], None)) is None:
            return
        yield document["length"], document


def _rows(name: str, paths: list[str], seed: int, epochs: int | None, num_ids: int | None) -> Iterator[dict[str, Any]]:
    """Yield the documents (tokenized rows) of one source in random order, `epochs` times, or without end if None.

    Both the shards and the rows within a shard are in random order. Every document is given its `source`, `row` and
    `visit`.

    Args:
        name: Name of the source.
        paths: Paths of its shards.
        seed: Seed of the order.
        epochs: Number of times to read all shards.
        num_ids: Size of both vocabularies together; None if it is not known.
    """
    visit = 0
    while epochs is None or visit < epochs:
        # Every visit (pass over the source) has its own seed, so that its order does not depend on earlier visits.
        generator = np.random.default_rng([seed, visit])
        for shard in generator.permutation(len(paths)):
            reader = RowReader(read_shard(paths[shard]), paths[shard], num_ids)
            for row in generator.permutation(len(reader)):
                yield reader[int(row)] | {
                    "source": name,
                    # A shard alone does not tell the row's number in the source, but this also identifies the row.
                    "row": f"{Path(paths[shard]).stem}:{row}",
                    "visit": visit,
                }
        visit += 1


__all__ = ["PackedDataset", "stream_packs"]
