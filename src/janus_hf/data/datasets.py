"""Packs as data sets: by number, from a plan (exact, resumable), or as a stream over shards (too large to plan).

A pack is a list of documents that share one row of the batch; both data sets yield it as `{"documents": [...]}`. A
document is a prepared row (see `store.table_row`) plus `source` (name), `row` and `visit` (how often the row came
before), which together decide what is random about it (caption drop). `JanusProCollator` takes lists of such packs.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from .planning.mixing import check_ratios, take_turns
from .planning.packing import POOL_SIZE, pack
from .planning.plan import PackPlan, make_plan
from .store import PreparedDataset, read_index, read_shard, shard_paths, table_row


class PackedDataset:
    """The packs of a plan by number: `packed[i]` is `{"documents": [...]}` of pack `i`.

    Any DataLoader reads it as a map-style data set, without shuffling, because the plan is shuffled already.

    Args:
        sources: Name -> prepared rows.
        plan: A plan made for these sources. By default every row comes once, in packs of `max_length`.
        max_length: Number of ids that a pack of the default plan holds at most.

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
        # Names alone would accept a source that was prepared again, with other rows.
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
        """Return the share of positions that hold documents, in [0, 1]; see `PackPlan.efficiency`."""
        return self.plan.efficiency(_lengths(self.sources))

    def to_hf(self) -> datasets.Dataset:
        """Return the packs as a `datasets.Dataset`, the only kind of data set that TRL accepts.

        It has one column, `pack`, and a transform that reads the documents: rows come out as `{"documents": ...}`.
        Train with `remove_unused_columns=False`, because the Trainer would drop the documents otherwise.
        """
        dataset = datasets.Dataset.from_dict({"pack": np.arange(len(self), dtype=np.int32)})
        return dataset.with_transform(self._read)

    def _read(self, batch: Mapping[str, list[int]]) -> dict[str, list[Any]]:
        """Return the documents of a batch of pack numbers; the transform of `to_hf`."""
        return {"documents": [self[index]["documents"] for index in batch["pack"]]}


def _lengths(sources: Mapping[str, PreparedDataset]) -> dict[str, np.ndarray]:
    """Return the lengths of the rows of every source, by name."""
    return {name: source.lengths for name, source in sources.items()}


def stream_packs(
    folders: Mapping[str, str],
    *,
    max_length: int,
    ratios: Mapping[str, float],
    seed: int = 0,
    pool_size: int = POOL_SIZE,
    epochs: int | None = None,
) -> datasets.IterableDataset:
    """Read shards in a random order, mix their rows by ratio and pack them as they come. No plan is made.

    Shards are dealt to ranks (by `datasets.distributed.split_dataset_by_node`, or the Trainer) and to loader workers.
    All get the same number only if the number of shards is a multiple of ranks x workers. Ratios hold for each
    worker's own stream. Resuming is approximate: skipping packs gives the same stream only with the same ranks,
    workers and sources.

    Args:
        folders: Name -> folder that `prepare` wrote.
        max_length: Number of ids that a pack holds at most. Reading a longer row raises `ValueError`.
        ratios: Name -> share in rows, in any unit.
        seed: Seed of the order of shards, and of rows within a shard.
        pool_size: Number of rows to choose from while packing; they are held in memory.
        epochs: Stop when any source has been read this number of times. None never stops (give the trainer
            `max_steps`).

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
    # `datasets` deals one list to ranks and workers, so each part must hold shards of every source, and there are no
    # more parts than the smallest source has shards. Part `i` holds every `count`-th shard, from the `i`-th.
    count = min(map(len, shards.values()))
    parts = [{name: paths[index::count] for name, paths in shards.items()} for index in range(count)]
    settings = {
        "max_length": max_length,
        "ratios": dict(ratios),
        "seed": seed,
        "pool_size": pool_size,
        "epochs": epochs,
    }
    return datasets.IterableDataset.from_generator(_stream, gen_kwargs={"parts": parts, **settings})


def _shards_with_rows(folder: str) -> list[str]:
    """Return the paths of the shards that hold rows.

    A worker that was dealt only shards whose rows were all skipped would look for a row without end.
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
) -> Iterator[dict[str, Any]]:
    """Yield the packs of one worker, from its parts of the shards; the generator behind `stream_packs`."""
    names = list(ratios)
    rows = [_rows(name, [path for part in parts for path in part[name]], seed, epochs) for name in names]
    for documents in pack(_sized(rows, ratios), max_length, pool_size=pool_size):
        yield {"documents": documents}


def _sized(rows: list[Iterator[dict[str, Any]]], ratios: Mapping[str, float]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield `(length, document)` from all sources in turn; stop when a source has no row left at its turn."""
    for source in take_turns(list(ratios.values())):
        if (document := next(rows[source], None)) is None:
            return
        yield document["length"], document


def _rows(name: str, paths: list[str], seed: int, epochs: int | None) -> Iterator[dict[str, Any]]:
    """Yield the documents of one source, shard by shard in random order, `epochs` times or without end."""
    visit = 0
    while epochs is None or visit < epochs:
        # Seeded anew at every visit, so that its order does not depend on how the visits before it were read.
        generator = np.random.default_rng([seed, visit])
        for shard in generator.permutation(len(paths)):
            table = read_shard(paths[shard])
            for row in generator.permutation(len(table)):
                yield table_row(table, int(row)) | {
                    "source": name,
                    # The number in the source is not known from a shard alone; this names the row as well.
                    "row": f"{Path(paths[shard]).stem}:{row}",
                    "visit": visit,
                }
        visit += 1


__all__ = ["PackedDataset", "stream_packs"]
