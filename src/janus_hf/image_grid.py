"""Several images as one: samples during training, the grids and sheets of evaluation."""

import math
from collections.abc import Sequence

from PIL import Image


def image_grid(images: Sequence[Image.Image], columns: int | None = None, background: str = "white") -> Image.Image:
    """Paste images of one size side by side, row by row.

    Args:
        images: At least one image; the first one's size is the cell size.
        columns: Number of columns; by default the grid is as square as possible.
        background: Colour of cells that stay empty.

    Returns:
        An RGB image.
    """
    columns = columns or math.ceil(math.sqrt(len(images)))
    width, height = images[0].size
    grid = Image.new("RGB", (columns * width, math.ceil(len(images) / columns) * height), background)
    for index, image in enumerate(images):
        grid.paste(image.convert("RGB"), (index % columns * width, index // columns * height))
    return grid


__all__ = ["image_grid"]
