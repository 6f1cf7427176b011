"""Functions that read images for detectors and judges: converted to RGB and rotated upright as their EXIF data say."""

import os

from PIL import Image, ImageOps


# Exceptions that Pillow raises for a file that is missing, damaged, truncated, not an image, or implausibly large.
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


def as_rgb(image: Image.Image) -> Image.Image:
    """Return the image in RGB, rotated upright as its EXIF data say, without its alpha channel.

    Raises:
        TypeError: If `image` is not a PIL image.
    """
    if not isinstance(image, Image.Image):
        raise TypeError(
            f"`image` must be a PIL image, got {type(image).__name__}: convert it with PIL.Image.fromarray."
        )
    return ImageOps.exif_transpose(image).convert("RGB")


def open_rgb(path: str | os.PathLike[str]) -> Image.Image:
    """Open an image file, decode it completely, and return the image in RGB, rotated upright as its EXIF data say.

    Raises:
        OSError, SyntaxError, ValueError, DecompressionBombError: If the file cannot be read as an image.
    """
    with Image.open(path) as image:
        return as_rgb(image)


def readable(path: str | os.PathLike[str]) -> bool:
    """Return whether `open_rgb` can read the file as an image."""
    try:
        open_rgb(path)
    except UNREADABLE:
        return False
    return True


__all__ = ["UNREADABLE", "as_rgb", "open_rgb", "readable"]
