"""Images as detectors and judges read them: RGB, and turned upright as their EXIF data say."""

import os

from PIL import Image, ImageOps


# What Pillow raises for a file that is missing, damaged, cut off, no image, or too large to be one.
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


def as_rgb(image: Image.Image) -> Image.Image:
    """Return the image in RGB, turned upright, without its alpha channel.

    Raises:
        TypeError: If it is not a PIL image.
    """
    if not isinstance(image, Image.Image):
        raise TypeError(
            f"`image` must be a PIL image, got {type(image).__name__}: convert it with PIL.Image.fromarray."
        )
    return ImageOps.exif_transpose(image).convert("RGB")


def open_rgb(path: str | os.PathLike[str]) -> Image.Image:
    """Open an image file, decode all of it, and return the image as `as_rgb` does.

    Raises:
        One of `UNREADABLE`: If the file cannot be read.
    """
    with Image.open(path) as image:
        return as_rgb(image)


def readable(path: str | os.PathLike[str]) -> bool:
    """Return whether `open_rgb` can open the file."""
    try:
        open_rgb(path)
    except UNREADABLE:
        return False
    return True


__all__ = ["UNREADABLE", "as_rgb", "open_rgb", "readable"]
