"""An exact, rule-based object detector for the synthetic images of coloured shapes that `janus_hf.shapes` renders.

Each pixel is assigned to the nearest colour of the palette, in which white is the background. Connected pixels that
are not background form an object. The object's colour is the most frequent one among its pixels, and its shape is the
one whose outline overlaps its own best. The detector also reads images that a model generated: an object whose outline
matches no shape well enough is left out.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
from PIL import Image

from ..shapes.scenes import CELL, COLORS, SHAPES, WHITE, shape_mask
from .geneval_rules import Detection
from .image_io import as_rgb


MIN_AREA = 40  # smallest area of an object in pixels; the smallest rendered shape, a cross, has about 100
# Smallest intersection over union at which an object's outline counts as that of a shape. Even the two most similar
# shapes overlap each other less, as the tests check.
MIN_OVERLAP = 0.75


def detect(image: Image.Image | np.ndarray) -> list[Detection]:
    """Find the coloured shapes in an image rendered by `janus_hf.shapes`, or in a generated image of this kind.

    Args:
        image: PIL image, or pixels `(H, W, 3)` uint8.

    Returns:
        One `Detection` per object, with the name of the shape as `label`, the name of the colour as `color` and a
        `score` of 1. The objects are ordered by their first pixels, reading the image row by row.
    """
    pixels = np.asarray(image.convert("RGB") if isinstance(image, Image.Image) else image).astype(np.int32)
    palette = np.array([WHITE, *COLORS.values()], dtype=np.int32)
    nearest = ((pixels[:, :, None] - palette) ** 2).sum(axis=-1).argmin(axis=-1)
    detections = []
    for component in _components(nearest != 0):
        rows, columns = np.nonzero(component)
        if len(rows) < MIN_AREA:
            continue
        colors = np.bincount(nearest[rows, columns], minlength=len(palette))
        top, left, bottom, right = rows.min(), columns.min(), rows.max() + 1, columns.max() + 1
        shape = _shape(component[top:bottom, left:right])
        if shape is not None:
            # The palette begins with the background, which no pixel of the component has.
            color = list(COLORS)[int(colors[1:].argmax())]
            detections.append(Detection(shape, 1.0, (float(left), float(top), float(right), float(bottom)), color))
    return detections


class ShapesDetector:
    """Make the function `detect` usable as a `Detector`, for the synthetic images of `janus_hf.shapes`.

    It names the colour of every object, so it ignores the metadata.
    """

    name = "the small world's exact detector"

    def detect(
        self, images: Sequence[Image.Image], metadata: Sequence[Mapping[str, Any]] | None = None
    ) -> list[list[Detection]]:
        """Return the objects found in each image, all with their colours; `metadata` is ignored."""
        return [detect(as_rgb(image)) for image in images]


def _shape(outline: np.ndarray) -> str | None:
    """Return the name of the shape that overlaps an object's outline best, or None if no shape overlaps it enough.

    The overlap, which must be at least `MIN_OVERLAP`, is the intersection over union after both outlines are stretched
    to the same square. So the size and the aspect ratio of the object do not matter.

    Args:
        outline: The object's mask `(h, w)` bool, cropped to its bounding box.
    """
    size = CELL
    stretched = np.asarray(Image.fromarray(outline).resize((size, size), Image.Resampling.NEAREST))
    overlaps = {shape: (stretched & mask).sum() / (stretched | mask).sum() for shape, mask in _outlines(size).items()}
    best = max(overlaps, key=lambda shape: overlaps[shape])
    return best if overlaps[best] >= MIN_OVERLAP else None


@cache
def _outlines(size: int) -> dict[str, np.ndarray]:
    """Return the mask `(size, size)` bool of every shape by name. The shapes are stretched to fill the square."""
    outlines = {}
    for shape in SHAPES:
        # The shape is rendered four times larger, so that cropping it to its box is exact to a quarter of a pixel.
        mask = shape_mask(shape, 4 * size) >= 0.5
        rows, columns = np.nonzero(mask)
        box = mask[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        outlines[shape] = np.asarray(Image.fromarray(box).resize((size, size), Image.Resampling.NEAREST))
    return outlines


def _components(mask: np.ndarray) -> list[np.ndarray]:
    """Return the connected components of a mask, each as a bool mask of the same shape.

    Pixels are connected by their sides, not by their corners. The components are ordered by their first pixels,
    reading the mask row by row.
    """
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
