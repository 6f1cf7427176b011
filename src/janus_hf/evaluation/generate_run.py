"""Generate the images of a benchmark's prompts into GenEval's folder layout, resumable and shared among processes.

    FOLDER/00000/metadata.jsonl            the prompt's line of the benchmark
    FOLDER/00000/samples/0000.png ...      its images
    FOLDER/00000/grid.png                  the same images, side by side

Official scorers read this layout. An image is a function of checkpoint, prompt, settings and its own seed, so neither
the number of processes nor a restart changes it.
"""

import hashlib
import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..files import write_atomically
from ..image_grid import image_grid
from ..protocols import ImagePipeline
from ..rewards.image_io import open_rgb, readable
from .run_folder import environments, open_run, processes, run_settings
from .sharing import own_share, share


@dataclass(frozen=True)
class DrawnRun:
    """The images of a benchmark's prompts, on disk.

    Args:
        folder: Folder that holds them.
        settings: Settings that the images depend on (`run_settings`).
        drawn_again: One line per image file that could not be read and was generated again.
    """

    folder: Path
    settings: dict[str, Any]
    drawn_again: list[str]

    @property
    def record(self) -> dict[str, Any]:
        """The settings and environments of the run, for a report; JSON values."""
        record = self.settings | {"environments": environments(self.folder)}
        return record | ({"drawn_again": self.drawn_again} if self.drawn_again else {})


def draw_run(
    pipe: ImagePipeline,
    benchmark: str,
    items: Sequence[Mapping[str, Any]],
    folder: str | os.PathLike[str] | None,
    *,
    images_per_prompt: int,
    seed: int,
    batch_size: int,
    drawing: Mapping[str, Any],
    **chosen: Any,
) -> DrawnRun:
    """Open the folder of a run and generate the images that are missing in it.

    Args:
        pipe: The pipeline that generates.
        benchmark: Name of the benchmark; part of the recorded settings.
        items: As for `draw_prompts`.
        folder: Folder of the run.
        images_per_prompt, seed, batch_size: As for `draw_prompts`.
        drawing: Arguments of the pipeline's call, such as `guidance_scale`; values of None are left out.
        chosen: Further settings that the run's outcome depends on; JSON values.

    Raises:
        TypeError: If `folder` is None.
        ValueError: If the folder was made with other settings, or a number is out of range.
    """
    if folder is None:
        raise TypeError("`folder` must be a path, got None: name a folder, in which the images are kept and judged.")
    if images_per_prompt < 1 or batch_size < 1:
        raise ValueError(
            f"`images_per_prompt` and `batch_size` must be at least 1, got {images_per_prompt} and {batch_size}: "
            "choose larger ones."
        )
    drawing = {key: value for key, value in drawing.items() if value is not None}
    # Defaults are recorded by value, so that a folder is refused if another default would have made it.
    settings = run_settings(
        pipe,
        benchmark=benchmark,
        prompts=len(items),
        prompts_sha256=hashlib.sha256(json.dumps([dict(i) for i in items], sort_keys=True).encode()).hexdigest(),
        images_per_prompt=images_per_prompt,
        seed=seed,
        drawing={"guidance_scale": pipe.default_guidance_scale, "temperature": 1.0} | drawing,
        **chosen,
    )
    # The folder is checked before any image is generated.
    run = open_run(folder, settings)
    drawn_again = draw_prompts(
        pipe, items, run, images_per_prompt=images_per_prompt, seed=seed, batch_size=batch_size, **drawing
    )
    return DrawnRun(run, settings, drawn_again)


def picture_seed(seed: int, prompt: int, picture: int) -> int:
    """Return the seed of one image, from the run's seed, the prompt's number and the number of the prompt's image."""
    return int(np.random.SeedSequence((seed, prompt, picture)).generate_state(1)[0])


def sample_path(folder: Path, prompt: int, picture: int) -> Path:
    """Return the path of an image, from the prompt's number and the number of the prompt's image."""
    return folder / f"{prompt:05d}" / "samples" / f"{picture:04d}.png"


def draw_prompts(
    pipe: ImagePipeline,
    items: Sequence[Mapping[str, Any]],
    folder: Path,
    *,
    images_per_prompt: int = 4,
    seed: int = 0,
    batch_size: int = 8,
    **drawing: Any,
) -> list[str]:
    """Generate the images that are missing in a folder, and write the grids of all prompts.

    Args:
        pipe: The pipeline that generates.
        items: Lines of the benchmark, each with a `prompt`. A line may have `seeds`, one per image; otherwise
            `picture_seed` gives them.
        folder: Folder of the run, opened by `open_run`.
        images_per_prompt: Number of images per prompt.
        seed: Seed of the whole run.
        batch_size: Number of images that each process generates at a time.
        drawing: Arguments of the pipeline's call, such as `guidance_scale`.

    Returns:
        One line per image file that could not be read and was generated again.
    """
    spoiled: list[str] = []
    missing: list[tuple[int, int]] = []
    for number, item in enumerate(items):
        for index in range(images_per_prompt):
            path = sample_path(folder, number, index)
            if path.exists() and not readable(path):
                spoiled.append(f"{path.relative_to(folder)} could not be read: drawn again")
                missing.append((number, index))
            elif not path.exists():
                missing.append((number, index))
        if processes().is_main_process:
            line = json.dumps(item, ensure_ascii=False) + "\n"
            write_atomically(folder / f"{number:05d}" / "metadata.jsonl", line)
    # Without this barrier a fast process could write images before a slow one has listed the missing ones, and the
    # processes would divide different lists among themselves.
    processes().wait_for_everyone()

    def seed_of(number: int, index: int) -> int:
        seeds = items[number].get("seeds")
        return picture_seed(seed, number, index) if seeds is None else seeds[index]

    def generate(batch: Sequence[tuple[int, int]]) -> tuple[list[Path], list[str]]:
        images = pipe(
            [items[number]["prompt"] for number, _ in batch],
            generator=[torch.Generator().manual_seed(seed_of(*pair)) for pair in batch],
            batch_size=batch_size,
            **drawing,
        ).images
        paths = [sample_path(folder, number, index) for number, index in batch]
        for path, image in zip(paths, images, strict=True):
            write_atomically(path, png(image))
        return paths, []

    share(missing, generate, batch_size=batch_size, title="drawing", unit="image")
    for number in own_share(range(len(items))):
        images = [open_rgb(sample_path(folder, number, index)) for index in range(images_per_prompt)]
        write_atomically(folder / f"{number:05d}" / "grid.png", png(image_grid(images)))
    processes().wait_for_everyone()  # the caller may read grids that another process writes
    return spoiled


def png(image: Image.Image) -> bytes:
    """Encode an image as the bytes of a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


__all__ = ["DrawnRun", "draw_prompts", "draw_run", "picture_seed", "png", "sample_path"]
