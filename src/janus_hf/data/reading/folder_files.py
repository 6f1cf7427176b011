"""`sort_files`, which sorts the files of a folder by what they hold: images, captions, tables, texts or nothing."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image, UnidentifiedImageError


# Suffix of a table -> `datasets` builder that reads it.
BUILDERS = {
    ".parquet": "parquet",
    ".jsonl": "json",
    ".json": "json",
    ".ndjson": "json",
    ".csv": "csv",
    ".arrow": "arrow",
    ".tar": "webdataset",
}
# Suffixes of all images that Pillow opens, without those of documents, scientific arrays and films.
IMAGE_SUFFIXES = frozenset(
    suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN
) - frozenset((".ps", ".eps", ".h5", ".hdf", ".mpg", ".mpeg", ".grib", ".bufr", ".fit", ".fits", ".wmf", ".emf"))
_CAPTIONS = (".txt", ".caption")
_METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
_COMPRESSED = (".gz", ".zst", ".bz2", ".xz")
# Suffixes of files that hold content which this package reads in no folder.
_MEDIA = (
    *(".mp4", ".mov", ".mkv", ".webm", ".avi", ".mp3", ".wav", ".flac", ".ogg", ".pdf", ".heic", ".avif", ".psd"),
    *(".zip", ".7z", ".rar", ".tgz", ".tsv", ".xlsx", ".xml", ".h5", ".hdf5", ".db", ".sqlite", ".pkl", ".md"),
)
# Files about a data set, and not of it.
_ABOUT = re.compile(
    r"(read_?me|licen[cs]e|notice|changelog|citation|thumbs|desktop)\b.*|(config|state|dataset_infos?|dataset_dict)\.json",
    re.IGNORECASE,
)


@dataclass
class FolderFiles:
    """The files of a folder, or of one of its splits, by what they hold; paths are relative to the folder.

    Args:
        images: Image files.
        captions: Image file -> the caption files beside it, by preference.
        metadata: Files that name images in a column `file_name`.
        tables: Name of a `datasets` builder -> the tables that it reads.
        texts: Text files that stand beside no image.
        unread: Files that hold other content, such as videos and archives.
        unused: Files without content for the model.
    """

    images: list[str] = field(default_factory=list)
    captions: dict[str, list[str]] = field(default_factory=dict)
    metadata: list[str] = field(default_factory=list)
    tables: dict[str, list[str]] = field(default_factory=dict)
    texts: list[str] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)

    @property
    def content(self) -> list[str]:
        """All files that hold content."""
        captions = [name for names in self.captions.values() for name in names]
        tables = [name for names in self.tables.values() for name in names]
        return [*self.images, *captions, *self.metadata, *tables, *self.texts, *self.unread]


def sort_files(folder: Path, names: Sequence[str]) -> FolderFiles:
    """Sort files, given by their paths relative to a folder, by what they hold."""
    files = FolderFiles(images=[name for name in names if Path(name).suffix.lower() in IMAGE_SUFFIXES])
    beside: dict[str, list[str]] = {}
    for image in files.images:
        beside.setdefault(str(Path(image).with_suffix("")), []).append(image)
    for name in names:
        path = Path(name)
        suffix = path.suffix.lower()
        owners = beside.get(str(path.with_suffix("")), [])
        if suffix in _COMPRESSED and path.suffixes[:-1]:
            suffix = path.suffixes[-2].lower()
        if suffix in IMAGE_SUFFIXES:
            continue
        if path.name in _METADATA:
            files.metadata.append(name)
        elif suffix in _CAPTIONS and owners:
            for image in owners:
                files.captions.setdefault(image, []).append(name)
        elif _ABOUT.fullmatch(path.name):
            files.unused.append(name)
        elif suffix in BUILDERS and not owners:
            files.tables.setdefault(BUILDERS[suffix], []).append(name)
        elif suffix in _CAPTIONS:
            files.texts.append(name)
        elif suffix in (*_MEDIA, *BUILDERS) or _is_image(folder / name):
            files.unread.append(name)
        else:
            files.unused.append(name)
    for captions in files.captions.values():
        captions.sort(key=lambda name: _CAPTIONS.index(Path(name).suffix.lower()))
    return files


def _is_image(path: Path) -> bool:
    """Return whether a file of an unknown suffix begins like an image."""
    try:
        Image.open(path).close()
    except (UnidentifiedImageError, OSError, ValueError):
        return False
    except Image.DecompressionBombError:
        return True
    return True


def is_about(name: str) -> bool:
    """Return whether a file is hidden, or in a hidden folder, or describes the data, as README.md does."""
    hidden = any(part.startswith((".", "__")) for part in Path(name).parts)
    return hidden or _ABOUT.fullmatch(Path(name).name) is not None


__all__ = ["BUILDERS", "IMAGE_SUFFIXES", "FolderFiles", "is_about", "sort_files"]
