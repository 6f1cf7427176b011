"""Functions that generate the images of a benchmark's prompts into a folder, in the file layout of GenEval.

    FOLDER/00000/metadata.jsonl            the benchmark's entry of the first prompt, as a line of JSON
    FOLDER/00000/samples/0000.png ...      the images of this prompt
    FOLDER/00000/grid.png                  the same images, side by side

Official scorers read this layout. An image is determined by the checkpoint, the prompt, the settings and the image's
own seed. It therefore depends neither on the number of processes nor on whether the run was stopped and continued.
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
from ..generation.batch_sizes import LARGEST, BatchSize
from ..image_grid import image_grid
from ..protocols import ImagePipeline
from ..rewards.image_io import open_rgb, readable
from .run_folder import environments, open_run, processes, run_settings
from .sharing import own_share, progress_bar_of, share


@dataclass(frozen=True)
class DrawnRun:
    """A folder with the generated images of a benchmark's prompts; the result of `draw_run`.

    Args:
        folder: Folder that holds the images.
        settings: Settings that the images depend on, as `run_settings` returns them.
        drawn_again: One line of text per image file that could not be read and was therefore generated again.
    """

    folder: Path
    settings: dict[str, Any]
    drawn_again: list[str]

    @property
    def record(self) -> dict[str, Any]:
        """Settings of the run, to be put into a report; JSON values.

        The key "environments" is added for versions and hardware, and "drawn_again" if image files were generated
        again.
        """
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
    batch_size: BatchSize,
    drawing: Mapping[str, Any],
    **chosen: Any,
) -> DrawnRun:
    """Open or create the folder of a run, and generate the images that are missing in it.

    Args:
        pipe: Pipeline that generates the images.
        benchmark: Name of the benchmark, which is part of the recorded settings.
        items: Entries of the benchmark, one JSON object per prompt; see `draw_prompts`.
        folder: Folder of the run.
        images_per_prompt: Number of images per prompt.
        seed: Seed of the whole run, from which the seed of each image is derived.
        batch_size: Number of images that each process generates at a time; "auto" takes as many as its memory holds.
        drawing: Arguments of the pipeline's call, such as `guidance_scale`. Arguments that are None are left out.
        chosen: Further settings that the run's outcome depends on; JSON values. They are recorded in the folder.

    Returns:
        The folder, its settings, and a line of text per image file that was generated again.

    Raises:
        TypeError: If `folder` is None.
        ValueError: If the folder was made with other settings, or `images_per_prompt` or `batch_size` is less than 1.
        FileExistsError: If the folder holds files but no run.
    """
    if folder is None:
        raise TypeError("`folder` must be a path, got None: name a folder, in which the images are kept and judged.")
    if images_per_prompt < 1 or (batch_size != "auto" and batch_size < 1):
        raise ValueError(
            f"`images_per_prompt` and `batch_size` must be at least 1, got {images_per_prompt} and {batch_size}: "
            "choose larger ones."
        )
    drawing = {key: value for key, value in drawing.items() if value is not None}
    # Record the values of defaults, so that the folder is refused if a later version has other defaults.
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
    # Check the folder before any image is generated, so that a wrong folder fails at once.
    run = open_run(folder, settings)
    drawn_again = draw_prompts(
        pipe, items, run, images_per_prompt=images_per_prompt, seed=seed, batch_size=batch_size, **drawing
    )
    return DrawnRun(run, settings, drawn_again)


def picture_seed(seed: int, prompt: int, picture: int) -> int:
    """Return the seed of one image of a run.

    Args:
        seed: Seed of the whole run.
        prompt: Number of the prompt, from 0.
        picture: Number of the image among those of its prompt, from 0.
    """
    return int(np.random.SeedSequence((seed, prompt, picture)).generate_state(1)[0])


def sample_path(folder: Path, prompt: int, picture: int) -> Path:
    """Return the path of one image of a run, such as `FOLDER/00012/samples/0003.png`.

    Args:
        folder: Folder of the run.
        prompt: Number of the prompt, from 0.
        picture: Number of the image among those of its prompt, from 0.
    """
    return folder / f"{prompt:05d}" / "samples" / f"{picture:04d}.png"


def draw_prompts(
    pipe: ImagePipeline,
    items: Sequence[Mapping[str, Any]],
    folder: Path,
    *,
    images_per_prompt: int = 4,
    seed: int = 0,
    batch_size: BatchSize = 8,
    **drawing: Any,
) -> list[str]:
    """Generate the images that are missing in the folder of a run, and write metadata and a grid for each prompt.

    Args:
        pipe: Pipeline that generates the images.
        items: Entries of the benchmark, one JSON object per prompt. The key `prompt` holds the text. The optional key
            `seeds` holds one seed per image; without it, `picture_seed` derives the seeds.
        folder: Folder of the run, which `open_run` has created or checked.
        images_per_prompt: Number of images per prompt.
        seed: Seed of the whole run, from which the seed of each image is derived.
        batch_size: Number of images that each process generates at a time; "auto" takes as many as its memory holds.
        drawing: Arguments of the pipeline's call, such as `guidance_scale`.

    Returns:
        One line of text per image file that could not be read and was therefore generated again.
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

    with progress_bar_of(pipe) as shown:
        at_once = LARGEST if batch_size == "auto" else batch_size
        share(missing, generate, batch_size=at_once, title="drawing", unit="image", shows_progress=shown)
    for number in own_share(range(len(items))):
        images = [open_rgb(sample_path(folder, number, index)) for index in range(images_per_prompt)]
        write_atomically(folder / f"{number:05d}" / "grid.png", png(image_grid(images)))
    processes().wait_for_everyone()  # the caller may read grids that other processes write
    return spoiled


def png(image: Image.Image) -> bytes:
    """Encode an image as PNG, and return the bytes of the file."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


__all__ = ["DrawnRun", "draw_prompts", "draw_run", "picture_seed", "png", "sample_path"]
