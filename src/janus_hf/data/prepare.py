"""`prepare`, `prepare_rows` and `prepare_mixture`, which turn raw data sets (sources) into prepared rows for training.

Texts become token ids and images to be generated become codes, once, so that training need not encode them. `prepare`
cuts a source into shards, which are files of consecutive rows. A shard is either finished (its file exists) or not
begun, and every process makes those shards of its rank that do not exist yet. Restarting, dividing the work between
ranks and counting rows need no other state. Streams, whose length is not known, are divided by `streams.stream_parts`.
"""

import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from transformers.utils import logging

from ..arguments import checked
from ..processing import JanusProProcessor
from ..protocols import HasImageTokens
from .integrity.bad_rows import MAX_BAD_SHARE
from .integrity.manifest_file import META, read_manifest
from .manifest import begin, counts, describe_request, find_parts, finish, report
from .opened import OpenedSource, check_ignored, open_for_preparation
from .reading.tables import unreadable_row
from .rows import RowPreparer, Settings
from .sources import Source, empty_source
from .store import PreparedDataset, load_prepared, make_table, shard_name, shard_names, shard_paths, write_shard
from .streams.addresses import SECRET_OPTIONS, refuse_address
from .streams.stream_parts import Chunk, StreamParts


logger = logging.get_logger(__name__)

ROWS_PER_SHARD = 1024  # the smallest number of rows per shard by default, and that of streams, whose length is unknown
MOST_ROWS_PER_SHARD = 8192  # the largest by default; the rows of one shard are in memory until it is written
SHARDS = 1024  # larger sources have about as many shards, until these hold `MOST_ROWS_PER_SHARD`


@checked()
def prepare_rows(
    source: Source,
    model: HasImageTokens,
    processor: JanusProProcessor,
    *,
    task: str | None = None,
    adapter: str | None = None,
    ignore: Sequence[str] = (),
    max_length: int | None = None,
    batch_size: int = 32,
    num_threads: int | None = None,
    folder: str | os.PathLike[str] | None = None,
    image_hosts: Collection[str] = (),
    max_bad_share: float = MAX_BAD_SHARE,
) -> PreparedDataset:
    """Prepare a small source in memory, and return its prepared rows (tokenized training examples).

    Args:
        source: A list of dicts (raw rows, or rows with columns that an adapter reads), or any source of `prepare`.
        model: See `prepare` for this and all further arguments.

    Raises:
        ValueError: If no adapter reads the columns, the source is empty, or too many rows, or all, cannot be used for
            training.
        SourceError: If the source holds content that no prepared row would hold.
    """
    opened = open_for_preparation(source, task=task, adapter=adapter, ignore=ignore, in_memory=True)
    check_ignored([opened])
    settings = Settings(
        max_length=max_length,
        batch_size=batch_size,
        num_threads=num_threads,
        folder=folder,
        image_hosts=image_hosts,
        max_bad_share=max_bad_share,
    )
    preparer = RowPreparer(model, processor, opened, settings)
    prepared, skipped = preparer(_progress(opened.rows, "preparing"))
    if not prepared and not skipped:
        raise empty_source(source)
    meta = describe_request(preparer) | counts(len(prepared), skipped) | {"complete": True, "num_shards": 1}
    meta["unused_columns"] = sorted([*meta["unused_columns"], *preparer.take_late_columns()])
    report(meta)
    return PreparedDataset([make_table(prepared, skipped)], meta)


@checked()
def prepare(
    source: Source,
    output_dir: str | os.PathLike[str],
    model: HasImageTokens,
    processor: JanusProProcessor,
    *,
    task: str | None = None,
    adapter: str | None = None,
    ignore: Sequence[str] = (),
    max_length: int | None = None,
    batch_size: int = 32,
    num_threads: int | None = None,
    num_shards: int | None = None,
    rows_per_shard: int | None = None,
    rank: int | None = None,
    world_size: int | None = None,
    folder: str | os.PathLike[str] | None = None,
    image_hosts: Collection[str] = (),
    max_bad_share: float = MAX_BAD_SHARE,
    **options: Any,
) -> PreparedDataset | None:
    """Prepare a source as a folder of Arrow files (shards). After an interruption, the same call resumes the work.

    Args:
        source: Data set to prepare, in any form that `sources.open_source` accepts.
        output_dir: Folder for the rows of this source alone; it is created.
        model: `JanusProForConditionalGeneration`, on the device where images are to be encoded.
        processor: The model's processor.
        task: Task whose rows are kept: "text", "understanding" or "drawing" (generation). Other rows are skipped and
            counted. By default the columns decide the task.
        adapter: Name of the adapter that converts the columns (a key of `schema.ADAPTERS`); by default the columns
            decide.
        ignore: Names of content that may be lost: columns, files of a folder, and keys, types of parts and roles in
            messages. Without them, content that the adapter does not use is refused. Columns without content, such as
            `id`, `url` or `width`, need not be named.
        max_length: Largest number of ids of a prepared row; longer rows are skipped and counted, never cut. By default
            the length of the model's context.
        batch_size: Number of rows whose images are encoded together. While they are, the next ones are read, so images
            of up to twice as many rows are in memory.
        num_threads: Number of threads that decode and resize images; by default one per processor, at least 4 and at
            most 16.
        num_shards: Number of shards. For `stream_packs`, choose a multiple of ranks x DataLoader workers. Not for
            streams, whose length is unknown, and not together with `rows_per_shard`.
        rows_per_shard: Number of rows per shard. By default that of an earlier run in this folder. In a new folder it
            is 1024 for streams and sources of up to a million rows, and larger for larger ones, up to 8192. The rows
            of one shard are in memory until it is written.
        rank: Number of this process, which makes every `world_size`-th shard. By default the value in the environment
            that `accelerate launch` and `torchrun` set.
        world_size: Number of processes; the default is as for `rank`. Ranks do not communicate, and their number may
            change between runs. If they share a network file system, call `finish_prepared` once all have returned.
            Each file of a stream is read by one rank, or by several if there are fewer files than ranks. A stream must
            have the same rows in the same order in every process and every run.
        folder: Folder, or its address, that relative image paths start from; by default that of the source.
        image_hosts: Hosts and buckets at which rows may name images, such as `["images.example.org"]`, if the source
            is not on this machine; `["*"]` allows all. By default such rows may name images only where the source is.
            Rows of local files and rows in memory may name images anywhere; a warning names the places.
        max_bad_share: Largest share of rows that cannot be used for training, in [0, 1]; rows of another task than
            `task` do not count. Bad rows are skipped and counted. If they become more than this share (of the rows so
            far, and of at least 100; at the end of at least 8), the preparation ends with an error. A later call may
            allow more.
        options: Further arguments of `sources.open_source` (`split`, `name`, `streaming`, ...).

    Returns:
        The prepared rows; None if other ranks still have shards to make.

    Raises:
        ValueError: If no adapter reads the columns, the source is empty, too many rows, or all, cannot be used for
            training, or the folder holds rows that were prepared for another model or with other arguments.
        DamagedDataError: If a file that an earlier run wrote to the folder is damaged. A shard that is deleted is made
            again.
        SourceError: If the source holds content that no prepared row would hold, or names files that cannot be read.
    """
    refuse_address("output_dir", output_dir)
    opened = open_for_preparation(source, task=task, adapter=adapter, ignore=ignore, **options)
    check_ignored([opened])
    settings = Settings(
        max_length=max_length,
        batch_size=batch_size,
        num_threads=num_threads,
        num_shards=num_shards,
        rows_per_shard=rows_per_shard,
        rank=rank,
        world_size=world_size,
        folder=folder,
        image_hosts=image_hosts,
        max_bad_share=max_bad_share,
    )
    return _write(opened, output_dir, model, processor, settings)


def _write(
    opened: OpenedSource,
    output_dir: str | os.PathLike[str],
    model: HasImageTokens,
    processor: JanusProProcessor,
    settings: Settings,
) -> PreparedDataset | None:
    """Prepare an opened source as a folder of shards; see `prepare` for the arguments."""
    rank = int(os.environ.get("RANK", "0")) if settings.rank is None else settings.rank
    world_size = int(os.environ.get("WORLD_SIZE", "1")) if settings.world_size is None else settings.world_size
    if not 0 <= rank < world_size:
        raise ValueError(
            f"`rank` must be in [0, world_size), got {rank} with a world_size of {world_size}: pass both, or neither."
        )
    preparer = RowPreparer(model, processor, opened, settings)
    output = Path(output_dir)
    num_rows = len(opened.rows) if hasattr(opened.rows, "__len__") else None
    size = _rows_per_shard(num_rows, settings.num_shards, settings.rows_per_shard, output)
    explain = unreadable_row if isinstance(opened.source, (str, os.PathLike)) else None
    # Any: mypy does not see that only streams have no length
    rows: Any = opened.rows
    parts = StreamParts(rows, size, output, files=opened.files, explain=explain) if num_rows is None else None
    output.mkdir(parents=True, exist_ok=True)
    # Secrets are not written. The rows do not depend on them.
    options = {name: value for name, value in opened.options.items() if name not in SECRET_OPTIONS}
    # Options go through JSON, so that they compare equal to what `begin` reads back from an earlier run's file.
    request = {
        "rows_per_shard": size,
        "source_rows": num_rows,
        "source_parts": None if parts is None else parts.number,
        "options": json.loads(json.dumps(options, default=str)),
    }
    meta = begin(output, describe_request(preparer) | request, opened)
    if parts is None:
        chunks = _chunks(rows, size, output, rank, world_size)
    elif _is_done(output):
        return load_prepared(output)
    else:
        chunks = parts.chunks(rank, world_size)
    for chunk in chunks:
        title = f"{output.name}, {chunk.name}" + (f" of {-(-num_rows // size)}" if num_rows is not None else "")
        prepared, skipped = preparer(_progress(chunk.rows, title), chunk.start, chunk.place)
        write_shard(make_table(prepared, skipped, preparer.take_late_columns()), output / chunk.name)
    if parts is None:
        total = -(-len(rows) // size)
    elif (found := find_parts(output, meta)) is not None:
        meta, total = meta | {"parts": found}, sum(shards for shards, _ in found)
        if total == 0:
            raise empty_source(opened.source)
    if (parts is not None and found is None) or len(shard_paths(output)) < total:
        logger.info("Rank %d is done with %s; other ranks are not.", rank, output)
        return None
    return finish(output, meta, total)


def _is_done(output: Path) -> bool:
    """Return whether a folder holds all prepared rows of a source, so that the source need not be read again."""
    meta = read_manifest(output)
    return bool(meta["complete"]) and {path.name for path in shard_paths(output)} == set(shard_names(meta))


@checked()
def prepare_mixture(
    sources: Mapping[str, Source | Mapping[str, Any]],
    output_dir: str | os.PathLike[str],
    model: HasImageTokens,
    processor: JanusProProcessor,
    **defaults: Any,
) -> dict[str, PreparedDataset | None]:
    """Prepare several sources, each into the folder `output_dir/name`. The command `janus-hf prepare` calls this.

    Args:
        sources: Name -> source, or name -> dict with `"source"` and further arguments of `prepare` for this source.
        output_dir: Parent of the sources' folders; it is created.
        model: `JanusProForConditionalGeneration`.
        processor: The model's processor.
        defaults: Arguments of `prepare` for all sources. A source's own arguments take precedence.

    Returns:
        A dict: name -> the prepared rows, or None if other ranks still have shards to make.

    Raises:
        ValueError: If `sources` is empty, an entry has no `"source"`, or `prepare` raises it for a source.
        SourceError: If a source holds content that no prepared row would hold. All sources are checked first.
    """
    refuse_address("output_dir", output_dir)
    if not sources:
        raise ValueError("`sources` must hold at least one source, got none: name the data to prepare.")
    opened, settings = {}, {}
    for name, spec in sources.items():
        arguments = dict(spec) if isinstance(spec, dict) else {"source": spec}
        if "source" not in arguments:
            raise ValueError(
                f"`sources` must give the arguments of {name!r} with a 'source' among them, got {sorted(arguments)}: "
                "add it."
            )
        arguments = defaults | arguments
        settings[name] = Settings(
            **{field.name: arguments.pop(field.name) for field in fields(Settings) if field.name in arguments}
        )
        opened[name] = open_for_preparation(**arguments)
    check_ignored(list(opened.values()))
    return {
        name: _write(source, Path(output_dir, name), model, processor, settings[name])
        for name, source in opened.items()
    }


def _rows_per_shard(num_rows: int | None, num_shards: int | None, asked: int | None, output: Path) -> int:
    """Return the number of rows in every shard; the last may have fewer. Raise `ValueError` for a bad argument.

    Args:
        num_rows: Number of rows of the source; None for a stream.
        num_shards: Number of shards, in [1, number of rows], or None.
        asked: Number of rows per shard that the user asked for, or None.
        output: Folder of the shards. What an earlier run used there is the default.
    """
    if asked is not None and (isinstance(asked, bool) or not isinstance(asked, int) or asked < 1):
        raise ValueError(
            f"`rows_per_shard` must be an integer of 1 or more, got {asked!r}: change it, or leave it out."
        )
    if num_shards is None:
        if asked is None and (output / META).is_file():
            asked = read_manifest(output).get("rows_per_shard")
        # A power of two keeps the number when a few rows are added to the source.
        larger = 2 ** ((num_rows or 0) // SHARDS).bit_length()
        return asked or min(max(ROWS_PER_SHARD, larger), MOST_ROWS_PER_SHARD)
    if asked is not None:
        raise ValueError(
            f"`num_shards` and `rows_per_shard` must not be given together, got {num_shards} and {asked}: choose one."
        )
    if num_rows is None:
        raise ValueError(
            f"`num_shards` must be None for a stream, whose length is unknown, got {num_shards}: leave it out, or set "
            "rows_per_shard."
        )
    if not 1 <= num_shards <= num_rows:
        raise ValueError(
            f"`num_shards` must be in [1, {num_rows}], the number of rows, got {num_shards}: lower it, or leave it "
            "out."
        )
    return -(-num_rows // num_shards)


def _chunks(rows: Any, size: int, output: Path, rank: int, world_size: int) -> Iterator[Chunk]:
    """Yield the rows of each shard that a process has to make of a data set with a length.

    Args:
        rows: A `datasets.Dataset`.
        size: Number of rows in every shard; the last may have fewer.
        output: Folder of the shards. A shard gets its name only when it is complete, so one that exists is finished.
        rank: Number of the process, which makes every `world_size`-th shard.
        world_size: Number of processes.
    """
    for shard in range(rank, -(-len(rows) // size), world_size):
        if not (output / shard_name(shard)).exists():
            start = shard * size
            # `select` reads nothing, so shards of other ranks cost nothing.
            chunk = rows.select(range(start, min(start + size, len(rows))))
            yield Chunk(shard_name(shard), chunk, start, "the source")


def _progress(rows: Any, title: str) -> Iterable[Any]:
    """Return an iterable over `rows` that shows a progress bar with this title while it is read."""
    progress: Iterable[Any] = logging.tqdm(rows, desc=title, unit="row", leave=False)
    return progress


__all__ = ["MOST_ROWS_PER_SHARD", "ROWS_PER_SHARD", "prepare", "prepare_mixture", "prepare_rows"]
