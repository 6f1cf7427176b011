"""Functions that open the data sets that users name: a Hub id, files, folders or `datasets` objects.

Their images are left undecoded, because `datasets` raises an error at the first broken image file, whereas
`janus-hf prepare` skips the row, counts it and continues.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import datasets


Rows: TypeAlias = datasets.Dataset | datasets.IterableDataset
"""Rows of an opened source: a data set, or a stream of unknown length."""

Source: TypeAlias = str | os.PathLike[str] | Sequence[Mapping[str, Any]] | Rows
"""What a user may name as a source; see `open_source`."""

# Suffix of a file -> name of the `datasets` builder that reads such files.
_FORMATS = {".parquet": "parquet", ".jsonl": "json", ".json": "json", ".csv": "csv", ".tar": "webdataset"}


def open_source(source: Source, *, split: str = "train", **options: Any) -> Rows:
    """Open a source and return its rows in a fixed order, with images of `Image` columns as `{"bytes", "path"}` dicts.

    Args:
        source: A `datasets.Dataset` or `IterableDataset`; a list of rows; the path or glob pattern of .parquet,
            .jsonl, .json, .csv or .tar (WebDataset) files; a folder of such files, of images (imagefolder) or of
            `Dataset.save_to_disk`; or the id of a data set on the Hub.
        split: Name of the split to read, if the source is a folder or a data set on the Hub.
        options: Further arguments of `datasets.load_dataset`, such as `name`, `data_files`, `revision` or `streaming`.

    Raises:
        FileNotFoundError: If `datasets` finds nothing to open.
        ValueError: If `datasets` cannot read what it finds, the source has several splits, or it is empty.
        TypeError: If `source` is of another type.
    """
    dataset = source if not isinstance(source, (str, os.PathLike)) else _load(os.fspath(source), split, options)
    if isinstance(dataset, Mapping):
        raise ValueError(f"`source` must be one split, got a dictionary of {sorted(dataset)}: pass dataset[split].")
    if isinstance(dataset, Sequence) and not isinstance(dataset, datasets.Dataset):
        # `from_list` would read only the columns of the first row.
        columns = list(dict.fromkeys(name for row in dataset for name in row))
        dataset = datasets.Dataset.from_list([{name: row.get(name) for name in columns} for row in dataset])
    if not isinstance(dataset, (datasets.Dataset, datasets.IterableDataset)):
        raise TypeError(
            "`source` must be a path, a Hub id, a list of rows or a datasets.Dataset, got "
            f"{type(dataset).__name__}: convert it to one of these."
        )
    if isinstance(dataset, datasets.Dataset) and len(dataset) == 0:
        raise empty_source(source)
    return _undecoded(dataset)


def empty_source(source: Source) -> ValueError:
    """Return, without raising it, the error for a source that has no rows."""
    return ValueError(f"`source` must have rows, got {describe(source)}, which is empty: leave it out.")


def column_names(dataset: Rows, source: Source) -> list[str]:
    """Return the column names of an opened source. For a stream without known columns, its first row is read.

    Args:
        dataset: Rows that `open_source` returned.
        source: The source as the user named it, for the error message.

    Raises:
        ValueError: If there are no columns, which means that the source has no rows.
    """
    if names := list(dataset.column_names or next(iter(dataset), {})):
        return names
    raise empty_source(source)


def class_names(dataset: Rows) -> list[str] | None:
    """Return the names of the classes in the column `label`; None unless it is a column of type `ClassLabel`."""
    feature = (dataset.features or {}).get("label")
    return list(feature.names) if isinstance(feature, datasets.ClassLabel) else None


def source_folder(source: Source) -> str:
    """Return the folder that relative image paths in the rows of a source start from.

    It is the source itself if that is a folder, the parent of any other path, and "." for rows in memory.
    """
    if isinstance(source, (str, os.PathLike)):
        path = Path(source)
        return str(path if path.is_dir() else path.parent)
    return "."


def describe(source: Source) -> str:
    """Return a short name of a source for messages and `meta.json`: its path or Hub id, or the name of its type."""
    if isinstance(source, (str, os.PathLike)):
        return os.fspath(source)
    return f"{type(source).__module__.split('.')[0]}.{type(source).__name__}"


def _load(source: str, split: str, options: dict[str, Any]) -> Any:
    """Load local files, a folder or a data set on the Hub, whichever `source` names, and return the data set."""
    suffix = _FORMATS.get(Path(source).suffix)
    # A glob pattern names local files, although no file has its name.
    is_local = os.path.exists(source) or any(mark in source for mark in "*?[")
    if is_local and suffix and not os.path.isdir(source):
        return datasets.load_dataset(suffix, data_files={split: source}, split=split, **options)
    # `load_dataset` refuses a folder that `save_to_disk` wrote. The file state.json tells such a folder.
    if os.path.isdir(source) and Path(source, "state.json").is_file():
        return datasets.load_from_disk(source)
    return datasets.load_dataset(source, split=split, **options)


def _undecoded(dataset: Rows) -> Rows:
    """Return the data set with decoding turned off in its columns of images and of lists of images."""
    for name, feature in (dataset.features or {}).items():
        if isinstance(feature, datasets.Image):
            dataset = dataset.cast_column(name, datasets.Image(decode=False))
        elif isinstance(feature, datasets.List) and isinstance(feature.feature, datasets.Image):
            dataset = dataset.cast_column(name, datasets.List(datasets.Image(decode=False)))
    return dataset


__all__ = ["Rows", "Source", "class_names", "column_names", "describe", "empty_source", "open_source", "source_folder"]
