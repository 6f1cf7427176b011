"""`read_images`, which makes rows of images that no table describes: caption files and names of folders tell the rest.

Images that belong to others (masks, regularisation images) are refused, because they are no examples themselves.
"""

import re
from collections.abc import Mapping
from pathlib import Path, PurePath

from transformers.utils import logging

from .folder_files import FolderFiles
from .refusals import SourceError, lost_files


logger = logging.get_logger(__name__)

# Folders of such names are no classes: they are parts of a data set.
_NO_CLASS = re.compile(
    r"(train(ing)?|test(ing)?|val(id(ation)?)?|dev|eval|data(set)?|ima?ge?s?|pictures?|photos?|splits?|all|masks?|inputs?"
    r"|outputs?|targets?|sources?|conditioning|edited)([_-]?\d+)?",
    re.IGNORECASE,
)
_REPEATS = re.compile(r"(\d+)_(.+)")  # a folder of kohya's trainers: number of repeats, class
# Names of folders whose images belong to the images of other folders -> what they are.
PARTNER_FOLDERS = {
    r"reg(ulari[sz]ation)?([ _-]?(images?|imgs?|data|dir|set))?|(class|prior)[ _-]?(images?|imgs?|data|dir)": (
        "regularisation images, for a loss (prior preservation) that this package does not have"
    ),
    r"masks?|masklabels?|segmentations?|mattes?": "masks, for a loss or an input that this package does not have",
    r"cond(ition(ing|s)?)?([ _-]?(images?|imgs?|data|dir))?|controls?([ _-]?(images?|imgs?))?|depths?|canny|poses?|"
    r"edges?|inputs?|sources?|targets?|edited": "images that belong to images of another folder",
}
# Last words of the names of images that belong to the image with the rest of the name, as `0-masklabel.png` of
# OneTrainer does to `0.png`.
_PARTNER = re.compile(
    r"(.+?)[-_. ]((mask|cond)label|masks?|alpha|matte|trimap|depth|canny|openpose|seg|segmentation)", re.IGNORECASE
)


def read_images(folder: Path, files: FolderFiles) -> list[dict[str, str]]:
    """Return rows of `image` and `caption`, or of `image` and `label`, for the images of a split.

    Raises:
        SourceError: If an image has neither a caption file nor a folder that names its class, or belongs to another
            image or to a form of training that this package does not have.
    """
    if not files.images:
        return []
    parents = {image: Path(image).parent.name for image in files.images}
    if not files.captions and all(map(_NO_CLASS.fullmatch, parents.values())):
        raise _bare(files.images)
    _refuse_partners(files)
    repeats = {image: match for image, parent in parents.items() if (match := _REPEATS.fullmatch(parent))}
    if repeats:
        return _repeated(folder, files, repeats)
    if files.captions:
        if bare := [image for image in files.images if image not in files.captions]:
            raise lost_files(bare, "are images without a caption file, beside images that have one")
        return [
            {"image": str(folder / image), "caption": read_text(folder / files.captions[image][0])}
            for image in files.images
        ]
    depths = {len(Path(image).parts) for image in files.images}
    if 1 in depths:
        raise _bare([image for image in files.images if len(Path(image).parts) == 1])
    if len(depths) > 1:
        raise lost_files(
            files.images, "are images in class folders of different depths, so that their classes are not clear"
        )
    return [{"image": str(folder / image), "label": parents[image]} for image in files.images]


def _bare(images: list[str]) -> SourceError:
    """Return, without raising it, the error for images that nothing describes."""
    return lost_files(
        images,
        "are images without a caption file beside them (0.png, 0.txt), a line in metadata.jsonl or a folder that "
        "names their class (red_fox/0.png)",
    )


def _refuse_partners(files: FolderFiles) -> None:
    """Raise `SourceError` if images belong to others by the names of their folders or files."""
    stems = {PurePath(image).with_suffix("") for image in files.images}
    partners = []
    for image in files.images:
        path = PurePath(image)
        match = _PARTNER.fullmatch(path.stem)
        if match is not None and path.with_name(match[1]) in stems:
            partners += [image, *files.captions.get(image, [])]
    if partners:
        raise lost_files(
            partners, "are masks or conditions of the images beside them, which no training of this package uses"
        )
    for pattern, what in PARTNER_FOLDERS.items():
        found = {
            image: "/".join(parts[: n + 1])
            for image in files.images
            for parts in [PurePath(image).parent.parts]
            for n, part in enumerate(parts)
            if re.fullmatch(pattern, part, flags=re.IGNORECASE)
        }
        if 0 < len(found) < len(files.images):  # as a source of their own, they are what the user wants
            raise lost_files(
                sorted(set(found.values())), f"are folders of {what} (if a name is that of a class, change it)"
            )


def _repeated(folder: Path, files: FolderFiles, repeats: Mapping[str, re.Match[str]]) -> list[dict[str, str]]:
    """Return the rows of folders such as `10_fox`, whose images come ten times, with captions or the class "fox"."""
    if other := [image for image in files.images if image not in repeats]:
        example = PurePath(next(iter(repeats))).parent.name
        raise lost_files(
            other,
            f"are images outside folders such as {example!r}, whose names say how often their images come (if that "
            "number belongs to a class, rename the folder)",
        )
    if zero := [image for image, match in repeats.items() if int(match[1]) == 0]:
        raise lost_files(
            zero, "are images in a folder whose name says 0 repeats (if the number belongs to a class, rename it)"
        )
    for name, count in sorted({Path(image).parent.name: match[1] for image, match in repeats.items()}.items()):
        logger.warning(
            f"{folder / name}: every image is repeated as the folder's name says, number of times: {count}."
        )
    column = "caption" if files.captions else "label"
    rows = []
    for image in files.images:
        text = read_text(folder / files.captions[image][0]) if image in files.captions else repeats[image][2]
        rows += [{"image": str(folder / image), column: text}] * int(repeats[image][1])
    return rows


def read_text(path: Path) -> str:
    """Return the text of a caption file."""
    try:
        return path.read_text(encoding="utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise SourceError(
            f"A caption file must be text in UTF-8, got {str(path)!r}: save it again. {error}"
        ) from error


__all__ = ["PARTNER_FOLDERS", "read_images", "read_text"]
