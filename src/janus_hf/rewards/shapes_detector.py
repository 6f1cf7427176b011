"""An exact, rule-based detector for images of the shapes world (`janus_hf.shapes`).

Each pixel belongs to the nearest colour of the palette, where white is the background. Connected pixels that are not
background form an object: most of its pixels decide its colour, and its outline decides its shape. The detector also
reads images that a model generated: an object whose outline fits no shape well enough is left out.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
from PIL import Image

from ..shapes.scenes import CELL, COLORS, SHAPES, WHITE, shape_mask
from .geneval_rules import Detection
from .image_io import as_rgb


MIN_AREA = 40  # pixels; the smallest rendered shape, a cross, has about 100
# Smallest intersection over union of an object with its shape. The two most similar shapes overlap less, which the
# tests measure.
MIN_OVERLAP = 0.75


def detect(image: Image.Image | np.ndarray) -> list[Detection]:
    """Find the coloured shapes in an image.

    Args:
        image: PIL image, or pixels `(H, W, 3)` uint8.

    Returns:
        One `Detection` per object with its shape as the label, its colour and score 1, in the order in which their
        first pixels are read row by row.
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
    """`detect` behind the interface `Detector`. It names the colour of every object."""

    name = "the small world's exact detector"

    def detect(
        self, images: Sequence[Image.Image], metadata: Sequence[Mapping[str, Any]] | None = None
    ) -> list[list[Detection]]:
        """Find the objects in each image; see `Detector`. The metadata are ignored."""
        return [detect(as_rgb(image)) for image in images]


def _shape(outline: np.ndarray) -> str | None:
    """Return the shape that overlaps an object's outline best, or None if none reaches `MIN_OVERLAP`.

    Outlines are compared after stretching both over the same square, so size and proportions do not matter.

    Args:
        outline: The object's mask `(h, w)` bool, cut to its box.
    """
    size = CELL
    stretched = np.asarray(Image.fromarray(outline).resize((size, size), Image.Resampling.NEAREST))
    overlaps = {shape: (stretched & mask).sum() / (stretched | mask).sum() for shape, mask in _outlines(size).items()}
    best = max(overlaps, key=lambda shape: overlaps[shape])
    return best if overlaps[best] >= MIN_OVERLAP else None


@cache
def _outlines(size: int) -> dict[str, np.ndarray]:
    """Return the mask of each shape, stretched to fill a square of `(size, size)` bool."""
    outlines = {}
    for shape in SHAPES:
        # Rendered larger than needed, so that cutting it to its box is exact to a quarter of a pixel.
        mask = shape_mask(shape, 4 * size) >= 0.5
        rows, columns = np.nonzero(mask)
        box = mask[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        outlines[shape] = np.asarray(Image.fromarray(box).resize((size, size), Image.Resampling.NEAREST))
    return outlines


def _components(mask: np.ndarray) -> list[np.ndarray]:
    """Return the groups of pixels that are connected by their sides, each as a mask like `mask`.

    The groups come in the order in which their first pixels are read row by row.
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
