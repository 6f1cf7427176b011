"""Drawing a benchmark's prompts into GenEval's folder layout, resumable and shared among processes.

    FOLDER/00000/metadata.jsonl            the prompt's line of the benchmark
    FOLDER/00000/samples/0000.png ...      its pictures
    FOLDER/00000/grid.png                  the same, side by side

Official scorers read this layout. A picture is a function of checkpoint, prompt, settings and its own seed, so neither
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
from tqdm.auto import tqdm

from ..image_grid import image_grid
from ..rewards.image_io import open_rgb, readable
from .run_folder import environments, open_run, processes, run_settings, write_atomically


@dataclass(frozen=True)
class DrawnRun:
    """Pictures of a benchmark's prompts.

    Args:
        folder: Where they lie.
        settings: What they depend on.
        drawn_again: One line per picture that could not be read.
    """

    folder: Path
    settings: dict[str, Any]
    drawn_again: list[str]

    @property
    def record(self) -> dict[str, Any]:
        """What a report says of it."""
        record = self.settings | {"environments": environments(self.folder)}
        return record | ({"drawn_again": self.drawn_again} if self.drawn_again else {})


def draw_run(
    pipe: Any,
    benchmark: str,
    items: Sequence[Mapping[str, Any]],
    folder: str | os.PathLike[str],
    *,
    images_per_prompt: int,
    seed: int,
    batch_size: int,
    drawing: Mapping[str, Any],
    **chosen: Any,
) -> DrawnRun:
    """Open a run's folder, and draw into it what is not there yet. Arguments as for `draw_prompts`; `chosen` are
    further settings that the run's outcome depends on.

    Raises:
        ValueError: If the folder was made with other settings, or a number is out of range.
    """
    if images_per_prompt < 1 or batch_size < 1:
        raise ValueError(
            f"images_per_prompt and batch_size must be at least 1, got {images_per_prompt} and {batch_size}."
        )
    drawing = {key: value for key, value in drawing.items() if value is not None}
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
    run = open_run(folder, settings)
    drawn_again = draw_prompts(
        pipe, items, run, images_per_prompt=images_per_prompt, seed=seed, batch_size=batch_size, **drawing
    )
    return DrawnRun(run, settings, drawn_again)


def picture_seed(seed: int, prompt: int, picture: int) -> int:
    """The seed of one picture: a function of the run's seed, the prompt's number and the picture's."""
    return int(np.random.SeedSequence((seed, prompt, picture)).generate_state(1)[0])


def sample_path(folder: Path, prompt: int, picture: int) -> Path:
    """Where a picture lies."""
    return folder / f"{prompt:05d}" / "samples" / f"{picture:04d}.png"


def draw_prompts(
    pipe: Any,
    items: Sequence[Mapping[str, Any]],
    folder: Path,
    *,
    images_per_prompt: int = 4,
    seed: int = 0,
    batch_size: int = 8,
    **drawing: Any,
) -> list[str]:
    """Draw what is not there yet.

    Args:
        pipe: A `JanusProPipeline`.
        items: Lines of the benchmark, each with a `prompt`, and with `seeds`, one per picture, if these are not to be
            `picture_seed`'s.
        folder: Opened by `open_run`.
        images_per_prompt: Pictures per prompt.
        seed: Of the whole run.
        batch_size: Pictures drawn at a time by each process.
        drawing: Passed to the pipeline: `guidance_scale`, `temperature`, ...

    Returns:
        One line per picture that could not be read and was drawn again.
    """
    state = processes()
    spoiled, missing = [], []
    for number, item in enumerate(items):
        for picture in range(images_per_prompt):
            path = sample_path(folder, number, picture)
            if path.exists() and not readable(path):
                spoiled.append(f"{path.relative_to(folder)} could not be read: drawn again")
                missing.append((number, picture))
            elif not path.exists():
                missing.append((number, picture))
        if state.is_main_process:
            line = json.dumps(item, ensure_ascii=False) + "\n"
            write_atomically(folder / f"{number:05d}" / "metadata.jsonl", line.encode())
    state.wait_for_everyone()  # all have looked before any draws

    def seed_of(number: int, picture: int) -> int:
        seeds = items[number].get("seeds")
        return picture_seed(seed, number, picture) if seeds is None else seeds[picture]

    own = missing[state.process_index :: state.num_processes]
    with tqdm(total=len(own), desc="drawing", unit="picture", disable=not state.is_main_process) as progress:
        for start in range(0, len(own), batch_size):
            batch = own[start : start + batch_size]
            pictures = pipe(
                [items[number]["prompt"] for number, _ in batch],
                generator=[torch.Generator().manual_seed(seed_of(*pair)) for pair in batch],
                batch_size=batch_size,
                **drawing,
            ).images
            for (number, picture), image in zip(batch, pictures, strict=True):
                write_atomically(sample_path(folder, number, picture), png(image))
            progress.update(len(batch))
    state.wait_for_everyone()
    for number in range(state.process_index, len(items), state.num_processes):
        drawn = [open_rgb(sample_path(folder, number, picture)) for picture in range(images_per_prompt)]
        write_atomically(folder / f"{number:05d}" / "grid.png", png(image_grid(drawn)))
    state.wait_for_everyone()
    return spoiled


def png(image: Image.Image) -> bytes:
    """A picture as the bytes of a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


__all__ = ["DrawnRun", "draw_prompts", "draw_run", "picture_seed", "png", "sample_path"]
