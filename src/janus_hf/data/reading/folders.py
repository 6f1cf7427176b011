"""`open_folder`, which opens a folder of images, captions, tables or texts, and makes sure that no file is lost.

`datasets.load_dataset` reads the files of the most frequent kind and drops all others. Here every file has a kind, and
the kinds decide how the folder is read:

| the folder has | rows |
|---|---|
| images and `metadata.jsonl`, `.csv` or `.parquet` | the rows of this file, whose `file_name` becomes `image` |
| tables of one format (and the images that they name) | the rows of the tables |
| images with caption files beside them (`0.png`, `0.txt`) | `image` and `caption` |
| images in folders | `image` and `label`, the name of the folder; each image in `10_fox` comes ten times as a fox |
| text files | their lines as `text` |
"""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import datasets

from .content import is_covered
from .folder_files import FolderFiles, is_about, is_hidden, is_image_file, sort_files
from .image_rows import read_images, read_text
from .metadata import load_metadata
from .refusals import all_unused, lost_files
from .tables import Rows, file_format, load_tables


# A name with a word for a split, by the rules of `datasets`.
_SPLIT = re.compile(
    r"(.*[-._ 0-9])?(train|training|valid|validation|val|dev|test|testing|eval|evaluation)([-._ 0-9].*)?"
)


@dataclass(frozen=True)
class OpenedFolder:
    """Rows of a folder, and the names of its files that they do not come from.

    Args:
        rows: The rows.
        unused: Files that hold no content, or belong to another split.
        names: All files of the folder.
        root: Folder or address that relative image paths start from; by default that of the source.
        files: The files that the rows come from, in their order, if they are known.
    """

    rows: Rows
    unused: list[str]
    names: list[str]
    root: str | None = None
    files: Sequence[str] = ()


def open_folder(folder: Path, *, split: str, ignore: Collection[str], options: Mapping[str, Any]) -> OpenedFolder:
    """Open a local folder of data files.

    Args:
        folder: The folder.
        split: Split to read. Folders and files with names like "train" and "test" are splits.
        ignore: Names of files, folders or columns that may be lost; they may hold wildcards.
        options: Further arguments of `datasets.load_dataset`.

    Raises:
        FileNotFoundError: If the folder holds no files.
        ValueError: If it has no such split, or holds nothing that can be read.
        SourceError: If it holds a file with content that the rows would not hold.
    """
    paths = sorted(folder.rglob("*"))
    every = [path.relative_to(folder).as_posix() for path in paths if path.is_file()]
    # Neither this search nor that of `datasets` enters them.
    links = [path.relative_to(folder).as_posix() for path in paths if path.is_symlink() and path.is_dir()]
    if lost := {link: "a link to a folder" for link in links if not is_covered(link, ignore)}:
        raise all_unused(lost, f"the folder {str(folder)!r}, whose own files are read")
    visible = [name for name in every if not is_hidden(name)]
    splits = _find_splits(folder, visible)
    if absent := [name for name in split_names(split) if name not in splits]:
        raise ValueError(
            f"`split` must be one of {sorted(splits)}, the splits of {str(folder)!r} by the names of its folders and "
            f"tables, got {absent[0]!r}: name one of these, or rename what is no split."
        )
    kept = {name: [file for file in files if not is_ignored(file, ignore)] for name, files in splits.items()}
    chosen = [file for name in split_names(split) for file in kept[name]]
    of_splits = {file for files in splits.values() for file in files}
    # Files in no split: hidden ones, those about the data set, and, if other names tell splits, data files.
    outside = [file for file in every if file not in of_splits and not is_ignored(file, ignore)]
    loose = [file for file in outside if not is_about(file)]
    files = sort_files(folder, [*chosen, *loose])
    skipped = sorted({*outside, *of_splits} - {*chosen, *loose}) + files.unused
    rows, used = _read(folder, files, {name: sort_files(folder, kept[name]) for name in kept}, split, dict(options))
    _check_files(sorted(set(files.content) - used), files, loose)
    read = [str(folder / file) for file in chosen if file in used and file_format(file)]
    unused = [name for name in skipped if not is_ignored(name, ignore)]
    return OpenedFolder(rows, unused, [*every, *links], files=read)


def _read(
    folder: Path, files: FolderFiles, splits: Mapping[str, FolderFiles], split: str, options: dict[str, Any]
) -> tuple[Rows, set[str]]:
    """Return the rows of a folder, and the files whose content is in them.

    Args:
        folder: The folder.
        files: The files of the chosen split and of no split, in their order.
        splits: Split -> its files.
        split: The split to read, as `datasets` writes it.
        options: Further arguments of `datasets.load_dataset`.
    """
    chosen = [splits[name] for name in split_names(split)]
    if files.metadata:
        streams = options.pop("streaming", False)
        parts = {
            name: load_metadata([str(folder / file) for file in of_split.metadata], options, root=folder)
            for name, of_split in splits.items()
            if of_split.metadata
        }
        used = {file for of_split in chosen for file in of_split.metadata}
        used |= {name for part in parts.values() for name in named_images(part, folder)}
        rows = take_split(parts, split, folder)
        return (rows.to_iterable_dataset() if streams else rows), used
    if files.tables or (files.texts and not files.images):
        kind = max(files.tables, key=lambda name: len(files.tables[name])) if files.tables else "text"

        def tables(files: FolderFiles) -> list[str]:
            """Return those of the files of a split that hold its rows."""
            return files.texts if kind == "text" else files.tables.get(kind, [])

        data = {name: [str(folder / file) for file in tables(of_split)] for name, of_split in splits.items()}
        data = {name: paths for name, paths in data.items() if paths}
        rows = load_tables(kind, data, split, options)
        used = {file for of_split in chosen for file in tables(of_split)}
        if files.images:
            # Images in no split may belong to the rows of another one.
            others = [name for name in data if name not in split_names(split)]
            opened = [load_tables(kind, data, name, options) for name in others]
            used |= {name for dataset in (rows, *opened) for name in named_images(dataset, folder)}
        return rows, used
    if files.images:
        return _read_images(folder, splits, split, options)
    # Archives, or formats that only `datasets` knows.
    return datasets.load_dataset(str(folder), split=split, **options), set(files.unread)


def _read_images(
    folder: Path, splits: Mapping[str, FolderFiles], split: str, options: dict[str, Any]
) -> tuple[Rows, set[str]]:
    """Return the rows of images that no table describes, and the files in them; see `_read` for the arguments."""
    if set(options) - {"streaming"}:
        raise ValueError(f"A folder of images without tables has no options, got {sorted(options)}: omit them.")
    chosen = [splits[name] for name in split_names(split)]
    parts = {name: read_images(folder, splits[name]) for name in split_names(split)}
    rows = take_split({name: datasets.Dataset.from_list(part) for name, part in parts.items() if part}, split, folder)
    used = set()
    for files in chosen:
        used |= set(files.images)
        for names in files.captions.values():
            # A second caption file beside an image is used if it says the same.
            texts = {name: read_text(folder / name) for name in names}
            used |= {name for name in names if texts[name] == texts[names[0]]}
    return (rows.to_iterable_dataset() if options.get("streaming") else rows), used


def take_split(parts: Mapping[str, datasets.Dataset], split: str, folder: Path) -> datasets.Dataset:
    """Return the rows of a split, as `datasets` writes it (such as "train[:10%]+test"), of splits that are open.

    Raises:
        ValueError: If it has no rows.
    """
    if all(name in parts for name in split_names(split)):
        lengths = {name: len(rows) for name, rows in parts.items()}
        taken = [
            parts[part.splitname].select(range(part.from_, part.to))
            for part in datasets.ReadInstruction.from_spec(split).to_absolute(lengths)
        ]
        if rows := datasets.concatenate_datasets(taken):
            return rows
    raise ValueError(f"`source` must have rows, got {str(folder)!r}, whose split {split!r} is empty: omit it.")


def _find_splits(folder: Path, visible: Sequence[str]) -> dict[str, list[str]]:
    """Return a dict: name of a split -> its files relative to the folder.

    The rules are those of `datasets`, except that the names of images and of their captions tell no splits, so that
    `test_1.png` is an image like others, and nor does a folder `train2017` of images that a table beside it names.

    Args:
        folder: The folder.
        visible: Its files without hidden ones.
    """
    # This builder takes files of all kinds; its images are not read here.
    found = datasets.load_dataset_builder("imagefolder", data_dir=str(folder.absolute())).config.data_files
    splits = {
        str(name): [Path(file).relative_to(folder.absolute()).as_posix() for file in files]
        for name, files in found.items()
    }
    names = [Path(name) for files in splits.values() for name in files]
    by_folder = any(_SPLIT.fullmatch(part) for name in names for part in name.parent.parts)
    by_name = all(_SPLIT.fullmatch(name.name) for name in names) or bool(set(splits) - {"train", "validation", "test"})
    files = sort_files(folder, visible)
    tables = {*files.metadata} or {name for tables in files.tables.values() for name in tables}
    if not tables and not files.images:
        tables = {*files.texts, *files.unread}
    of_tables = {name: found for name, of_split in splits.items() if (found := [f for f in of_split if f in tables])}
    # If tables are in no split, the names of folders with their images tell nothing about the rows.
    if by_folder and (of_tables or not tables):
        return splits
    return of_tables if by_name and of_tables else {"train": list(visible)}


def split_names(split: str) -> list[str]:
    """Return the names of the splits in a specification such as "train[:10%]+test"."""
    return [part.partition("[")[0].strip() for part in split.split("+")]


def named_images(rows: Rows, folder: Path) -> Iterator[str]:
    """Yield the paths, relative to the folder, of all image files that rows name."""

    def visit(value: Any) -> Iterator[str]:
        """Yield the paths in a value of a row, which may be nested."""
        if isinstance(value, str):
            if len(value) < 1000 and is_image_file(value):
                yield value
        elif isinstance(value, Mapping):
            for item in value.values():
                yield from visit(item)
        elif isinstance(value, (list, tuple)):
            for item in value:
                yield from visit(item)

    for row in undecoded(rows):
        for path in visit(row):
            absolute = Path(folder.absolute(), path)
            if absolute.is_relative_to(folder.absolute()):
                yield Path(*_normal(absolute.relative_to(folder.absolute()).parts)).as_posix()


def _normal(parts: Iterable[str]) -> list[str]:
    """Return the parts of a path without those that lead up again."""
    found: list[str] = []
    for part in parts:
        if part == ".." and found:
            found.pop()
        else:
            found.append(part)
    return found


def undecoded(dataset: Rows) -> Rows:
    """Return the data set with decoding turned off in its columns of images, audio and video, also in nested ones."""
    for name, feature in (dataset.features or {}).items():
        if (changed := _without_decoding(feature)) != feature:
            dataset = dataset.cast_column(name, changed)
    return dataset


def _without_decoding(feature: Any) -> Any:
    """Return a feature of `datasets` in which files are not decoded."""
    if isinstance(feature, (datasets.Image, datasets.Audio, datasets.Video)):
        return type(feature)(decode=False)
    if isinstance(feature, datasets.List):
        return datasets.List(_without_decoding(feature.feature), length=feature.length)
    if isinstance(feature, datasets.LargeList):
        return datasets.LargeList(_without_decoding(feature.feature))
    if isinstance(feature, dict):
        return {name: _without_decoding(item) for name, item in feature.items()}
    return feature


def is_ignored(name: str, ignore: Collection[str]) -> bool:
    """Return whether a file is to be ignored by its path or its name, or by those of a folder that it is in."""
    return any(is_covered(one, ignore) for one in names_of(name))


def names_of(name: str) -> set[str]:
    """Return all names by which a file can be ignored: its path, those of its folders, and the last parts of these."""
    paths = [path for path in (PurePath(name), *PurePath(name).parents) if path.name]
    return {one for path in paths for one in (path.as_posix(), path.name)}


def _check_files(left: Sequence[str], files: FolderFiles, loose: Collection[str]) -> None:
    """Raise `SourceError` if files with content are not in the rows.

    Args:
        left: The files that are not in the rows.
        files: All files, sorted.
        loose: Files in no split.
    """
    if not left:
        return
    if set(left) <= set(loose) and not files.metadata and not files.tables:
        what = "are in no split, whereas names of other folders or files, such as train or test, tell splits"
    elif set(left) <= set(files.images):
        what = "are images that no row names"
    else:
        what = "are not of the form of the files that are read"
    raise lost_files(left, what)


__all__ = [
    "OpenedFolder",
    "is_ignored",
    "named_images",
    "names_of",
    "open_folder",
    "split_names",
    "take_split",
    "undecoded",
]
