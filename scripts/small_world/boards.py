"""Datasets of images of random boards of coloured shapes, on which the image codec and the vision encoder train."""

import numpy as np
import torch
from torch.utils.data import Dataset

from janus_hf.shapes import COLORS, SHAPES, SIDE, Scene, place, render

from .settings import PATCH


CROWDS = [1, 2, 3, 4, 6, 10, 14]  # possible numbers of objects on a board


def to_pixels(images: list[np.ndarray]) -> torch.Tensor:
    """Convert B images `(H, W, 3)` uint8 in [0, 255] to one tensor `(B, 3, H, W)` float32 in [-1, 1]."""
    return torch.from_numpy(np.stack(images)).movedim(-1, 1).float() / 127.5 - 1


class Boards(Dataset):
    """A dataset of images of random boards with 1 to 14 coloured shapes; item i depends only on `seed` and i.

    Items are `{"pixel_values": tensor}` with the image `(3, SIDE, SIDE)` float32 in [-1, 1]. All combinations of
    colour and shape occur, also those that the prompts and questions of training leave out (`HELD_OUT`): an image
    could not be generated at all if the codec had no tokens for it. The released codec, too, was trained on images of
    all kinds.

    Args:
        count: Number of boards.
        seed: Seed of the boards.
    """

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed = count, seed

    def __len__(self) -> int:
        return self.count

    def scene(self, index: int) -> Scene:
        """Return the scene (the objects and their cells) that item `index` shows."""
        rng = np.random.default_rng((self.seed, index))
        kinds = [(str(rng.choice(list(COLORS))), str(rng.choice(SHAPES))) for _ in range(int(rng.choice(CROWDS)))]
        return place(kinds, rng)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"pixel_values": to_pixels([render(self.scene(index))])[0]}


class LabelledBoards(Boards):
    """`Boards` whose items also have four labels for each of the `P` patches of the image.

    The key "labels" of an item holds a tensor `(4, P)` int64. Its rows are the colour and the shape of the object in
    the patch (index in `COLORS` or `SHAPES` plus 1, or 0 if there is no object), and the patch's row and column.
    """

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        scene, side = self.scene(index), SIDE // PATCH
        labels = np.zeros((4, side, side), dtype=np.int64)
        for thing in scene.things:
            cell = np.s_[2 * thing.row : 2 * thing.row + 2, 2 * thing.column : 2 * thing.column + 2]
            labels[0][cell] = 1 + list(COLORS).index(thing.color)
            labels[1][cell] = 1 + SHAPES.index(thing.shape)
        labels[2:] = np.indices((side, side))
        return {"pixel_values": to_pixels([render(scene)])[0], "labels": torch.from_numpy(labels).flatten(1)}
