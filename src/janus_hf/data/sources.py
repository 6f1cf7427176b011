"""Opening what users bring: a Hub id, files or folders, or `datasets` objects, with their pictures left undecoded.

Undecoded, because `datasets` raises on the first broken file; preparation counts it and goes on.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets


_FORMATS = {".parquet": "parquet", ".jsonl": "json", ".json": "json", ".csv": "csv", ".tar": "webdataset"}


def open_source(source: Any, *, split: str = "train", **options: Any) -> datasets.Dataset | datasets.IterableDataset:
    """A source -> rows in a fixed order, `Image` columns as `{"bytes", "path"}`.

    Args:
        source: A `datasets.Dataset` or `IterableDataset`; a list of rows; the path or glob pattern of .parquet,
            .jsonl, .json, .csv or .tar (WebDataset) files; a folder of such files, of pictures (imagefolder) or of
            `Dataset.save_to_disk`; or the id of a data set on the Hub.
        split: Of folders and Hub ids.
        options: For `datasets.load_dataset`: `name`, `data_files`, `revision`, `streaming`, `cache_dir`, ...

    Raises:
        FileNotFoundError, ValueError: From `datasets`, where there is nothing to open; or the source is empty.
    """
    dataset = source if not isinstance(source, (str, os.PathLike)) else _load(os.fspath(source), split, options)
    if isinstance(dataset, Mapping):
        raise ValueError(f"Expected one split; got a dictionary of {sorted(dataset)}. Pass dataset[split].")
    if isinstance(dataset, Sequence) and not isinstance(dataset, datasets.Dataset):
        columns = list(dict.fromkeys(name for row in dataset for name in row))  # from_list asks the first row only
        dataset = datasets.Dataset.from_list([{name: row.get(name) for name in columns} for row in dataset])
    if not isinstance(dataset, (datasets.Dataset, datasets.IterableDataset)):
        raise TypeError(
            f"Expected a path, a Hub id, a list of rows or a datasets.Dataset; got {type(dataset).__name__}."
        )
    if isinstance(dataset, datasets.Dataset) and len(dataset) == 0:
        raise ValueError(f"Expected rows; the source {describe(source)} is empty.")
    return _undecoded(dataset)


def column_names(dataset: datasets.Dataset | datasets.IterableDataset, source: Any) -> list[str]:
    """Streams may not know their columns before the first row.

    Raises:
        ValueError: There is none; `source`, which the rows came from, is named.
    """
    if names := list(dataset.column_names or next(iter(dataset), {})):
        return names
    raise ValueError(f"Expected rows; the source {describe(source)} is empty.")


def class_names(dataset: datasets.Dataset | datasets.IterableDataset) -> list[str] | None:
    """Names of the classes in the `label` column, if it has any."""
    feature = (dataset.features or {}).get("label")
    return list(feature.names) if isinstance(feature, datasets.ClassLabel) else None


def source_folder(source: Any) -> str:
    """Where relative picture paths in the rows start: beside the file, or in the folder, that was given."""
    if isinstance(source, (str, os.PathLike)):
        path = Path(source)
        return str(path if path.is_dir() else path.parent)
    return "."


def describe(source: Any) -> str:
    """A short name for messages and `meta.json`."""
    if isinstance(source, (str, os.PathLike)):
        return os.fspath(source)
    return f"{type(source).__module__.split('.')[0]}.{type(source).__name__}"


def _load(source: str, split: str, options: dict[str, Any]) -> Any:
    suffix = _FORMATS.get(Path(source).suffix)
    is_local = os.path.exists(source) or any(mark in source for mark in "*?[")
    if is_local and suffix and not os.path.isdir(source):
        return datasets.load_dataset(suffix, data_files={split: source}, split=split, **options)
    if os.path.isdir(source) and Path(source, "state.json").is_file():
        return datasets.load_from_disk(source)
    return datasets.load_dataset(source, split=split, **options)


def _undecoded(dataset: Any) -> Any:
    for name, feature in (dataset.features or {}).items():
        if isinstance(feature, datasets.Image):
            dataset = dataset.cast_column(name, datasets.Image(decode=False))
        elif isinstance(feature, datasets.List) and isinstance(feature.feature, datasets.Image):
            dataset = dataset.cast_column(name, datasets.List(datasets.Image(decode=False)))
    return dataset
