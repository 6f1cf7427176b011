"""Pictures as judges see them: upright and RGB."""

import os

from PIL import Image, ImageOps


# What Pillow raises for a file that is missing, damaged, cut off, no picture, or too large to be one.
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


def as_rgb(image: Image.Image) -> Image.Image:
    """The picture upright, without alpha.

    Raises:
        TypeError: If it is not a PIL picture.
    """
    if not isinstance(image, Image.Image):
        raise TypeError(f"Expected PIL pictures, got a {type(image).__name__}: convert it with PIL.Image.fromarray.")
    return ImageOps.exif_transpose(image).convert("RGB")


def open_rgb(path: str | os.PathLike[str]) -> Image.Image:
    """`as_rgb` of a file, decoded to its end.

    Raises:
        One of `UNREADABLE`: If it cannot be read; for the caller to count, to draw again or to pass on.
    """
    with Image.open(path) as image:
        return as_rgb(image)


def readable(path: str | os.PathLike[str]) -> bool:
    """Whether `open_rgb` opens a picture."""
    try:
        open_rgb(path)
    except UNREADABLE:
        return False
    return True


__all__ = ["UNREADABLE", "as_rgb", "open_rgb", "readable"]
