"""`meta.json`: the request of a preparation, written at its beginning, and its result, added when all shards exist."""

import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
from transformers.utils import logging

from .._version import __version__
from .fingerprint import check_fingerprint, fingerprint
from .rows import RowPreparer, Skipped
from .sources import Source, describe
from .store import (
    INDEX,
    META,
    PreparedDataset,
    load_prepared,
    make_index,
    read_shard,
    shard_paths,
    skipped_rows,
    write_json,
    write_shard,
)


logger = logging.get_logger(__name__)


def describe_request(preparer: RowPreparer, source: Source) -> dict[str, Any]:
    """Return the entries of `meta.json` that prepared rows depend on, besides the content of the source.

    Args:
        preparer: Turns the rows of the source into prepared rows.
        source: The source as the user named it; only a short description of it is kept.

    Raises:
        ValueError: If model and processor do not belong together.
    """
    return {
        **fingerprint(preparer.model, preparer.processor),
        "adapter": preparer.adapter.name,
        "max_length": preparer.max_length,
        "source": describe(source),
        "task": preparer.task,
        "version": __version__,
    }


def begin(output: Path, meta: dict[str, Any]) -> dict[str, Any]:
    """Write `meta.json`, or compare `meta` with the one that an earlier run wrote, and return `meta`.

    Raises:
        ValueError: If the folder holds something else, or rows that were prepared otherwise.
    """
    path = output / META
    if not path.exists():
        if shard_paths(output):
            raise ValueError(
                f"`output_dir` must be an empty folder, or an earlier run's with its {META}, got {str(output)!r}, "
                f"which has shards but no {META}: choose another folder, or delete this one."
            )
        # Before the first shard, so that a later run with other arguments is refused and not mixed in.
        write_json(meta | {"complete": False}, path)
        return meta
    earlier = json.loads(path.read_text(encoding="utf-8"))
    parts = {"model": meta["model"], "processor": meta["processor"]}
    check_fingerprint(earlier, parts, repr(str(output)))
    for key in ("source", "source_rows", "options", "adapter", "task", "max_length", "rows_per_shard"):
        if earlier[key] != meta[key]:
            raise ValueError(
                f"{str(output)!r} holds rows prepared with {key}={earlier[key]!r}; now it is {meta[key]!r}. Choose "
                "another folder, or delete this one."
            )
    return meta


def finish(output: Path, meta: dict[str, Any], total: int) -> PreparedDataset:
    """Write `index.arrow` and the counts over all shards, mark `meta.json` as complete, and open the folder.

    Any rank may call this, and several may at the same time: all of them write the same content.

    Args:
        output: The folder of the shards.
        meta: What `begin` returned.
        total: Number of shards of the source.

    Raises:
        ValueError: If there are not `total` shards, or all of their rows were skipped.
    """
    paths = shard_paths(output)
    if len(paths) != total:
        raise ValueError(
            f"{str(output)!r} must hold {total} shards, got {len(paths)}: the source has changed, so prepare it into "
            "another folder."
        )
    skipped: Skipped = []

    def tables() -> Iterator[pa.Table]:
        """Yield the shards, and collect the rows that were skipped in them."""
        # One shard is open at a time, because Linux allows a process only 65,530 maps.
        for path in paths:
            table = read_shard(path)
            skipped.extend(skipped_rows(table.schema))
            yield table

    index = make_index(tables())
    meta = meta | counts(len(index), skipped) | {"complete": True, "num_shards": total}
    report(meta)
    # `meta.json` comes last, because it says that everything else is there.
    write_shard(index, output / INDEX)
    write_json(meta, output / META)
    # Temporary files have unique names, so those of killed processes are never overwritten.
    for left_by_a_kill in output.glob(".shard-*"):
        left_by_a_kill.unlink(missing_ok=True)
    return load_prepared(output)


def finish_prepared(folder: str | os.PathLike[str]) -> None:
    """Finish a preparation that no rank could finish. Call it in one process, once all ranks of `prepare` are done.

    A network file system may show each rank the other ranks' last shards late, so that every rank returns without
    having counted the rows. Nothing is done if the folder is complete, if shards are missing, or if the source was a
    stream.
    """
    output = Path(folder)
    meta = json.loads((output / META).read_text(encoding="utf-8"))
    # Only the process that reads a stream knows how many shards it has.
    if meta["complete"] or meta["source_rows"] is None:
        return
    total = -(-meta["source_rows"] // meta["rows_per_shard"])
    if len(shard_paths(output)) == total:
        finish(output, meta, total)


def counts(num_rows: int, skipped: Skipped) -> dict[str, Any]:
    """Count kept rows and skipped rows by reason; include the first ten skipped rows as examples."""
    return {
        "num_rows": num_rows,
        "skipped": dict(Counter(reason for _, reason, _ in skipped)),
        "skipped_examples": skipped[:10],
    }


def report(meta: dict[str, Any]) -> None:
    """Warn of skipped rows; raise `ValueError` if all rows were skipped.

    Args:
        meta: Entries of `meta.json`, with those of `counts`.
    """
    if meta["skipped"]:
        listing = ", ".join(f"{count} {reason}" for reason, count in sorted(meta["skipped"].items()))
        row, _, message = meta["skipped_examples"][0]
        summary = (
            f"{meta['source']}: kept {meta['num_rows']} rows, skipped {listing}. The first was row {row}: {message}"
        )
        if meta["num_rows"] == 0:
            raise ValueError(f"No row can be trained on. {summary}")
        logger.warning(summary)


__all__ = ["begin", "counts", "describe_request", "finish", "finish_prepared", "report"]
