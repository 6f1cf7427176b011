"""The function `image_grid`, which pastes several images into one, for samples during training and for evaluation."""

import math
from collections.abc import Sequence

from PIL import Image


def image_grid(images: Sequence[Image.Image], columns: int | None = None, background: str = "white") -> Image.Image:
    """Paste images of the same size side by side, row by row, into one RGB image and return it.

    Args:
        images: At least one image; the size of the first image is the size of a cell.
        columns: Number of columns; None makes the grid as square as possible.
        background: Colour of cells that stay empty.
    """
    columns = columns or math.ceil(math.sqrt(len(images)))
    width, height = images[0].size
    grid = Image.new("RGB", (columns * width, math.ceil(len(images) / columns) * height), background)
    for index, image in enumerate(images):
        grid.paste(image.convert("RGB"), (index % columns * width, index // columns * height))
    return grid


__all__ = ["image_grid"]
