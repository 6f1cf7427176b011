"""Image files of noise, alone and in the layout of a run."""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image


PROMPTS = ["a cat", "a red dog", "no", "the blue apple", "a", "left of the cat", "yes", "is there a dog"]


def write(folder: Path, count: int, seed: int, high: int = 256, size: tuple[int, int] = (8, 8)) -> list[Path]:
    """Write images of noise in [0, high) with `size` (height, width) and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    paths = [folder / f"{number:04d}.png" for number in range(count)]
    for path in paths:
        Image.fromarray(rng.integers(0, high, (*size, 3), dtype=np.uint8)).save(path)
    return paths


def pixels(paths: list[Path]) -> torch.Tensor:
    """Return images `(N, 3, height, width)` uint8."""
    return torch.from_numpy(np.stack([np.asarray(Image.open(path)) for path in paths])).permute(0, 3, 1, 2)


def write_run(folder: Path, prompts: list[str], each: int = 2) -> Path:
    """Write `each` images of noise per prompt in the layout of a run, and return its folder."""
    for number, prompt in enumerate(prompts):
        place = folder / f"{number:05d}"
        write(place / "samples", each, seed=number)
        (place / "metadata.jsonl").write_text(json.dumps({"tag": "x", "prompt": prompt}) + "\n")
        write(place, 1, seed=0)[0].rename(place / "grid.png")
    return folder
