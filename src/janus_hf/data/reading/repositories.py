"""Functions that open repositories of data sets on the Hub, and local folders that have the form of one.

The README.md of a repository may list its data files. All others are named in the report, and not read.
"""

import os
import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HTTPError

from .folder_files import METADATA, is_image_file, sort_files
from .folders import OpenedFolder, is_ignored, named_images, open_folder, split_names, take_split
from .metadata import load_metadata
from .tables import Rows


def is_repository(source: str) -> bool:
    """Return whether a source has the form of a repository's id on the Hub, `owner/name`."""
    return re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", source) is not None


def open_repository(
    source: str, *, split: str, ignore: Collection[str], options: Mapping[str, Any]
) -> OpenedFolder | None:
    """Open a data set on the Hub; see `open_folder` for the arguments.

    One that consists of images is downloaded and opened as a folder, so that captions and metadata beside the images
    are used, in an order that is the same on every machine. Tables are read by `datasets`.

    Returns:
        The rows and the unused files; None if the Hub does not say which files there are, as when it is offline.
    """
    where = {name: options[name] for name in ("revision", "token") if name in options}
    try:
        names = sorted(HfApi().list_repo_files(source, repo_type="dataset", **where))
    except (OSError, ValueError, HTTPError):  # `datasets` may have it in its cache, and explains the error otherwise
        return None
    files = sort_files(Path(source), names)
    if files.images and not files.tables and not options.get("streaming"):
        folder = Path(snapshot_download(source, repo_type="dataset", **where))
        rest = {name: value for name, value in options.items() if name not in where}
        return replace(open_any_folder(folder, split=split, ignore=ignore, options=rest), root=str(folder))
    if files.images and len(files.metadata) > 1 and not files.tables:
        raise ValueError(
            f"`source` must have one metadata file to be read as a stream, got {source!r} with {files.metadata[:5]}, "
            "whose order would differ between processes: leave out `streaming`."
        )
    rows = datasets.load_dataset(source, split=split, **options)
    listed = _data_files(source, split, options)
    used = {found[1] for path in listed if (found := re.fullmatch(r"hf://datasets/[^@]+@[^/]+/(.+)", path))}
    unused = [name for name in names if name not in used and not is_ignored(name, ignore)]
    return OpenedFolder(rows, unused, names, repository_root(source, options), listed)


def repository_root(source: str, options: Mapping[str, Any]) -> str:
    """Return the address that relative image paths in the tables of a repository start from."""
    return f"hf://datasets/{source}" + (f"@{options['revision']}" if options.get("revision") else "")


def open_any_folder(folder: Path, *, split: str, ignore: Collection[str], options: Mapping[str, Any]) -> OpenedFolder:
    """Open a local folder by what its README.md says, or else by its files; see `open_folder` for the arguments."""
    if not _has_configuration(folder):
        return open_folder(folder, split=split, ignore=ignore, options=options)
    rows = _load_configured(folder, split, options)
    used = {
        Path(os.path.relpath(path, folder.absolute())).as_posix() for path in _data_files(str(folder), split, options)
    }
    every = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]
    if any(is_image_file(name) for name in every if name not in used):
        used |= set(named_images(rows, folder))
    return OpenedFolder(rows, [name for name in every if name not in used and not is_ignored(name, ignore)], every)


def _load_configured(folder: Path, split: str, options: Mapping[str, Any]) -> Rows:
    """Return the rows of a folder whose README.md lists its data files."""
    builder = _builder(str(folder), options)
    metadata = {
        str(name): [path for path in files if Path(path).name in METADATA]
        for name, files in builder.config.data_files.items()
    }
    if builder.name != "imagefolder" or not any(metadata.values()) or getattr(builder.config, "drop_metadata", False):
        return datasets.load_dataset(str(folder), split=split, **options)
    parts = {name: load_metadata(paths, {}, root=folder) for name, paths in metadata.items() if paths}
    rows = take_split(parts, split, folder)
    return rows.to_iterable_dataset() if options.get("streaming") else rows


def _data_files(source: str, split: str, options: Mapping[str, Any]) -> list[str]:
    """Return the paths of the data files of a split, as `datasets` finds them."""
    listed = _builder(source, options).config.data_files or {}
    return [str(path) for name in split_names(split) for path in listed.get(name, ())]


def _builder(source: str, options: Mapping[str, Any]) -> datasets.DatasetBuilder:
    """Return the builder with which `datasets` reads a source."""
    return datasets.load_dataset_builder(
        source, **{name: value for name, value in options.items() if name != "streaming"}
    )


def _has_configuration(folder: Path) -> bool:
    """Return whether the README.md of a folder lists its data files, as repositories of data sets on the Hub do."""
    readme = folder / "README.md"
    text = readme.read_text(encoding="utf-8") if readme.is_file() else ""
    front = text.split("\n---")[0] if text.startswith("---") else ""
    return re.search(r"^configs:", front, flags=re.MULTILINE) is not None


__all__ = ["is_repository", "open_any_folder", "open_repository", "repository_root"]
