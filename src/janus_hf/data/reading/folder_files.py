"""`sort_files`, which sorts the files of a folder by what they hold: images, captions, tables, texts or nothing."""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from .tables import file_format


# Suffixes of all images that Pillow opens, without those of documents, scientific arrays and films.
IMAGE_SUFFIXES = frozenset(
    suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN
) - frozenset((".ps", ".eps", ".h5", ".hdf", ".mpg", ".mpeg", ".grib", ".bufr", ".fit", ".fits", ".wmf", ".emf"))
_CAPTIONS = (".txt", ".caption", ".cap", ".tags")
METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
# Suffixes of files that hold content which this package reads in no folder.
_MEDIA = (
    *(".mp4", ".mov", ".mkv", ".webm", ".avi", ".mp3", ".wav", ".flac", ".ogg", ".pdf", ".heic", ".avif", ".psd"),
    *(".zip", ".7z", ".rar", ".xlsx", ".xml", ".h5", ".hdf5", ".db", ".sqlite", ".pkl", ".md", ".npz", ".npy"),
    *(".gz", ".bz2", ".xz", ".zst"),
)
# Suffixes of files that programs keep beside an image, and that hold nothing but what they computed from it. Files of
# other suffixes beside an image are taken for its caption or its annotation.
_COMPUTED = (".npz", ".npy", ".pt", ".safetensors", ".sha256", ".md5", ".bak", ".lock", ".ini", ".url")
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
        tables: Format of tables (see `tables.FORMATS`) -> the tables of this format.
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
    files = FolderFiles(images=[name for name in names if is_image_file(name)])
    beside: dict[str, list[str]] = {}
    for image in files.images:
        beside.setdefault(str(Path(image).with_suffix("")), []).append(image)
    for name in names:
        path = Path(name)
        suffix, kind = path.suffix.lower(), file_format(name)
        owners = beside.get(str(path.with_suffix("")), [])
        if is_image_file(name):
            continue
        if path.name in METADATA:
            files.metadata.append(name)
        elif suffix in _CAPTIONS and owners:
            for image in owners:
                files.captions.setdefault(image, []).append(name)
        elif _ABOUT.fullmatch(path.name) or (suffix in _COMPUTED and _is_computed(path, beside)):
            files.unused.append(name)
        elif owners:
            files.unread.append(name)
        elif kind == "text" or suffix in _CAPTIONS:
            files.texts.append(name)
        elif kind is not None:
            files.tables.setdefault(kind, []).append(name)
        elif suffix in _MEDIA or _is_image(folder / name):
            files.unread.append(name)
        else:
            files.unused.append(name)
    for captions in files.captions.values():
        captions.sort(key=lambda name: _CAPTIONS.index(Path(name).suffix.lower()))
    return files


def is_image_file(name: str) -> bool:
    """Return whether a file is an image by its name."""
    return Path(name).suffix.lower() in IMAGE_SUFFIXES


def _is_computed(path: Path, images: Collection[str]) -> bool:
    """Return whether a file was computed from an image, as `0.npz` and `0_1024x0768_sd.npz` are from `0.png`.

    Args:
        path: Path of the file.
        images: Paths of all images without their suffixes.
    """
    parts = path.stem.split("_")
    return any(str(path.with_name("_".join(parts[:n]))) in images for n in range(1, len(parts) + 1))


def _is_image(path: Path) -> bool:
    """Return whether a file of an unknown suffix begins like an image."""
    try:
        Image.open(path).close()
    except (UnidentifiedImageError, OSError, ValueError):
        return False
    except Image.DecompressionBombError:
        return True
    return True


def is_hidden(name: str) -> bool:
    """Return whether a file is hidden, or in a hidden folder."""
    return any(part.startswith((".", "__")) for part in Path(name).parts)


def is_about(name: str) -> bool:
    """Return whether a file is hidden, or describes the data, as README.md does."""
    return is_hidden(name) or (_ABOUT.fullmatch(Path(name).name) is not None and not is_image_file(name))


__all__ = ["IMAGE_SUFFIXES", "METADATA", "FolderFiles", "is_about", "is_hidden", "is_image_file", "sort_files"]
