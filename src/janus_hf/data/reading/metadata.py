"""`load_metadata`, which reads `metadata.jsonl`, `.csv` or `.parquet`, whose rows name the images of their folder."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets

from .refusals import SourceError
from .tables import file_format, load_tables


def load_metadata(paths: Sequence[str], options: Mapping[str, Any], *, root: Path) -> datasets.Dataset:
    """Read the metadata files of a folder as one data set, which has the columns of all of them.

    As in `datasets`, `file_name` becomes `image`, and `mask_file_name` becomes `mask`. But `datasets` reads all files
    with the columns of the first, and drops other columns.

    Args:
        paths: Paths of the files. Images are named relative to their folders.
        options: Further arguments of `datasets.load_dataset`.
        root: Folder of the source, which all images must be in: a data set from the Hub must not read other files.

    Raises:
        SourceError: If a file cannot be read or names no images, if an image lies outside `root`, or if a column has
            other types in another file.
    """
    parts = []
    for path in paths:
        rows = load_tables(file_format(path) or "", {"train": [path]}, "train", options)
        folder = Path(path).absolute().parent
        renamed = {name: new for name in rows.column_names if (new := _image_column(name)) is not None}
        if twice := [new for new in renamed.values() if new in rows.column_names]:
            raise SourceError(
                f"A metadata file must have each image once, got {path!r} with {twice[0]!r} and with a column that "
                "names its file: rename one of them."
            )
        if not any(map(_names_images, rows)):
            raise SourceError(
                f"A metadata file must have a column 'file_name', got {path!r} with {rows.column_names}: add it, or "
                "rename the file."
            )
        places = {"folder": str(folder), "root": str(root.absolute())}
        parts.append(rows.map(_place, fn_kwargs=places, remove_columns=list(renamed)))
    try:
        return datasets.concatenate_datasets(parts)
    except ValueError as error:
        raise SourceError(
            f"The metadata files of a folder must have columns of the same types, got {list(paths)[:5]}: write them "
            f"alike. {' '.join(str(error).split())[:300]}"
        ) from None


def _image_column(name: str) -> str | None:
    """Return the name of the column of images for a column with the names of their files; None for other columns."""
    for ending, new in (("file_name", "image"), ("file_names", "images")):
        if name == ending or name.endswith(f"_{ending}"):
            return name.removesuffix(ending).removesuffix("_") or new
    return None


def _names_images(value: Any) -> bool:
    """Return whether a row, or a value of it, has a key with names of image files."""
    if isinstance(value, Mapping):
        return any(_image_column(name) is not None or _names_images(item) for name, item in value.items())
    return isinstance(value, list) and any(map(_names_images, value))


def _place(value: Any, folder: str, root: str) -> Any:
    """Return a value of a row, or a row, in which names of image files have become paths."""
    if isinstance(value, Mapping):
        return {
            _image_column(name) or name: _join(item, folder, root)
            if _image_column(name)
            else _place(item, folder, root)
            for name, item in value.items()
        }
    return [_place(item, folder, root) for item in value] if isinstance(value, list) else value


def _join(value: Any, folder: str, root: str) -> Any:
    """Return the path of an image file, or a list of paths, for names relative to a folder; addresses stay.

    Raises:
        SourceError: If the path leaves `root`.
    """
    if isinstance(value, list):
        return [_join(item, folder, root) for item in value]
    if not isinstance(value, str) or not value or "://" in value:
        return value
    # Links are not followed: the files of a downloaded data set are links into the cache of the Hub.
    path = Path(os.path.normpath(Path(folder, value)))
    if not path.is_relative_to(root):
        raise SourceError(
            f"A metadata file must name images inside the folder of its data set, {root!r}, got {value!r}: move the "
            "image there."
        )
    return str(path)


__all__ = ["load_metadata"]
