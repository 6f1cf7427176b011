"""Functions that open the data sets that users name: a Hub id, files, folders or `datasets` objects.

Their images are left undecoded, because `datasets` raises an error at the first broken image file, whereas
`janus-hf prepare` skips the row, counts it and continues.
"""

import base64
import io
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias, cast

import datasets
import pyarrow as pa
from PIL import Image

from ..processing import load_picture
from .integrity.bad_lines import name_bad_lines
from .reading.folder_files import BUILDERS
from .reading.folders import OpenedFolder, Rows, has_own_configuration, open_folder, undecoded


Source: TypeAlias = str | os.PathLike[str] | Sequence[Mapping[str, Any]] | Rows
"""What a user may name as a source; see `open_source`."""


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
        SourceError: If the source is a folder with a file whose content would be lost.
        TypeError: If `source` is of another type.
    """
    return open_files(source, split=split, **options).rows


def open_files(source: Source, *, split: str = "train", ignore: Collection[str] = (), **options: Any) -> OpenedFolder:
    """Open a source like `open_source`, and return its rows with the names of the files that they do not come from.

    Args:
        source: See `open_source`, also for `split` and `options`.
        ignore: Names of the files of a folder that may be lost; they may hold wildcards.
    """
    try:
        return _open(source, split, ignore, options)
    except datasets.exceptions.DatasetGenerationError as error:
        # Only files are read here, so rows in memory do not come this way.
        raise name_bad_lines(cast("str", source), error) from error


def _open(source: Source, split: str, ignore: Collection[str], options: dict[str, Any]) -> OpenedFolder:
    """Open a source; see `open_files`, which names the lines that cannot be read."""
    unused, names = [], []
    if isinstance(source, (str, os.PathLike)):
        path = os.fspath(source)
        if _is_data_folder(path) and not {"data_files", "data_dir"} & set(options):
            opened = open_folder(Path(path), split=split, ignore=ignore, options=options)
            dataset, unused, names = opened.rows, opened.unused, opened.names
        else:
            dataset = _load(path, split, options)
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
    return OpenedFolder(undecoded(dataset), unused, names)


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


def _is_data_folder(source: str) -> bool:
    """Return whether a source is a local folder whose files are to be sorted by what they hold.

    Folders that `save_to_disk` wrote, and those whose README.md lists their data files, say themselves what they hold.
    """
    saved = any(Path(source, name).is_file() for name in ("state.json", "dataset_dict.json"))
    return os.path.isdir(source) and not saved and not has_own_configuration(Path(source))


def _load(source: str, split: str, options: dict[str, Any]) -> Any:
    """Load local files, a folder or a data set on the Hub, whichever `source` names, and return the data set."""
    suffix = BUILDERS.get(Path(source).suffix)
    # A glob pattern names local files, although no file has its name.
    is_local = os.path.exists(source) or any(mark in source for mark in "*?[")
    if is_local and suffix and not os.path.isdir(source):
        return datasets.load_dataset(suffix, data_files={split: source}, split=split, **options)
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
    "open_files",
    "open_source",
    "source_folder",
]
