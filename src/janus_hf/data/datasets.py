"""Packs as datasets: by number, from a plan (exact, resumable), or as a stream over shards (too large to plan).

Both give `{"documents": [...]}`; a document is a prepared row (see `store.table_row`) plus `source` (name), `row` and
`visit`, which together decide what is random about it (caption drop). `JanusProCollator` takes lists of such packs.
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
    """Map-style: `packed[i]` is pack `i` of the plan. For any DataLoader, without shuffling: the plan is shuffled.

    Args:
        sources: Name -> prepared rows.
        plan: Made for these sources. By default every row once, packed to `max_length`.
        max_length: Of the default plan.

    Raises:
        ValueError: The plan was made for other sources.
    """

    def __init__(
        self, sources: Mapping[str, PreparedDataset], plan: PackPlan | None = None, *, max_length: int | None = None
    ) -> None:
        if (plan is None) == (max_length is None):
            raise ValueError("Expected a plan, or max_length for the default one; got both or neither.")
        if plan is None:
            assert max_length is not None
            plan = make_plan(_lengths(sources), max_length=max_length)
        if set(plan.names) != set(sources):
            raise ValueError(f"The plan is for the sources {sorted(plan.names)}; got {sorted(sources)}.")
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
        """The share of positions that hold documents."""
        return self.plan.efficiency(_lengths(self.sources))

    def to_hf(self) -> datasets.Dataset:
        """The same as a `datasets.Dataset`, which TRL insists on: the column `pack`, read through a transform.

        Rows come out as `{"documents": ...}`. Needs `remove_unused_columns=False`.
        """
        dataset = datasets.Dataset.from_dict({"pack": np.arange(len(self), dtype=np.int32)})
        return dataset.with_transform(self._read)

    def _read(self, batch: Mapping[str, list[int]]) -> dict[str, list[Any]]:
        return {"documents": [self[index]["documents"] for index in batch["pack"]]}


def _lengths(sources: Mapping[str, PreparedDataset]) -> dict[str, np.ndarray]:
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
    """Streaming: reads shards in a random order, mixes by ratio, packs windows of rows. Nothing is planned ahead.

    Shards are dealt to ranks (`datasets.distributed.split_dataset_by_node`, or the Trainer) and loader workers; all
    get the same number only if there are multiples of ranks x workers. Ratios hold for each worker's own stream.
    Resuming is approximate: skipping by number gives the same stream only for the same ranks, workers and sources.

    Args:
        folders: Name -> folder of `prepare`.
        max_length: Of a pack; longer rows cannot be read.
        ratios: Name -> share in rows.
        seed: Of the order of shards and of rows within a shard.
        pool_size: Rows to choose from while packing; they are held in memory.
        epochs: Stop when any source has been seen so often; None: never (give the trainer `max_steps`).

    Raises:
        ValueError: Ratios and sources do not match, or a source has no shards.
    """
    check_ratios(ratios, folders)
    shards = {name: _shards_with_rows(folder) for name, folder in folders.items()}
    if empty := sorted(name for name, paths in shards.items() if not paths):
        raise ValueError(
            f"Expected prepared shards with rows; the sources {empty} have none. Run janus-hf prepare first."
        )
    count = min(map(len, shards.values()))
    # One list to deal: part `i` holds every `count`-th shard of each source.
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
    """Without those all of whose rows were skipped: whoever was dealt no others would look for a row for ever."""
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
    names = list(ratios)
    rows = [_rows(name, [path for part in parts for path in part[name]], seed, epochs) for name in names]
    for documents in pack(_sized(rows, ratios), max_length, pool_size=pool_size):
        yield {"documents": documents}


def _sized(rows: list[Iterator[dict[str, Any]]], ratios: Mapping[str, float]) -> Iterator[tuple[int, dict[str, Any]]]:
    for source in take_turns(list(ratios.values())):
        if (document := next(rows[source], None)) is None:
            return
        yield document["length"], document


def _rows(name: str, paths: list[str], seed: int, epochs: int | None) -> Iterator[dict[str, Any]]:
    visit = 0
    while epochs is None or visit < epochs:
        generator = np.random.default_rng([seed, visit])
        for shard in generator.permutation(len(paths)):
            table = read_shard(paths[shard])
            for row in generator.permutation(len(table)):
                yield table_row(table, int(row)) | {
                    "source": name,
                    "row": f"{Path(paths[shard]).stem}:{row}",
                    "visit": visit,
                }
        visit += 1
