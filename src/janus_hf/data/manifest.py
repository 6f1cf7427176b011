"""Functions that write `meta.json`, the file that describes how the rows in a folder were prepared.

`begin` writes the request (source and arguments) before the first row is prepared. `finish` adds the result (counts of
rows) when all shards, the files of prepared rows, exist.
"""

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa
from transformers.utils import logging

from .._version import __version__
from ..arguments import checked
from .fingerprint import check_fingerprint, fingerprint
from .integrity.bad_rows import check_counts, first_rows, list_rows
from .integrity.damage import damaged
from .integrity.manifest_file import META, read_manifest
from .integrity.precision import PRECISION
from .opened import OpenedSource
from .rows import RowPreparer, Skipped
from .sources import describe
from .store import (
    INDEX,
    PreparedDataset,
    index_checksum,
    late_columns,
    load_prepared,
    make_index,
    read_whole,
    shard_paths,
    skipped_rows,
    write_json,
    write_shard,
)
from .streams.stream_parts import find_ends, forget_ends


logger = logging.get_logger(__name__)

SHOWN_FILES = 20  # names of files that are not used, in `meta.json`


def describe_request(preparer: RowPreparer) -> dict[str, Any]:
    """Return the entries of `meta.json` that say how rows are prepared, such as `model`, `adapter` and `max_length`.

    Prepared rows depend on these entries and on the content of the source only.

    Args:
        preparer: The `RowPreparer` that will turn the rows of the source into prepared rows. Only a short description
            of its source is kept.

    Raises:
        ValueError: If the token ids or sizes of model and processor differ.
    """
    opened = preparer.opened
    files = opened.unused_files
    more = [f"{len(files) - SHOWN_FILES} more"] if len(files) > SHOWN_FILES else []
    return {
        **fingerprint(preparer.model, preparer.processor),
        "adapter": opened.columns.adapter.name,
        "code_precision": PRECISION,
        "ignore": list(opened.ignore),
        "max_bad_share": preparer.bad_rows.max_share,
        "max_length": preparer.max_length,
        "source": describe(opened.source),
        "task": opened.task,
        "unused_columns": list(opened.columns.unused),
        "unused_files": files[:SHOWN_FILES] + more,
        "version": __version__,
    }


def begin(output: Path, meta: dict[str, Any], opened: OpenedSource) -> dict[str, Any]:
    """Write `meta.json` in the folder `output`, or check that an earlier run wrote the same request; return `meta`.

    A later run may ignore more content than an earlier one, if no finished shard can hold it: the earlier run would
    have refused it.

    Args:
        output: Folder for the prepared rows.
        meta: Result of `describe_request`, with the entries `source_rows`, `source_parts`, `options` and
            `rows_per_shard` added.
        opened: The source.

    Raises:
        ValueError: If the folder has shards (files of prepared rows) but no `meta.json`, or its rows were prepared
            with another model, processor or other arguments.
    """
    path = output / META
    if not path.exists():
        if shard_paths(output):
            raise ValueError(
                f"`output_dir` must be an empty folder, or an earlier run's with its {META}, got {str(output)!r}, "
                f"which has shards but no {META}: choose another folder, or delete this one."
            )
        # This is written before the first shard, so that a later run with other arguments is refused, and the folder
        # never holds rows of both.
        write_json(meta | {"complete": False}, path)
        return meta
    earlier = read_manifest(output)
    parts = {"model": meta["model"], "processor": meta["processor"]}
    check_fingerprint(earlier, parts, repr(str(output)))
    more = set(meta["ignore"]) - set(earlier.get("ignore", []))
    if more and not earlier["complete"] and more == opened.never_used(more):
        earlier["ignore"] = sorted({*earlier.get("ignore", []), *more})
        write_json(earlier, path)
    if earlier["complete"]:
        # What a run has prepared completely stays as it is when the run goes on with a later version of this package.
        accepted = max(meta["max_bad_share"], earlier.get("max_bad_share", 1))
        meta = meta | {"max_bad_share": accepted, "code_precision": earlier.get("code_precision")}
    elif (before := earlier.get("code_precision")) != PRECISION:
        raise ValueError(
            f"{str(output)!r} must hold image codes that were computed in {PRECISION} for the preparation to go on, "
            f"got code_precision={before!r}, of another version: choose another folder, or delete this one."
        )
    elif earlier.get("max_bad_share") != meta["max_bad_share"]:
        write_json(meta | {"complete": False}, path)  # `finish_prepared` reads it there
    for key in ("source", "source_rows", "options", "adapter", "task", "max_length", "rows_per_shard", "ignore"):
        before = earlier.get(key, [])  # early versions ignored nothing that a user named
        if before != meta[key]:
            raise ValueError(
                f"{str(output)!r} holds rows prepared with {key}={before!r}; now it is {meta[key]!r}. Choose "
                "another folder, or delete this one."
            )
    # Early versions did not divide streams into parts.
    if (before := earlier.get("source_parts")) != meta["source_parts"]:
        raise ValueError(
            f"{str(output)!r} holds rows of a stream of {before or 'an unknown number of'} parts (files); now it has "
            f"{meta['source_parts']}. Choose another folder, or delete this one."
        )
    return meta


def find_parts(output: Path, meta: Mapping[str, Any]) -> list[tuple[int, int]] | None:
    """Return the number of shards and of rows of each part of a stream; None if the ends of parts are not known yet.

    Args:
        output: Folder of the shards (files of prepared rows).
        meta: Dict that `begin` returned.
    """
    ends = find_ends(output, meta["source_parts"])
    if len(ends) < meta["source_parts"]:
        # Another process may have finished the folder, and taken away the files that `ends` is read from.
        known = read_manifest(output).get("parts")
        return None if known is None else [(shards, rows) for shards, rows in known]
    return [ends[part] for part in range(meta["source_parts"])]


def finish(output: Path, meta: dict[str, Any], total: int) -> PreparedDataset:
    """Write `index.arrow`, add the counts of rows to `meta.json`, mark it as complete, and return the prepared rows.

    The index holds the length, task and shard of every row. Any rank may call this, and several may at the same time:
    all of them write the same content.

    Args:
        output: Folder of the shards (files of prepared rows).
        meta: Dict that `begin` returned; of a stream, with the result of `find_parts` as `parts`.
        total: Number of shards that the whole source makes.

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
    late: set[str] = set()
    # Number in the source of the first row of each shard's part; rows of a stream are numbered by part until then.
    parts = meta.get("parts", [])
    firsts = accumulate((rows for _, rows in parts), initial=0)
    starts = [first for first, (shards, _) in zip(firsts, parts, strict=False) for _ in range(shards)]

    def tables() -> Iterator[pa.Table]:
        """Yield the table of each shard (Arrow file), in order, and collect its skipped rows and late columns."""
        # One shard is open at a time, because Linux allows a process only 65,530 memory maps.
        for path, start in zip(paths, starts or [0] * total, strict=True):
            table = read_whole(path)
            try:
                skipped.extend((start + row, *rest) for row, *rest in skipped_rows(table.schema))
                late.update(late_columns(table.schema))
            except (KeyError, TypeError, ValueError) as error:
                raise damaged(path, f"another list of skipped rows ({error})") from error
            yield table

    index = make_index(tables())
    meta = meta | counts(len(index), skipped) | {"complete": True, "num_shards": total}
    meta["index_checksum"] = index_checksum(index)
    meta["unused_columns"] = sorted({*meta.get("unused_columns", []), *late})
    report(meta)
    # `meta.json` is written last, because it says that everything else is there.
    write_shard(index, output / INDEX)
    write_json(meta, output / META)
    # Temporary files have unique names, so those of killed processes are not overwritten and must be deleted here.
    for left_by_a_kill in output.glob(".shard-*"):
        left_by_a_kill.unlink(missing_ok=True)
    forget_ends(output)
    return load_prepared(output)


@checked()
def finish_prepared(folder: str | os.PathLike[str]) -> None:
    """Finish a preparation that no rank could finish. Call it in one process, after `prepare` on all ranks.

    On a network file system, each rank may see the last shards (files of prepared rows) of other ranks late. Then
    every rank returns without having counted the rows; this function counts them and marks the folder as complete. It
    does nothing if the folder is complete, or if shards are missing.

    Args:
        folder: Folder that `prepare` wrote.
    """
    output = Path(folder)
    meta = read_manifest(output)
    if meta["complete"]:
        return
    if meta["source_rows"] is not None:
        total = -(-meta["source_rows"] // meta["rows_per_shard"])
    elif meta.get("source_parts") and (parts := find_parts(output, meta)) is not None:
        meta, total = meta | {"parts": parts}, sum(shards for shards, _ in parts)
    else:
        return
    if total and len(shard_paths(output)) == total:
        finish(output, meta, total)


def counts(num_rows: int, skipped: Skipped) -> dict[str, Any]:
    """Return the counts of a preparation, as they are written to `meta.json`.

    Args:
        num_rows: Number of prepared rows.
        skipped: `(number in the source, reason, message)` of every skipped row.

    Returns:
        A dict with `num_rows`, `skipped` (reason -> number of rows), `skipped_rows` (reason -> numbers of the first
        five of these rows) and `skipped_examples` (the first ten of `skipped`).
    """
    return {
        "num_rows": num_rows,
        "skipped": dict(Counter(reason for _, reason, _ in skipped)),
        "skipped_rows": first_rows(skipped),
        "skipped_examples": skipped[:10],
    }


def report(meta: dict[str, Any]) -> None:
    """Log a warning if rows were skipped or columns and files not used. Raise `ValueError` if too many were skipped.

    Args:
        meta: Entries of `meta.json`, including those that `counts` returns.
    """
    reasons = {"columns": "hold no content", "files": "hold no content, or are not of this split or configuration"}
    for kind, reason in reasons.items():
        if names := meta.get(f"unused_{kind}"):
            logger.warning(f"{meta['source']}: these {kind} are not used, because they {reason}: {', '.join(names)}")
    if meta["skipped"]:
        listing = ", ".join(f"{count} {reason}" for reason, count in sorted(meta["skipped"].items()))
        row, _, message = meta["skipped_examples"][0]
        summary = (
            f"{meta['source']}: kept {meta['num_rows']} rows, skipped {listing}. The first was row {row}: {message}"
        )
        if meta["num_rows"] == 0:
            raise ValueError(f"No row can be trained on. {summary}")
        check_counts(meta["source"], meta["num_rows"], meta["skipped"], meta["max_bad_share"], f"row {row}: {message}")
        logger.warning(f"{summary} Skipped: {list_rows(meta['skipped_rows'], meta['skipped'])}.")


__all__ = ["begin", "counts", "describe_request", "find_parts", "finish", "finish_prepared", "report"]
