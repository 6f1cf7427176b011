"""Datasets of random boards, for the codec and for the pre-training of the understanding tower."""

import numpy as np
import torch
from torch.utils.data import Dataset

from janus_hf.shapes import COLORS, SHAPES, SIDE, Scene, place, render

from .settings import PATCH


CROWDS = [1, 2, 3, 4, 6, 10, 14]  # possible numbers of objects on a board


def to_pixels(images: list[np.ndarray]) -> torch.Tensor:
    """Convert `(H, W, 3)` uint8 images to one tensor `(B, 3, H, W)` float32 in [-1, 1]."""
    return torch.from_numpy(np.stack(images)).movedim(-1, 1).float() / 127.5 - 1


class Boards(Dataset):
    """Sparse and crowded boards of every colour and shape; board i depends on the seed and on i only.

    Items are `{"pixel_values": (3, SIDE, SIDE) float32 in [-1, 1]}`. Boards show the combinations that are held out
    from generation and questions, just as the released codec has seen images of everything: an image could not be
    generated at all if the codec had no tokens for it.
    """

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed = count, seed

    def __len__(self) -> int:
        return self.count

    def scene(self, index: int) -> Scene:
        """Return the scene of a board."""
        rng = np.random.default_rng((self.seed, index))
        kinds = [(str(rng.choice(list(COLORS))), str(rng.choice(SHAPES))) for _ in range(int(rng.choice(CROWDS)))]
        return place(kinds, rng)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"pixel_values": to_pixels([render(self.scene(index))])[0]}


class LabelledBoards(Boards):
    """Boards with a label for every patch.

    Items also have `labels` `(4, P)` int64 for the P patches of the image: colour and shape (0 where there is no
    object, else index + 1), row and column.
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
