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
from pathlib import Path
from typing import Any, TypeAlias

import datasets
from transformers.utils import logging

from .content import is_covered
from .folder_files import IMAGE_SUFFIXES, FolderFiles, is_about, sort_files
from .refusals import SourceError, all_unused


logger = logging.get_logger(__name__)

Rows: TypeAlias = datasets.Dataset | datasets.IterableDataset

# Folders of such names are no classes: they are parts of a data set.
_NO_CLASS = re.compile(
    r"(train(ing)?|test(ing)?|val(id(ation)?)?|dev|eval|data(set)?|ima?ge?s?|pictures?|photos?|splits?|all|masks?|inputs?"
    r"|outputs?|targets?|sources?|conditioning|edited)([_-]?\d+)?",
    re.IGNORECASE,
)
_REPEATS = re.compile(r"(\d+)_(.+)")  # a folder of kohya's trainers: number of repeats, class
_SHOWN = 5  # file names in a message


@dataclass(frozen=True)
class OpenedFolder:
    """Rows of a folder, and the names of its files that they do not come from.

    Args:
        rows: The rows.
        unused: Files that hold no content, or belong to another split.
        names: All files of the folder.
    """

    rows: Rows
    unused: list[str]
    names: list[str]


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
    splits = _find_splits(folder)
    if absent := [name for name in _split_names(split) if name not in splits]:
        raise ValueError(f"`split` must be one of {sorted(splits)}, the splits of {str(folder)!r}, got {absent[0]!r}.")
    kept = {name: [file for file in files if not _is_ignored(file, ignore)] for name, files in splits.items()}
    chosen = [file for name in _split_names(split) for file in kept[name]]
    of_splits = {file for files in splits.values() for file in files}
    # Files in no split: hidden ones, those about the data set, and, if other names tell splits, data files.
    outside = [file for file in every if file not in of_splits and not _is_ignored(file, ignore)]
    loose = [file for file in outside if not is_about(file)]
    files = sort_files(folder, [*chosen, *loose])
    skipped = sorted({*outside, *of_splits} - {*chosen, *loose}) + files.unused
    rows, used = _read(folder, files, {name: sort_files(folder, kept[name]) for name in kept}, split, dict(options))
    _check_files(sorted(set(files.content) - used), files)
    return OpenedFolder(rows, [name for name in skipped if not _is_ignored(name, ignore)], [*every, *links])


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
    chosen = [splits[name] for name in _split_names(split)]
    if files.metadata or files.tables:
        builder = "imagefolder" if files.metadata else max(files.tables, key=lambda name: len(files.tables[name]))

        def tables(files: FolderFiles) -> list[str]:
            """Return those of the files of a split that hold its rows."""
            return files.metadata if builder == "imagefolder" else files.tables.get(builder, [])

        data = {
            name: [str(folder / file) for file in tables(files) + (files.images if builder == "imagefolder" else [])]
            for name, files in splits.items()
        }
        data = {name: paths for name, paths in data.items() if paths}
        rows = datasets.load_dataset(builder, data_files=data, split=split, **options)
        used = {file for of_split in chosen for file in tables(of_split)}
        if files.images:
            # Images in no split may belong to the rows of another one.
            others = [name for name in data if name not in _split_names(split)]
            opened = [datasets.load_dataset(builder, data_files=data, split=name, **options) for name in others]
            used |= {name for dataset in (rows, *opened) for name in _named_images(dataset, folder)}
        return rows, used
    if files.images:
        return _read_images(folder, splits, split, options)
    if files.texts:
        data = {name: [str(folder / file) for file in of_split.texts] for name, of_split in splits.items()}
        data = {name: paths for name, paths in data.items() if paths}
        rows = datasets.load_dataset("text", data_files=data, split=split, **options)
        return rows, {file for of_split in chosen for file in of_split.texts}
    # Archives, or formats that only `datasets` knows.
    return datasets.load_dataset(str(folder), split=split, **options), set(files.unread)


def _read_images(
    folder: Path, splits: Mapping[str, FolderFiles], split: str, options: dict[str, Any]
) -> tuple[Rows, set[str]]:
    """Return the rows of images that no table describes, and the files in them; see `_read` for the arguments."""
    if set(options) - {"streaming"}:
        raise ValueError(f"A folder of images without tables has no options, got {sorted(options)}: omit them.")
    examples = {name: _examples(folder, splits[name]) for name in _split_names(split)}
    lengths = {name: len(rows) for name, rows in examples.items()}
    chosen: list[dict[str, str]] = []
    for part in datasets.ReadInstruction.from_spec(split).to_absolute(lengths):
        chosen += examples[part.splitname][part.from_ : part.to]
    if not chosen:
        raise ValueError(f"`source` must have rows, got {str(folder)!r}, whose split {split!r} is empty: omit it.")
    rows = datasets.Dataset.from_list(chosen)
    used = set()
    for files in (splits[name] for name in examples):
        used |= set(files.images)
        for names in files.captions.values():
            # A second caption file beside an image is used if it says the same.
            texts = {name: _read_text(folder / name) for name in names}
            used |= {name for name in names if texts[name] == texts[names[0]]}
    return (rows.to_iterable_dataset() if options.get("streaming") else rows), used


def _examples(folder: Path, files: FolderFiles) -> list[dict[str, str]]:
    """Return rows of `image` and `caption`, or of `image` and `label`, for the images of a split.

    Raises:
        SourceError: If an image has neither a caption file nor a folder that names its class.
    """
    if not files.images:
        return []
    parents = {image: Path(image).parent.name for image in files.images}
    repeats = {image: _REPEATS.fullmatch(parent) for image, parent in parents.items()}
    if all(repeats.values()):
        return _repeated(folder, files, {image: match for image, match in repeats.items() if match is not None})
    if files.captions:
        if bare := [image for image in files.images if image not in files.captions]:
            raise _lost(bare, "are images without a caption file, beside images that have one")
        return [
            {"image": str(folder / image), "caption": _read_text(folder / files.captions[image][0])}
            for image in files.images
        ]
    depths = {len(Path(image).parts) for image in files.images}
    if 1 in depths or all(map(_NO_CLASS.fullmatch, parents.values())):
        bare = [image for image in files.images if len(Path(image).parts) == 1] or files.images
        raise _lost(
            bare,
            "are images without a caption file beside them (0.png, 0.txt), a line in metadata.jsonl or a folder that "
            "names their class (red_fox/0.png)",
        )
    if len(depths) > 1:
        raise _lost(
            files.images, "are images in class folders of different depths, so that their classes are not clear"
        )
    return [{"image": str(folder / image), "label": parents[image]} for image in files.images]


def _repeated(folder: Path, files: FolderFiles, repeats: Mapping[str, re.Match[str]]) -> list[dict[str, str]]:
    """Return the rows of folders such as `10_fox`, whose images come ten times, with captions or the class "fox"."""
    if zero := [image for image, match in repeats.items() if int(match[1]) == 0]:
        raise _lost(
            zero, "are images in a folder whose name says 0 repeats (if the number belongs to a class, rename it)"
        )
    for name, count in sorted({Path(image).parent.name: match[1] for image, match in repeats.items()}.items()):
        logger.warning(
            f"{folder / name}: every image is repeated as the folder's name says, number of times: {count}."
        )
    column = "caption" if files.captions else "label"
    rows = []
    for image in files.images:
        text = _read_text(folder / files.captions[image][0]) if image in files.captions else repeats[image][2]
        rows += [{"image": str(folder / image), column: text}] * int(repeats[image][1])
    return rows


def _read_text(path: Path) -> str:
    """Return the text of a caption file."""
    try:
        return path.read_text(encoding="utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise SourceError(
            f"A caption file must be text in UTF-8, got {str(path)!r}: save it again. {error}"
        ) from error


def _find_splits(folder: Path) -> dict[str, list[str]]:
    """Return a dict: name of a split -> its files relative to the folder, by the rules of `datasets`."""
    # This builder takes files of all kinds; its images are not read here.
    found = datasets.load_dataset_builder("imagefolder", data_dir=str(folder.absolute())).config.data_files
    return {
        str(name): [Path(file).relative_to(folder.absolute()).as_posix() for file in files]
        for name, files in found.items()
    }


def _split_names(split: str) -> list[str]:
    """Return the names of the splits in a specification such as "train[:10%]+test"."""
    return [part.partition("[")[0].strip() for part in split.split("+")]


def _named_images(rows: Rows, folder: Path) -> Iterator[str]:
    """Yield the paths, relative to the folder, of all image files that rows name."""

    def visit(value: Any) -> Iterator[str]:
        """Yield the paths in a value of a row, which may be nested."""
        if isinstance(value, str):
            if len(value) < 1000 and Path(value).suffix.lower() in IMAGE_SUFFIXES:
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


def has_own_configuration(folder: Path) -> bool:
    """Return whether the README.md of a folder lists its data files, as repositories of data sets on the Hub do."""
    readme = folder / "README.md"
    text = readme.read_text(encoding="utf-8") if readme.is_file() else ""
    front = text.split("\n---")[0] if text.startswith("---") else ""
    return re.search(r"^configs:", front, flags=re.MULTILINE) is not None


def _is_ignored(name: str, ignore: Collection[str]) -> bool:
    """Return whether a file is to be ignored by its path, its name, or the name of a folder that it is in."""
    return is_covered(name, ignore) or any(is_covered(part, ignore) for part in Path(name).parts)


def _check_files(left: Sequence[str], files: FolderFiles) -> None:
    """Raise `SourceError` if files with content are not in the rows."""
    if left:
        images = set(left) <= set(files.images)
        raise _lost(
            left, "are images that no row names" if images else "are not of the form of the files that are read"
        )


def _lost(names: Sequence[str], what: str) -> SourceError:
    """Return, without raising it, the error for files whose content would be lost."""
    shown = ", ".join(map(repr, names[:_SHOWN])) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
    return SourceError(
        f"All files of a folder that hold content must be used, got {shown}, which {what}: add what is missing, move "
        f"them to a source of their own, or leave them out with ignore=[{names[0]!r}] (--ignore {names[0]!r} at the "
        "command line; names may hold wildcards)."
    )


__all__ = [
    "OpenedFolder",
    "Rows",
    "has_own_configuration",
    "open_folder",
    "undecoded",
]
