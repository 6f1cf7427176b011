"""From raw sources to prepared rows: images become codes and texts become ids, once, so that training reads numbers.

A source is cut into shards of consecutive rows. A shard is either finished (its file is there) or not begun. Restarts,
ranks and counting need to know nothing else: every process makes those shards of its rank that are not there yet.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from transformers.utils import logging

from ..processing import JanusProProcessor
from ..protocols import HasImageTokens
from .manifest import begin, counts, describe_request, finish, report
from .rows import RowPreparer
from .schema import choose_adapter
from .sources import Rows, Source, class_names, column_names, empty_source, open_source, source_folder
from .store import PreparedDataset, make_table, shard_paths, write_shard


logger = logging.get_logger(__name__)

ROWS_PER_SHARD = 1024  # by default, and always for streams


def prepare_rows(
    source: Source,
    model: HasImageTokens,
    processor: JanusProProcessor,
    *,
    task: str | None = None,
    adapter: str | None = None,
    max_length: int | None = None,
    batch_size: int = 32,
    num_threads: int = 4,
    folder: str | os.PathLike[str] | None = None,
) -> PreparedDataset:
    """Prepare a small source in memory.

    Args:
        source: A list of dicts (raw rows, or rows with columns that an adapter reads), or any source of `prepare`.
        model: See `prepare`, as for all further arguments.

    Raises:
        ValueError: If no adapter reads the columns, the source is empty, or no row of it can be trained on.
    """
    if isinstance(source, (list, tuple)):
        if not source:
            raise empty_source(source)
        rows, names = source, None
        # Rows of a list need not all have the same columns, so those of the first row would not do.
        columns = list(dict.fromkeys(name for row in source for name in row))
    else:
        rows = open_source(source)
        columns, names = column_names(rows, source), class_names(rows)
    chosen = choose_adapter(columns, name=adapter, task=task)
    sizes: dict[str, Any] = {"max_length": max_length, "batch_size": batch_size, "num_threads": num_threads}
    folder = source_folder(source) if folder is None else os.fspath(folder)
    preparer = RowPreparer(model, processor, chosen, task=task, names=names, folder=folder, **sizes)
    prepared, skipped = preparer(_progress(rows, "preparing"))
    if not prepared and not skipped:
        raise empty_source(source)
    meta = describe_request(preparer, source) | counts(len(prepared), skipped) | {"complete": True, "num_shards": 1}
    report(meta)
    return PreparedDataset([make_table(prepared, skipped)], meta)


def prepare(
    source: Source,
    output_dir: str | os.PathLike[str],
    model: HasImageTokens,
    processor: JanusProProcessor,
    *,
    task: str | None = None,
    adapter: str | None = None,
    max_length: int | None = None,
    batch_size: int = 32,
    num_threads: int = 4,
    num_shards: int | None = None,
    rank: int | None = None,
    world_size: int | None = None,
    folder: str | os.PathLike[str] | None = None,
    **options: Any,
) -> PreparedDataset | None:
    """Prepare a source into a folder of Arrow shards. After a kill, the same call goes on where the first one stopped.

    Args:
        source: See `sources.open_source`.
        output_dir: Folder for the rows of this source alone; it is created.
        model: `JanusProForConditionalGeneration`, on the device that is to encode images.
        processor: The model's processor.
        task: Take rows as examples of "text", "understanding" or "drawing" (generation); skip and count others. By
            default the columns decide.
        adapter: Name of an adapter (`schema.ADAPTERS`); by default the columns decide.
        max_length: Number of ids of the longest row; longer rows are skipped and counted, never cut. By default the
            length of the model's context.
        batch_size: Number of rows that are read at a time, and so the largest number of images in memory.
        num_threads: Number of threads that decode and resize images.
        num_shards: Number of shards, by default one per 1024 rows. For streaming, take a multiple of ranks x loader
            workers.
        rank: Number of this process, which makes every `world_size`-th shard. By default the value in the environment
            that `accelerate launch` and `torchrun` set.
        world_size: Number of processes; the default is as for `rank`. Ranks do not communicate, and their number may
            change between runs. Where they share a network file system, call `finish_prepared` once all are done.
        folder: Folder where relative image paths start; by default the source's.
        options: Further arguments of `sources.open_source` (`split`, `name`, `streaming`, ...).

    Returns:
        The prepared rows; None if other ranks still have shards to make.

    Raises:
        ValueError: If no adapter reads the columns, the source is empty, no row can be trained on, or the folder holds
            rows that were prepared otherwise.
    """
    rank = int(os.environ.get("RANK", "0")) if rank is None else rank
    world_size = int(os.environ.get("WORLD_SIZE", "1")) if world_size is None else world_size
    if not 0 <= rank < world_size:
        raise ValueError(
            f"`rank` must be in [0, world_size), got {rank} with a world_size of {world_size}: pass both, or neither."
        )
    rows = open_source(source, **options)
    sizes: dict[str, Any] = {"max_length": max_length, "batch_size": batch_size, "num_threads": num_threads}
    folder = source_folder(source) if folder is None else os.fspath(folder)
    chosen = choose_adapter(column_names(rows, source), name=adapter, task=task)
    preparer = RowPreparer(model, processor, chosen, task=task, names=class_names(rows), folder=folder, **sizes)
    rows_per_shard = _rows_per_shard(rows, num_shards)
    num_rows = len(rows) if hasattr(rows, "__len__") else None
    num_shards = None if num_rows is None else -(-num_rows // rows_per_shard)
    output = Path(output_dir)
    output.mkdir(parents=True, exist_ok=True)
    options.pop("token", None)  # a secret, which the rows do not depend on
    # Options go through JSON, so that they compare equal to what `begin` reads back from an earlier run's file.
    request = {
        "rows_per_shard": rows_per_shard,
        "source_rows": num_rows,
        "options": json.loads(json.dumps(options, default=str)),
    }
    meta = begin(output, describe_request(preparer, source) | request)

    total = 0
    for shard, start, chunk in _chunks(rows, rows_per_shard):
        total = shard + 1
        path = output / f"shard-{shard:06d}.arrow"
        # A shard is renamed into place when it is whole, so one that exists needs no second look.
        if shard % world_size == rank and not path.exists():
            title = f"{output.name}, shard {total} of {num_shards or '?'}"
            prepared, skipped = preparer(_progress(chunk, title), start)
            write_shard(make_table(prepared, skipped), path)
    if total == 0:
        raise empty_source(source)
    if len(shard_paths(output)) < total:
        logger.info("Rank %d is done with %s; other ranks are not.", rank, output)
        return None
    return finish(output, meta, total)


def prepare_mixture(
    sources: Mapping[str, Source | Mapping[str, Any]],
    output_dir: str | os.PathLike[str],
    model: HasImageTokens,
    processor: JanusProProcessor,
    **defaults: Any,
) -> dict[str, PreparedDataset | None]:
    """Prepare several sources, each into the folder `output_dir/name`. `janus-hf prepare` calls this.

    Args:
        sources: Name -> source, or `{"source": ...}` with further arguments of `prepare` for this source.
        output_dir: Parent of the folders; created.
        model: `JanusProForConditionalGeneration`.
        processor: The model's processor.
        defaults: Arguments of `prepare` for all sources. A source's own arguments take precedence.

    Returns:
        Name -> the prepared rows, or None if other ranks still have shards to make.

    Raises:
        ValueError: If there is no source, an entry names none, or `prepare` refuses one.
    """
    if not sources:
        raise ValueError("`sources` must hold at least one source, got none: name the data to prepare.")
    done = {}
    for name, spec in sources.items():
        arguments = dict(spec) if isinstance(spec, dict) else {"source": spec}
        if "source" not in arguments:
            raise ValueError(
                f"`sources` must give the arguments of {name!r} with a 'source' among them, got {sorted(arguments)}: "
                "add it."
            )
        source = arguments.pop("source")
        done[name] = prepare(source, Path(output_dir, name), model, processor, **(defaults | arguments))
    return done


def _rows_per_shard(rows: Rows, num_shards: int | None) -> int:
    """Return the number of rows in every shard but the last; raise `ValueError` if `num_shards` is out of range."""
    if num_shards is None:
        return ROWS_PER_SHARD
    if not hasattr(rows, "__len__"):
        raise ValueError(
            f"`num_shards` must be None for a stream, whose length is unknown, got {num_shards}: leave it out."
        )
    if not 1 <= num_shards <= len(rows):
        raise ValueError(
            f"`num_shards` must be in [1, {len(rows)}], the number of rows, got {num_shards}: lower it, or leave it "
            "out."
        )
    return -(-len(rows) // num_shards)


def _chunks(rows: Rows, size: int) -> Iterator[tuple[int, int, Iterable[Any]]]:
    """Yield `(number of the shard, number of its first row, its rows)`."""
    if hasattr(rows, "__len__"):
        # `select` reads nothing, so shards of other ranks cost nothing; of a stream, every rank reads every row.
        for shard, start in enumerate(range(0, len(rows), size)):
            yield shard, start, rows.select(range(start, min(start + size, len(rows))))
        return
    stream = iter(rows)
    shard = 0
    while chunk := list(islice(stream, size)):
        yield shard, shard * size, chunk
        shard += 1


def _progress(rows: Any, title: str) -> Iterable[Any]:
    """Return the rows, showing a progress bar while they are read."""
    progress: Iterable[Any] = logging.tqdm(rows, desc=title, unit="row", leave=False)
    return progress


__all__ = ["ROWS_PER_SHARD", "prepare", "prepare_mixture", "prepare_rows"]
