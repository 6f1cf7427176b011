"""An exact, rule-based detector for pictures of the small world.

Every pixel is given to the nearest colour of the palette (white is the background), connected pixels of one colour
form a thing, and its outline decides its shape. It sees whatever a model draws, not only rendered scenes: blobs that
match no shape well enough are not things.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
from PIL import Image

from ..shapes.scenes import CELL, COLORS, SHAPES, WHITE, shape_mask
from .geneval_rules import Detection
from .image_io import as_rgb


MIN_AREA = 40  # pixels; the smallest rendered thing, a cross, has about 100
MIN_OVERLAP = (
    0.75  # intersection over union with the best shape; the closest two shapes, measured in the tests, overlap less
)


def detect(image: Image.Image | np.ndarray) -> list[Detection]:
    """Find the coloured shapes in a picture.

    Args:
        image: PIL image, or `(H, W, 3)` uint8.

    Returns:
        One `Detection` per thing, labelled with its shape and colour, score 1, in reading order of their top left
        corners.
    """
    pixels = np.asarray(image.convert("RGB") if isinstance(image, Image.Image) else image).astype(np.int32)
    palette = np.array([WHITE, *COLORS.values()], dtype=np.int32)
    nearest = ((pixels[:, :, None] - palette) ** 2).sum(axis=-1).argmin(axis=-1)
    found = []
    for component in _components(nearest != 0):
        rows, columns = np.nonzero(component)
        if len(rows) < MIN_AREA:
            continue
        colors = np.bincount(nearest[rows, columns], minlength=len(palette))
        top, left, bottom, right = rows.min(), columns.min(), rows.max() + 1, columns.max() + 1
        shape = _shape(component[top:bottom, left:right])
        if shape is not None:
            color = list(COLORS)[int(colors[1:].argmax())]
            found.append(Detection(shape, 1.0, (float(left), float(top), float(right), float(bottom)), color))
    return found


class ShapesDetector:
    """The small world's exact detector (`shapes_detector.detect`). It always knows the colours."""

    name = "the small world's exact detector"

    def detect(
        self, images: Sequence[Image.Image], metadata: Sequence[Mapping[str, Any]] | None = None
    ) -> list[list[Detection]]:
        """See `Detector`."""
        return [detect(as_rgb(image)) for image in images]


def _shape(outline: np.ndarray) -> str | None:
    """The shape whose outline, stretched over the same box, overlaps best; None if none does well enough."""
    size = CELL
    stretched = np.asarray(Image.fromarray(outline).resize((size, size), Image.Resampling.NEAREST))
    overlaps = {shape: (stretched & mask).sum() / (stretched | mask).sum() for shape, mask in _outlines(size).items()}
    best = max(overlaps, key=lambda shape: overlaps[shape])
    return best if overlaps[best] >= MIN_OVERLAP else None


@cache
def _outlines(size: int) -> dict[str, np.ndarray]:
    """Each shape's mask stretched to fill its box, `(size, size)` bool."""
    outlines = {}
    for shape in SHAPES:
        mask = shape_mask(shape, 4 * size) >= 0.5
        rows, columns = np.nonzero(mask)
        box = mask[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        outlines[shape] = np.asarray(Image.fromarray(box).resize((size, size), Image.Resampling.NEAREST))
    return outlines


def _components(mask: np.ndarray) -> list[np.ndarray]:
    """Groups of pixels connected by a side, as masks, in the order of their first pixel."""
    labels = np.where(mask, np.arange(1, mask.size + 1).reshape(mask.shape), 0)
    big = mask.size + 1
    while True:
        # Every pixel takes the smallest label among itself and its neighbours, until nothing changes.
        padded = np.pad(np.where(mask, labels, big), 1, constant_values=big)
        smallest = np.minimum.reduce(
            [padded[1:-1, 1:-1], padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:]]
        )
        spread = np.where(mask, smallest, 0)
        if np.array_equal(spread, labels):
            return [labels == label for label in np.unique(labels[mask])]
        labels = spread


__all__ = ["ShapesDetector", "detect"]
