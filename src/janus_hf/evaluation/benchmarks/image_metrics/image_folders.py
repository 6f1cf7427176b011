"""Functions that find and open the images for CLIPScore and FID, in the folder of a run or in any other folder."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ....arguments import checked
from ....rewards.image_io import UNREADABLE, open_rgb
from ...data_files import read_json_lines
from ...run_folder import SETTINGS, recorded


_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
_PROMPTS = ("prompt", "caption", "text")  # keys of a line of metadata.jsonl that may hold the prompt


@checked()
def run_pictures(folder: str | os.PathLike[str]) -> dict[Path, str]:
    """Return the image files of a finished run by path, each with the prompt it was generated from.

    Args:
        folder: Folder in GenEval's file layout, with `00000/metadata.jsonl`, `00000/samples/0000.png` and so on. It is
            a run of `janus-hf eval`, or the output of another program for the official scorer.

    Raises:
        FileNotFoundError: If the folder has no such images.
        ValueError: If prompts have different numbers of images, as in a run that was stopped.
    """
    prompts = [path.parent for path in sorted(Path(folder).glob("[0-9]*/metadata.jsonl"))]
    found = {prompt: sorted((prompt / "samples").glob("*.png")) for prompt in prompts}
    most = max(map(len, found.values()), default=0)
    if not most:
        raise FileNotFoundError(
            f"{folder} must be the folder of a run, with 00000/metadata.jsonl and 00000/samples/0000.png. Other "
            "images are read by --images."
        )
    # Refuse a stopped run, whose score would be over an arbitrary part of its images.
    for prompt, images in found.items():
        if len(images) < most:
            raise ValueError(
                f"{prompt} must have {most} images as other prompts have, got {len(images)}: the run was stopped. The "
                "same command continues it."
            )
    return {image: _prompt(prompt / "metadata.jsonl") for prompt, images in found.items() for image in images}


@checked()
def drawn_with(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the settings with which a run's images were generated, such as checkpoint and seed.

    The result is empty if the folder has no `settings.json`, as in the output of another program.

    Raises:
        ValueError: If `settings.json` was written by another program.
    """
    return recorded(folder)[0] if (Path(folder) / SETTINGS).is_file() else {}


@checked()
def folder_pictures(folder: str | os.PathLike[str]) -> list[Path]:
    """Return the paths of all images (PNG, JPEG, WebP, BMP) in a folder and in its subfolders, sorted.

    Raises:
        FileNotFoundError: If there are no images.
        ValueError: If it is the folder of a run, whose grids and sheets are image files too.
    """
    folder = Path(folder)
    if _is_run(folder):
        raise ValueError(f"{folder} must hold images alone, but holds a run: read it by --results (run_pictures).")
    images = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES and path.is_file())
    if not images:
        raise FileNotFoundError(f"{folder} must be a folder of images ({', '.join(_SUFFIXES)}), found none.")
    return images


@checked()
def reference_pictures(folder: str | os.PathLike[str]) -> list[Path]:
    """Return the paths of the images in a folder: the generated ones if it is that of a finished run, otherwise all.

    Raises:
        FileNotFoundError: If there are no images.
        ValueError: If the run was stopped; see `run_pictures`.
    """
    return list(run_pictures(folder)) if _is_run(Path(folder)) else folder_pictures(folder)


@checked()
def prompted_pictures(folder: str | os.PathLike[str]) -> dict[Path, str]:
    """Return the image files of a folder by path, each with its prompt from the folder's `metadata.jsonl`.

    This is the layout of an imagefolder of the library datasets. An image that `metadata.jsonl` names and that does
    not exist is returned too; opening it fails later.

    Args:
        folder: Folder whose `metadata.jsonl` has lines `{"file_name": "0.png", "prompt": "a lighthouse"}`. The keys
            "caption" and "text" are accepted in place of "prompt".

    Raises:
        FileNotFoundError: If there are no images, or no `metadata.jsonl`.
        ValueError: If a line has another layout, or an image has no line.
    """
    folder = Path(folder)
    images, lines = folder_pictures(folder), folder / "metadata.jsonl"
    if not lines.is_file():
        raise FileNotFoundError(
            f'There is no {lines}. CLIPScore needs a prompt for every image: {{"file_name": "0.png", "prompt": '
            '"a lighthouse"}, a line for each.'
        )
    prompts: dict[Path, str] = {}
    for number, line in read_json_lines(lines):
        found = line if isinstance(line, dict) else {}
        prompt = next((found[name] for name in _PROMPTS if isinstance(found.get(name), str)), None)
        if prompt is None or "file_name" not in found:
            raise ValueError(
                f"{lines}, line {number} must be an object with 'file_name' and one of {_PROMPTS}, got {line!r}."
            )
        prompts[folder / found["file_name"]] = prompt
    if without := [path for path in images if path not in prompts]:
        raise ValueError(f"{lines} has no line for {len(without)} of {len(images)} images, such as {without[0].name}.")
    return prompts


def open_pictures(paths: Sequence[Path]) -> tuple[dict[Path, Image.Image], list[str]]:
    """Open image files.

    Returns:
        RGB images by path, and one line of text for each file that cannot be read.
    """
    images, unread = {}, []
    for path in paths:
        try:
            images[path] = open_rgb(path)
        except UNREADABLE as error:
            unread.append(f"{path} cannot be read ({error})")
    return images, unread


def _is_run(folder: Path) -> bool:
    """Return whether a folder has GenEval's file layout, in which runs of benchmarks store their images."""
    return any(folder.glob("[0-9]*/samples"))


def _prompt(path: Path) -> str:
    """Return the prompt in the first line of a `metadata.jsonl` of a run.

    Raises:
        ValueError: If the line is not a JSON object with the key `prompt`.
    """
    try:
        line = json.loads(path.read_text(encoding="utf-8").partition("\n")[0])
    except json.JSONDecodeError:
        line = None
    if not isinstance(line, dict) or not isinstance(line.get("prompt"), str):
        raise ValueError(f"{path} must have an object with 'prompt' in its first line, got {line!r}.")
    return str(line["prompt"])


__all__ = [
    "drawn_with",
    "folder_pictures",
    "open_pictures",
    "prompted_pictures",
    "reference_pictures",
    "run_pictures",
]
