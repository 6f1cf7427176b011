"""`meta.json`: what was asked of a preparation, written as it begins, and what came out, when all shards are there."""

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
from .sources import describe
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


def describe_request(preparer: RowPreparer, source: Any) -> dict[str, Any]:
    """What the rows depend on besides the source's content.

    Raises:
        ValueError: Model and processor do not belong together.
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
    """Writes `meta.json`, or compares with the one that an earlier run wrote."""
    path = output / META
    if not path.exists():
        if shard_paths(output):
            raise ValueError(f"Expected an empty folder, or an earlier run's with its {META}; got {str(output)!r}.")
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
    """Counts over all shards into `meta.json`, which is complete from then on. Any rank may, or several.

    Raises:
        ValueError: There are not `total` shards, or no row of them can be trained on.
    """
    paths = shard_paths(output)
    if len(paths) != total:
        raise ValueError(f"Expected {total} shards in {str(output)!r}; found {len(paths)}. The source has changed.")
    skipped: Skipped = []

    def tables() -> Iterator[pa.Table]:  # one open at a time
        for path in paths:
            table = read_shard(path)
            skipped.extend(skipped_rows(table.schema))
            yield table

    index = make_index(tables())
    meta = meta | counts(len(index), skipped) | {"complete": True, "num_shards": total}
    report(meta)
    write_shard(index, output / INDEX)
    write_json(meta, output / META)
    for left_by_a_kill in output.glob(".shard-*"):
        left_by_a_kill.unlink(missing_ok=True)
    return load_prepared(output)


def finish_prepared(folder: str | os.PathLike[str]) -> None:
    """For one process, once all ranks of `prepare` are done: finishes what none of them could.

    A network file system may show each rank the others' last shards late, so that everybody leaves the counting to
    somebody else. Does nothing if all is done, or shards are really missing.
    """
    output = Path(folder)
    meta = json.loads((output / META).read_text(encoding="utf-8"))
    if meta["complete"] or meta["source_rows"] is None:  # of a stream, only who reads it knows how many there are
        return
    total = -(-meta["source_rows"] // meta["rows_per_shard"])
    if len(shard_paths(output)) == total:
        finish(output, meta, total)


def counts(num_rows: int, skipped: Skipped) -> dict[str, Any]:
    """Of rows, and of skipped rows by reason, with the first ten as examples."""
    return {
        "num_rows": num_rows,
        "skipped": dict(Counter(reason for _, reason, _ in skipped)),
        "skipped_examples": skipped[:10],
    }


def report(meta: dict[str, Any]) -> None:
    """Warns of skipped rows; raises `ValueError` if there are no others."""
    if meta["skipped"]:
        listing = ", ".join(f"{count} {reason}" for reason, count in sorted(meta["skipped"].items()))
        row, _, message = meta["skipped_examples"][0]
        told = f"{meta['source']}: kept {meta['num_rows']} rows, skipped {listing}. The first was row {row}: {message}"
        if meta["num_rows"] == 0:
            raise ValueError(f"No row can be trained on. {told}")
        logger.warning(told)
