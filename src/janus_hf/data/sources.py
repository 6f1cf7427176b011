"""Functions that open the data sets that users name: a Hub id, files, folders or `datasets` objects.

Their images are left undecoded, because `datasets` raises an error at the first broken image file, whereas
`janus-hf prepare` skips the row, counts it and continues.
"""

import base64
import io
import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from glob import glob
from pathlib import Path
from typing import Any, TypeAlias

import datasets
import pyarrow as pa
from PIL import Image

from ..processing import load_picture
from .reading.folder_files import is_about
from .reading.folders import OpenedFolder, is_ignored, split_names, undecoded
from .reading.repositories import is_repository, open_any_folder, open_repository, repository_root
from .reading.tables import FORMATS, Rows, file_format, load_tables, unreadable_row
from .streams.addresses import (
    folder_of,
    hub_address,
    is_address,
    list_files,
    local_path,
    path_in,
    refuse_path,
    without_secrets,
)


Source: TypeAlias = str | os.PathLike[str] | Sequence[Mapping[str, Any]] | Rows
"""What a user may name as a source; see `open_source`."""

_SAVED = ("state.json", "dataset_dict.json")  # files that `save_to_disk` writes


def open_source(source: Source, *, split: str = "train", **options: Any) -> Rows:
    """Open a source and return its rows in a fixed order, with images of `Image` columns as `{"bytes", "path"}` dicts.

    Args:
        source: A `datasets.Dataset` or `IterableDataset`; a list of rows; the path or glob pattern of .parquet,
            .jsonl, .json, .csv, .tsv, .txt, .arrow or .tar (WebDataset) files, which may be compressed; the address
            of such files, also as a pattern, that fsspec reads (`s3://`, `https://`, `hf://`, ...); a folder of
            such files, of images (imagefolder) or of `Dataset.save_to_disk`; or the id of a data set on the Hub.
        split: Name of the split to read, if the source is a folder or a data set on the Hub.
        options: Further arguments of `datasets.load_dataset`, such as `name`, `data_files`, `revision`, `streaming` or
            `storage_options` (arguments of the fsspec file system of an address).

    Raises:
        FileNotFoundError: If there is nothing to open.
        ValueError: If `datasets` cannot read what it finds, the source has several splits, or it is empty.
        SourceError: If a file cannot be read, has other columns than the first, or its content would be lost.
        TypeError: If `source` is of another type.
    """
    return open_files(source, split=split, **options).rows


def open_files(source: Source, *, split: str = "train", ignore: Collection[str] = (), **options: Any) -> OpenedFolder:
    """Open a source like `open_source`, and return its rows with the names of the files that they do not come from.

    Args:
        source: See `open_source`, also for `split` and `options`.
        ignore: Names of the files of a folder that may be lost; they may hold wildcards.
    """
    opened = None
    if isinstance(source, (str, os.PathLike)):
        if not isinstance(source, str):
            refuse_path(source)
        path = hub_address(local_path(os.fspath(source)))
        arguments: dict[str, Any] = {"split": split, "ignore": ignore, "options": options}
        if _is_unsaved_folder(path) and not {"data_files", "data_dir"} & set(options):
            opened = open_any_folder(Path(path), **arguments)
        elif _names_local_files(path):
            opened = _open_local_files(path, **arguments)
        elif is_address(path):
            opened = _open_files(path, list_files(path, options), **arguments)
        elif is_repository(path) and not os.path.isdir(path) and not {"data_files", "data_dir"} & set(options):
            opened = open_repository(path, **arguments)
        if opened is None:
            root = repository_root(path, options) if is_repository(path) and not os.path.isdir(path) else None
            opened = OpenedFolder(_load(path, split, options), *_saved_files(path, split, ignore), root=root)
        dataset: Any = opened.rows
    else:
        _refuse_options(split, options, "rows in memory")
        dataset = source
    if isinstance(dataset, Mapping):
        raise ValueError(f"`source` must be one split, got a dictionary of {sorted(dataset)}: pass dataset[split].")
    if isinstance(dataset, Sequence) and not isinstance(dataset, datasets.Dataset):
        # `from_list` would read only the columns of the first row.
        columns = list(dict.fromkeys(name for row in dataset for name in row))
        rows = [{name: row.get(name) for name in columns} for row in dataset]
        try:
            dataset = datasets.Dataset.from_list(rows)
        except pa.ArrowInvalid:  # contents of messages may be strings in one row, and lists of parts in another
            dataset = datasets.Dataset.from_list(_without_objects(rows), on_mixed_types="use_json")
    if not isinstance(dataset, (datasets.Dataset, datasets.IterableDataset)):
        raise TypeError(
            "`source` must be a path, a Hub id, a list of rows or a datasets.Dataset, got "
            f"{type(dataset).__name__}: convert it to one of these."
        )
    if isinstance(dataset, datasets.Dataset) and len(dataset) == 0:
        raise empty_source(source)
    return replace(opened or OpenedFolder(dataset, [], []), rows=undecoded(dataset))


def empty_source(source: Source) -> ValueError:
    """Return, without raising it, the error for a source that has no rows."""
    return ValueError(f"`source` must have rows, got {describe(source)}, which is empty: leave it out.")


def column_names(dataset: Rows, source: Source, files: Sequence[str] = ()) -> list[str]:
    """Return the column names of an opened source. For a stream without known columns, its first row is read.

    Args:
        dataset: Rows that `open_source` returned.
        source: The source as the user named it, for the error message.
        files: The files that the rows come from, if they are known.

    Raises:
        SourceError: If the first row of a file cannot be read.
        ValueError: If there are no columns, which means that the source has no rows.
    """
    if not (names := list(dataset.column_names or ())):
        try:
            names = list(next(iter(dataset), {}))
        except Exception as error:  # `datasets`, its file systems and its readers raise errors of all kinds
            if not files:
                raise
            raise unreadable_row(0, f"the source ({describe(files[0])})", files[0], error) from error
    if names:
        return names
    raise empty_source(source)


def class_names(dataset: Rows) -> list[str] | None:
    """Return the names of the classes in the column `label`; None unless it is a column of type `ClassLabel`."""
    feature = (dataset.features or {}).get("label")
    return list(feature.names) if isinstance(feature, datasets.ClassLabel) else None


def source_folder(source: Source) -> str:
    """Return the folder that relative image paths in the rows of a source start from.

    It is the source itself if that is a folder, the parent of any other path or address, and "." for rows in memory. A
    glob pattern starts from the folder before its first wildcard.
    """
    if isinstance(source, str) and is_address(source):
        return folder_of(source)
    if isinstance(source, (str, os.PathLike)):
        path = Path(local_path(os.fspath(source)))
        while _has_wildcards(str(path.parent)) and not path.exists():
            path = path.parent
        return str(path if path.is_dir() else path.parent)
    return "."


def describe(source: Source) -> str:
    """Return a short name of a source for messages and `meta.json`: its path or Hub id, or the name of its type.

    An address has no secrets: neither a password nor a signature.
    """
    if isinstance(source, (str, os.PathLike)):
        return without_secrets(os.fspath(source))
    return f"{type(source).__module__.split('.')[0]}.{type(source).__name__}"


def is_elsewhere(source: Source) -> bool:
    """Return whether a source is not on this machine: at an address, or on the Hub."""
    if not isinstance(source, (str, os.PathLike)):
        return False
    path = local_path(os.fspath(source))
    return not os.path.exists(path) and not _names_local_files(path)


def _is_unsaved_folder(source: str) -> bool:
    """Return whether a source is a local folder that `save_to_disk` did not write."""
    return os.path.isdir(source) and not any(Path(source, name).is_file() for name in _SAVED)


def _saved_files(source: str, split: str, ignore: Collection[str]) -> tuple[list[str], list[str]]:
    """Return the files of a folder of `save_to_disk` that do not belong to a split of it, and all of its files."""
    if not os.path.isdir(source):
        return [], []
    names = [path.relative_to(source).as_posix() for path in sorted(Path(source).rglob("*")) if path.is_file()]
    folder = "" if Path(source, "state.json").is_file() else f"{split}/"
    own = [
        name for name in names if name.startswith(folder) and name.endswith((".arrow", *_SAVED, "dataset_info.json"))
    ]
    return [name for name in names if name not in (*own, *_SAVED) and not is_ignored(name, ignore)], names


def _names_local_files(source: str) -> bool:
    """Return whether a source names a local file, which may be missing, or is a glob pattern for local files."""
    if "://" in source or os.path.isdir(source):
        return False
    # Names of builders of `datasets`, such as "json", and those of early data sets, such as "mnist", have one part.
    is_elsewhere = is_repository(source) or re.fullmatch(r"[\w-]+", source) is not None
    is_name = file_format(source) is not None or not is_elsewhere
    return is_name or os.path.exists(source) or _has_wildcards(source)


def _has_wildcards(path: str) -> bool:
    """Return whether a path is a glob pattern."""
    return any(mark in path for mark in "*?[")


def _open_local_files(source: str, *, split: str, ignore: Collection[str], options: Mapping[str, Any]) -> OpenedFolder:
    """Open a local file, or all files that a glob pattern matches, whose names tell their format.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the files are of several formats, or of one that cannot be read.
        SourceError: If a file cannot be read, or has other columns than the first.
    """
    is_file = os.path.exists(source)
    names = [source] if is_file else sorted(glob(source, recursive=True))
    folders = [name for name in names if os.path.isdir(name)]
    if "**" not in source and (lost := [name for name in folders if not is_ignored(name, ignore)]):
        raise ValueError(
            f"`source` must name files, got {source!r}, which matches the folder {lost[0]!r} too: name the folder "
            "alone, or files by their suffix, as in '*.jsonl'."
        )
    names = [name for name in names if name not in folders]
    if not names:
        raise FileNotFoundError(
            f"`source` must be a file, a folder or the id of a data set on the Hub, got {source!r}, which does not "
            "exist here: correct the path."
        )
    return _open_files(source, names, split=split, ignore=ignore, options=options)


def _open_files(
    source: str, names: Sequence[str], *, split: str, ignore: Collection[str], options: Mapping[str, Any]
) -> OpenedFolder:
    """Open files, local or at an address, whose names tell their format; see `open_files` for the arguments.

    Args:
        source: The path, the address or the pattern that names the files.
        names: Their paths or addresses.

    Raises:
        ValueError: If the files are of several formats, or of one that cannot be read.
        SourceError: If a file cannot be read, or has other columns than the first.
    """
    about = []
    if list(names) != [source]:
        about = [name for name in names if is_about(os.path.relpath(name, source_folder(source)))]
    kept = [name for name in names if name not in about and not is_ignored(name, ignore)]
    if not kept:
        raise FileNotFoundError(
            f"`source` must name files of data, got {describe(source)!r}, of which none is left: correct it, or "
            "ignore fewer files."
        )
    kinds = {name: file_format(path_in(name)) for name in kept}
    example = {kind: name for name, kind in kinds.items()}
    if None in example:
        raise ValueError(
            f"`source` must name files that can be read by themselves ({', '.join(FORMATS)}, most of them also "
            f"compressed, as .jsonl.gz), got {example[None]!r}: name the folder of images, captions or metadata, or "
            "save the data in one of these formats."
        )
    if len(example) != 1:
        raise ValueError(
            f"`source` must name files of one format, got {sorted(example.values())[:5]}: make each format a source "
            "of its own."
        )
    (kind,) = example
    rows = load_tables(str(kind), {split_names(split)[0]: kept}, split, options)
    return OpenedFolder(rows, about, [Path(path_in(name)).name for name in names], files=kept)


def _load(source: str, split: str, options: dict[str, Any]) -> Any:
    """Load a saved folder or a data set on the Hub, whichever `source` names; return the data set."""
    # `load_dataset` refuses a folder that `save_to_disk` wrote.
    if Path(source, "state.json").is_file():
        _refuse_options(split, options, "a data set that was saved without splits")
        return datasets.load_from_disk(source)
    if Path(source, "dataset_dict.json").is_file():
        _refuse_options("train", options, "a saved data set")
        return datasets.load_from_disk(source)[split]
    return datasets.load_dataset(source, split=split, **options)


def _without_objects(value: Any) -> Any:
    """Return a value of a row with images and bytes as `data:` URLs, which JSON can hold; pixels do not change."""
    if isinstance(value, Mapping):
        return {key: _without_objects(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_objects(item) for item in value]
    if isinstance(value, Image.Image):
        buffer = io.BytesIO()
        load_picture(value).save(buffer, format="PNG")
        value = buffer.getvalue()
    return f"data:image/png;base64,{base64.b64encode(value).decode()}" if isinstance(value, bytes) else value


def _refuse_options(split: str, options: Mapping[str, Any], kind: str) -> None:
    """Raise `ValueError` if a split or options are given for a source that has neither."""
    names = [*(["split"] if split != "train" else []), *options]
    if names:
        raise ValueError(f"`source` must be a path or a Hub id to have {names}, got {kind}: leave them out.")


__all__ = [
    "Rows",
    "Source",
    "class_names",
    "column_names",
    "describe",
    "empty_source",
    "is_elsewhere",
    "open_files",
    "open_source",
    "source_folder",
]
