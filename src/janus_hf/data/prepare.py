"""Raw sources -> prepared rows: pictures to codes, texts to ids, once, so that training reads numbers.

A source is cut into shards of consecutive rows. A shard is either finished (its file is there) or not begun, which is
all that restarting, ranks and counting need: every process takes the shards of its rank that are not there yet.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from transformers.utils import logging

from ..processing import JanusProProcessor
from .manifest import begin, counts, describe_request, finish, report
from .rows import RowPreparer
from .schema import choose_adapter
from .sources import class_names, column_names, describe, open_source, source_folder
from .store import PreparedDataset, make_table, shard_paths, write_shard


logger = logging.get_logger(__name__)

ROWS_PER_SHARD = 1024


def prepare_rows(
    source: Any,
    model: Any,
    processor: JanusProProcessor,
    *,
    task: str | None = None,
    adapter: str | None = None,
    max_length: int | None = None,
    batch_size: int = 32,
    num_threads: int = 4,
    folder: str | os.PathLike[str] | None = None,
) -> PreparedDataset:
    """A small source -> prepared rows in memory; a list of dicts (raw rows, or any columns an adapter reads) will do.

    Args: see `prepare`.

    Raises:
        ValueError: No adapter reads the columns, the source is empty, or no row of it can be trained on.
    """
    listed = isinstance(source, (list, tuple))
    if listed and not source:
        raise ValueError("Expected rows; got an empty list.")
    rows = source if listed else open_source(source)
    columns = list(dict.fromkeys(name for row in rows for name in row)) if listed else column_names(rows, source)
    chosen = choose_adapter(columns, name=adapter, task=task)
    names = None if listed else class_names(rows)
    sizes: dict[str, Any] = {"max_length": max_length, "batch_size": batch_size, "num_threads": num_threads}
    folder = source_folder(source) if folder is None else os.fspath(folder)
    preparer = RowPreparer(model, processor, chosen, task=task, names=names, folder=folder, **sizes)
    prepared, skipped = preparer(_progress(rows, "preparing"))
    if not prepared and not skipped:
        raise ValueError(f"Expected rows; the source {describe(source)} is empty.")
    meta = describe_request(preparer, source) | counts(len(prepared), skipped) | {"complete": True, "num_shards": 1}
    report(meta)
    return PreparedDataset([make_table(prepared, skipped)], meta)


def prepare(
    source: Any,
    output_dir: str | os.PathLike[str],
    model: Any,
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
    """Prepares a source into a folder of Arrow shards. Run it again after a kill: it goes on where it stopped.

    Args:
        source: See `sources.open_source`; `options` go there too (`split`, `name`, `streaming`, ...).
        output_dir: Made for this source alone.
        model: `JanusProForConditionalGeneration`, on the device that shall encode pictures.
        task: Take rows as examples of "text", "understanding" or "drawing"; others are skipped and counted.
        adapter: Name of an adapter (`schema.ADAPTERS`); by default the columns decide.
        max_length: In ids; longer rows are skipped and counted, never cut. By default the model's context.
        batch_size: Rows at a time, and so the most pictures at a time.
        num_threads: That decode and resize pictures.
        num_shards: By default one per 1024 rows. For streaming, take a multiple of ranks x loader workers.
        rank, world_size: Which shards are ours; by default from the environment that `accelerate launch` and
            `torchrun` set. Ranks do not talk to each other, and their number may change between runs. Where they share
            a network file system, call `finish_prepared` once all are done.
        folder: Where relative picture paths start; by default beside the source.

    Returns:
        The prepared rows; None if other ranks still have shards to do.

    Raises:
        ValueError: No adapter reads the columns, the source is empty, no row can be trained on, or the folder holds
            something prepared otherwise.
    """
    rank = int(os.environ.get("RANK", "0")) if rank is None else rank
    world_size = int(os.environ.get("WORLD_SIZE", "1")) if world_size is None else world_size
    if not 0 <= rank < world_size:
        raise ValueError(f"Expected a rank in [0, world_size); got {rank} of {world_size}.")
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
    options.pop("token", None)  # a secret, and no part of what the data are
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
        if shard % world_size == rank and not path.exists():
            title = f"{output.name}, shard {total} of {num_shards or '?'}"
            prepared, skipped = preparer(_progress(chunk, title), start)
            write_shard(make_table(prepared, skipped), path)
    if total == 0:
        raise ValueError(f"Expected rows; the source {describe(source)} is empty.")
    if len(shard_paths(output)) < total:
        logger.info("Rank %d is done with %s; other ranks are not.", rank, output)
        return None
    return finish(output, meta, total)


def prepare_mixture(
    sources: Mapping[str, Any],
    output_dir: str | os.PathLike[str],
    model: Any,
    processor: JanusProProcessor,
    **defaults: Any,
) -> dict[str, PreparedDataset | None]:
    """Prepares several sources, each into the folder `output_dir/name`. What `janus-hf prepare` calls.

    Args:
        sources: Name -> source, or `{"source": ..., other arguments of prepare}`.
        defaults: Arguments of `prepare` for all sources; a source's own go before.
    """
    if not sources:
        raise ValueError("Expected at least one source; got none.")
    done = {}
    for name, spec in sources.items():
        arguments = dict(spec) if isinstance(spec, dict) else {"source": spec}
        if "source" not in arguments:
            raise ValueError(f"Expected 'source' among the arguments of {name!r}; got {sorted(arguments)}.")
        source = arguments.pop("source")
        done[name] = prepare(source, Path(output_dir, name), model, processor, **(defaults | arguments))
    return done


def _rows_per_shard(rows: Any, num_shards: int | None) -> int:
    if num_shards is None:
        return ROWS_PER_SHARD
    if not hasattr(rows, "__len__"):
        raise ValueError("A stream's length is unknown, so num_shards is too; leave it out.")
    if not 1 <= num_shards <= len(rows):
        raise ValueError(f"Expected num_shards in [1, {len(rows)}], the number of rows; got {num_shards}.")
    return -(-len(rows) // num_shards)


def _chunks(rows: Any, size: int) -> Iterator[tuple[int, int, Iterable[Any]]]:
    """`(shard, its first row's number, its rows)`."""
    if hasattr(rows, "__len__"):
        for shard, start in enumerate(range(0, len(rows), size)):
            yield shard, start, rows.select(range(start, min(start + size, len(rows))))
        return
    stream = iter(rows)
    shard = 0
    while chunk := list(islice(stream, size)):
        yield shard, shard * size, chunk
        shard += 1


def _progress(rows: Any, title: str) -> Iterable[Any]:
    progress: Iterable[Any] = logging.tqdm(rows, desc=title, unit="row", leave=False)
    return progress
