"""Functions that read files of tables, and name the file, line and columns where they cannot be read together."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import datasets
import fsspec
from datasets.exceptions import DatasetBuildError
from fsspec.utils import infer_compression

from ..streams.addresses import path_in, version_of, without_secrets
from .refusals import SourceError


Rows: TypeAlias = datasets.Dataset | datasets.IterableDataset

# Suffix of a file -> its format.
FORMATS = {
    ".parquet": "parquet",
    ".jsonl": "json",
    ".json": "json",
    ".ndjson": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".arrow": "arrow",
    ".tar": "webdataset",
    ".tgz": "webdataset",
    ".txt": "text",
}
# Format -> `datasets` builder and its arguments, where its name is another one.
_BUILDERS: dict[str, tuple[str, dict[str, Any]]] = {"tsv": ("csv", {"sep": "\t"})}
_COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
# `datasets` decompresses files of these formats.
_MAY_BE_COMPRESSED = {
    **dict.fromkeys(("json", "csv", "tsv", "text"), _COMPRESSED),
    "webdataset": (".gz", ".bz2", ".xz"),
}


def file_format(name: str) -> str | None:
    """Return the format of a file by its name, such as "json" for `rows.jsonl.gz`, or None if it is not known."""
    path = Path(name)
    last = path.suffix.lower()
    if last not in _COMPRESSED:
        return FORMATS.get(last)
    inner = FORMATS.get(Path(path.stem).suffix.lower())
    return inner if inner is not None and last in _MAY_BE_COMPRESSED.get(inner, ()) else None


def load_tables(
    kind: str, files: Mapping[str, Sequence[str]], split: str, options: Mapping[str, Any] | None = None
) -> Rows:
    """Read files of one format together.

    Args:
        kind: A format of `FORMATS`.
        files: Split -> paths of its files, in the order of their rows.
        split: The split to read, as `datasets` writes it, such as "train[:10%]+test".
        options: Further arguments of `datasets.load_dataset`.

    Raises:
        SourceError: If a file cannot be read, or has other columns than the first.
        ValueError: If there is no such split.
    """
    builder, arguments = _BUILDERS.get(kind, (kind, {}))
    arguments = arguments | dict(options or {})
    data = {name: list(paths) for name, paths in files.items()}
    every = [path for paths in data.values() for path in paths]
    if not arguments.get("streaming") and (version := version_of(every, arguments)) is not None:
        cache = arguments.get("cache_dir") or datasets.config.HF_DATASETS_CACHE
        arguments["cache_dir"] = str(Path(cache, "versions", version))
    # Files at addresses are not opened before their rows are read, because there may be thousands.
    if arguments.get("streaming") and len(every) > 1 and "://" not in every[0]:
        _check_columns(kind, builder, every, arguments)
    try:
        with _silence():
            return datasets.load_dataset(builder, data_files=data, split=split, **arguments)
    except Exception as error:  # file systems and readers raise errors of all kinds
        _check_columns(kind, builder, every, arguments)
        if isinstance(error, ValueError) and not isinstance(error, DatasetBuildError):
            raise  # a split that does not exist, for example
        raise SourceError(
            f"The files of the source must be readable as {kind}, got {without_secrets(every[0])!r}: {_reason(error)}"
        ) from error


def unreadable_row(number: int, place: str, file: str | None, error: Exception) -> SourceError:
    """Return, without raising it, the error for a row of a stream that cannot be read. It names the line, if it can.

    Args:
        number: Number of the row in the source, or in the part of it that `place` names, from 0.
        place: Words for the source or the part.
        file: Path or address of the file; None if it is not known.
        error: The error.
    """
    kind = None if file is None else file_format(path_in(file))
    reason = _reason(error) if file is None or kind is None else _find_line(file, kind, error)
    return SourceError(
        f"All rows of {place} must be readable, got an error at about row {number}: {reason}. Correct or delete that "
        "line without moving those before it, or remove what hinders reading, and run the same again, which goes on "
        "where it stopped."
    )


def _check_columns(kind: str, builder: str, paths: Sequence[str], options: Mapping[str, Any]) -> None:
    """Raise `SourceError` for the first file that cannot be read alone, or has other columns than the first file.

    Rows of a stream need not have all columns.
    """
    is_stream = bool(options.get("streaming"))
    first: dict[str, Any] = {}
    for path in paths:
        try:
            with _silence(bars=True):
                rows = datasets.load_dataset(builder, data_files=[path], split="train", **options)
                columns = dict(rows.features or dict.fromkeys(next(iter(rows), {})))
        except Exception as error:  # file systems and readers raise errors of all kinds
            raise SourceError(
                f"The files of the source must be readable as {kind}, got {without_secrets(path)!r}, which is not: "
                f"{_find_line(path, kind, error)}. Correct it or leave it out."
            ) from None
        first = first or columns
        if is_stream and all(name in first for name in columns):
            continue
        # The order of columns matters to some builders.
        if list(columns) != list(first):
            more = [name for name in columns if name not in first]
            less = [name for name in first if name not in columns]
            same = "the same ones in another order"
            what = " and ".join(
                [*([f"the columns {more}"] if more else []), *([f"no columns {less}"] if less else [])] or [same]
            )
            raise SourceError(
                f"The files of a source must have the same columns, got {path!r} with {what}, unlike {paths[0]!r}, "
                f"which has {list(first)}: rename the columns, or make each form a source of its own."
            )
        if not is_stream and (other := [name for name in first if not _agree(first[name], columns[name])]):
            name = other[0]
            raise SourceError(
                f"The files of a source must have columns of the same types, got {path!r} with {name!r} as "
                f"{_short(columns[name])}, unlike {paths[0]!r}, where it is {_short(first[name])}: write them alike."
            )


def _agree(one: Any, other: Any) -> bool:
    """Return whether columns of these features can be in one data set; one without values can be of any type."""
    null = datasets.Value("null")
    return one == other or null in (one, other)


def _short(feature: Any) -> str:
    """Return a short description of a feature."""
    return feature.dtype if isinstance(feature, datasets.Value) else str(feature)[:100]


def _find_line(path: str, kind: str, error: BaseException) -> str:
    """Return what is wrong with a file, with the number of the line if its rows are lines of JSON."""
    reason = _reason(error)
    if kind != "json":
        return reason
    known: dict[str, None] = {}
    try:
        for number, (read, line) in enumerate(_read_lines(path), 1):
            if number == 1 and line.lstrip().startswith(b"["):
                return reason
            if not line.strip():
                continue
            row = json.loads(line.strip())
            # `datasets` cannot read half of a pair of surrogates ("\\ud83d").
            json.dumps(row, ensure_ascii=False).encode()
            if not isinstance(row, dict):
                return f"line {number} must be a dict, got {str(row)[:100]}"
            late = [name for name in row if name not in known]
            if late and read > _CHUNK:
                return (
                    f"line {number} has the columns {late}, which the first lines lack: give them to the first line "
                    "too, with a value of the same type"
                )
            known |= dict.fromkeys(row)
    except (ValueError, RecursionError) as wrong:
        return f"line {number} is not JSON ({_reason(wrong)})"
    except OSError as wrong:
        return _reason(wrong)
    return reason


# `datasets` learns the columns from this many bytes of a file.
_CHUNK = 10 << 20


def _read_lines(path: str) -> Iterator[tuple[int, bytes]]:
    """Yield the number of bytes before each line of a file, which may be compressed, and the line."""
    read = 0
    compression = infer_compression(path_in(path))
    if compression is None and path_in(path).endswith(_COMPRESSED):
        raise OSError(f"{without_secrets(path)!r} is compressed in a way for which a package is missing")
    with fsspec.open(path, "rb", compression=compression) as file:
        for line in file:
            yield read, line.removeprefix(b"\xef\xbb\xbf") if read == 0 else line
            read += len(line)


def _reason(error: BaseException) -> str:
    """Return the message of the first cause of an error, on one line."""
    while (cause := error.__cause__) is not None:
        error = cause
    return " ".join(str(error).split())[:300] or type(error).__name__


@contextmanager
def _silence(*, bars: bool = False) -> Iterator[None]:
    """Keep `datasets` from writing its own messages about files that it cannot read, and progress bars if `bars`."""
    level = datasets.utils.logging.get_verbosity()
    had_bars = datasets.utils.is_progress_bar_enabled()
    datasets.utils.logging.set_verbosity(datasets.utils.logging.CRITICAL)
    if bars:
        datasets.utils.disable_progress_bars()
    try:
        yield
    finally:
        datasets.utils.logging.set_verbosity(level)
        if bars and had_bars:
            datasets.utils.enable_progress_bars()


__all__ = ["FORMATS", "Rows", "file_format", "load_tables", "unreadable_row"]
