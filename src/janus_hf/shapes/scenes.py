"""Scenes of coloured shapes on a board: classes that describe a scene, and functions that make and render one.

A scene has a few objects, each one coloured shape, on different cells of a 4x4 board. It is rendered on white. Every
object is drawn inside its own cell with a margin, so that objects never touch and the same object looks the same in
every cell.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageDraw


SHAPES = ("circle", "square", "triangle", "cross")
COLORS: dict[str, tuple[int, int, int]] = {
    "red": (220, 40, 40),
    "orange": (245, 150, 40),
    "yellow": (240, 220, 60),
    "green": (50, 160, 70),
    "blue": (45, 90, 210),
    "purple": (140, 70, 180),
    "brown": (130, 85, 50),
    "black": (30, 30, 30),
}
WHITE = (255, 255, 255)

# Combinations of colour and shape that training never shows, neither in images to generate nor in questions. The
# scores on them tell whether a model composes colours and shapes that it has learned separately.
HELD_OUT = frozenset({("red", "cross"), ("green", "circle"), ("purple", "square"), ("black", "triangle")})

BOARD = 4  # cells per side
CELL = 16  # pixels per side of a cell
SIDE = BOARD * CELL  # pixels per side of an image


@dataclass(frozen=True)
class Thing:
    """One coloured shape on a cell of the board; row 0 is at the top, column 0 at the left."""

    color: str
    shape: str
    row: int
    column: int

    @property
    def name(self) -> str:
        """Colour and shape of the object, for example "red circle"."""
        return f"{self.color} {self.shape}"


@dataclass(frozen=True)
class Scene:
    """Coloured shapes on different cells of a 4x4 board.

    The image does not depend on the order of the objects, but some prompts name a relation of the first object to the
    second.
    """

    things: tuple[Thing, ...]

    def select(self, *, color: str | None = None, shape: str | None = None) -> list[Thing]:
        """Return the objects of this colour and this shape; None accepts every colour or shape."""
        return [t for t in self.things if color in (None, t.color) and shape in (None, t.shape)]


@cache
def shape_mask(shape: str, size: int = CELL) -> np.ndarray:
    """Return how much of every pixel of a cell the shape covers: `(size, size)` float32 in [0, 1], antialiased.

    Args:
        shape: One of `SHAPES`.
        size: Side of the cell in pixels.

    Raises:
        ValueError: If the shape is unknown.
    """
    # The shape is rendered at eight times the size and averaged, which antialiases it.
    scale = 8
    full = size * scale
    low, high, middle = full // CELL, full - full // CELL - 1, full / 2  # one pixel of margin at the board's own size
    image = Image.new("L", (full, full), 0)
    draw = ImageDraw.Draw(image)
    if shape == "circle":
        draw.ellipse((low, low, high, high), fill=255)
    elif shape == "square":
        draw.rectangle((low, low, high, high), fill=255)
    elif shape == "triangle":
        draw.polygon([(middle, low), (high, high), (low, high)], fill=255)
    elif shape == "cross":
        arm = full // 8
        draw.rectangle((middle - arm, low, middle + arm - 1, high), fill=255)
        draw.rectangle((low, middle - arm, high, middle + arm - 1), fill=255)
    else:
        raise ValueError(f"`shape` must be one of {SHAPES}, got {shape!r}: choose one of them.")
    small = image.resize((size, size), Image.Resampling.BOX)
    return np.asarray(small, dtype=np.float32) / 255


@cache
def _sprite(color: str, shape: str) -> np.ndarray:
    """Return the image of a coloured shape in its cell: `(CELL, CELL, 3)` uint8."""
    mask = shape_mask(shape)[..., None]
    return np.rint(mask * np.array(COLORS[color]) + (1 - mask) * np.array(WHITE)).astype(np.uint8)


def render(scene: Scene) -> np.ndarray:
    """Return the image of a scene as an RGB array, `(SIDE, SIDE, 3)` uint8."""
    pixels = np.full((SIDE, SIDE, 3), 255, dtype=np.uint8)
    for thing in scene.things:
        top, left = thing.row * CELL, thing.column * CELL
        pixels[top : top + CELL, left : left + CELL] = _sprite(thing.color, thing.shape)
    return pixels


def picture(scene: Scene) -> Image.Image:
    """Return the image of a scene as a PIL image."""
    return Image.fromarray(render(scene))


def place(kinds: Iterable[tuple[str, str]], rng: np.random.Generator) -> Scene:
    """Return a scene with the given objects, each a pair `(color, shape)`, on random different cells of the board."""
    kinds = list(kinds)
    return _on_cells(kinds, rng.choice(BOARD * BOARD, size=len(kinds), replace=False))


def place_in_order(kinds: Iterable[tuple[str, str]], rng: np.random.Generator) -> Scene:
    """Return a scene with the given objects on random different cells, in the given order in reading direction.

    Each object is a pair `(color, shape)`. Reading direction is row by row from the top left.
    """
    kinds = list(kinds)
    return _on_cells(kinds, np.sort(rng.choice(BOARD * BOARD, size=len(kinds), replace=False)))


def _on_cells(kinds: list[tuple[str, str]], cells: np.ndarray) -> Scene:
    """Return a scene with each `(color, shape)` on the cell whose number has the same index in `cells`.

    Cells are numbered row by row from the top left.
    """
    return Scene(tuple(Thing(c, s, int(i) // BOARD, int(i) % BOARD) for (c, s), i in zip(kinds, cells, strict=True)))


__all__ = [
    "BOARD",
    "CELL",
    "COLORS",
    "HELD_OUT",
    "SHAPES",
    "SIDE",
    "Scene",
    "Thing",
    "picture",
    "place",
    "place_in_order",
    "render",
]
