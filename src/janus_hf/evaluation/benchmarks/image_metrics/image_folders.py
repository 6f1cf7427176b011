"""Where the pictures lie that CLIPScore and FID look at: runs, and any other folders."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm.auto import tqdm

from ....rewards.image_io import UNREADABLE, open_rgb
from ...run_folder import SETTINGS, processes, recorded


_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
_PROMPTS = ("prompt", "caption", "text")


def run_pictures(folder: str | os.PathLike[str]) -> dict[Path, str]:
    """The pictures of a finished run in GenEval's layout, each with the prompt it was drawn from.

    Args:
        folder: With `00000/metadata.jsonl`, `00000/samples/0000.png` and so on: a run of `janus-hf eval`, or what
            another tool drew for the official scorer.

    Raises:
        FileNotFoundError: If the folder has no such pictures.
        ValueError: If prompts have different numbers of pictures, as in a run that was stopped.
    """
    places = [path.parent for path in sorted(Path(folder).glob("[0-9]*/metadata.jsonl"))]
    found = {place: sorted((place / "samples").glob("*.png")) for place in places}
    most = max(map(len, found.values()), default=0)
    if not most:
        raise FileNotFoundError(
            f"Expected the folder of a run, 00000/metadata.jsonl and 00000/samples/0000.png, at {folder}. Other "
            "pictures are read by --images."
        )
    for place, pictures in found.items():
        if len(pictures) < most:
            raise ValueError(
                f"{place} has {len(pictures)} pictures where other prompts have {most}: the run was stopped. The same "
                "command goes on with it."
            )
    return {picture: _prompt(place / "metadata.jsonl") for place, pictures in found.items() for picture in pictures}


def drawn_with(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """What the pictures of a run depend on, checkpoint and seed among them; empty where nothing is recorded.

    Raises:
        ValueError: If what is recorded is not of a run.
    """
    return recorded(folder)[0] if (Path(folder) / SETTINGS).is_file() else {}


def folder_pictures(folder: str | os.PathLike[str]) -> list[Path]:
    """All pictures (PNG, JPEG, WebP, BMP) in a folder and in its folders, sorted.

    Raises:
        FileNotFoundError: If there are none.
        ValueError: If it is the folder of a run, whose grids and sheets are pictures as well.
    """
    folder = Path(folder)
    if _is_run(folder):
        raise ValueError(f"{folder} holds a run, not pictures alone: read it by --results (run_pictures).")
    pictures = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES and path.is_file())
    if not pictures:
        raise FileNotFoundError(f"Expected a folder of pictures ({', '.join(_SUFFIXES)}) at {folder}; found none.")
    return pictures


def reference_pictures(folder: str | os.PathLike[str]) -> list[Path]:
    """The pictures of a finished run, or of any folder.

    Raises:
        FileNotFoundError: If there are none.
        ValueError: As `run_pictures`.
    """
    return list(run_pictures(folder)) if _is_run(Path(folder)) else folder_pictures(folder)


def prompted_pictures(folder: str | os.PathLike[str]) -> dict[Path, str]:
    """The pictures of a folder with the prompts of its `metadata.jsonl`, the layout of an imagefolder.

    Args:
        folder: With lines `{"file_name": "0.png", "prompt": "a lighthouse"}`; "caption" and "text" are read as well.

    Raises:
        FileNotFoundError: If there are no pictures, or no `metadata.jsonl`.
        ValueError: If a line has another layout, or a picture no line. Pictures that are named but missing are found
            out when they are opened.
    """
    folder = Path(folder)
    pictures, lines = folder_pictures(folder), folder / "metadata.jsonl"
    if not lines.is_file():
        raise FileNotFoundError(
            f'There is no {lines}. CLIPScore needs a prompt for every picture: {{"file_name": "0.png", "prompt": '
            '"a lighthouse"}, a line for each.'
        )
    prompts: dict[Path, str] = {}
    for number, text in enumerate(lines.read_text(encoding="utf-8").splitlines(), start=1):
        line = _parsed(text) if text.strip() else {}
        prompt = next((line[name] for name in _PROMPTS if isinstance(line.get(name), str)), None)
        if text.strip() and (prompt is None or "file_name" not in line):
            raise ValueError(
                f"{lines}, line {number}: expected an object with 'file_name' and one of {_PROMPTS}, got {text!r}."
            )
        if prompt is not None:
            prompts[folder / line["file_name"]] = prompt
    if without := [path for path in pictures if path not in prompts]:
        raise ValueError(f"{lines} has no line for {len(without)} of {len(pictures)} pictures, as {without[0].name}.")
    return prompts


def _is_run(folder: Path) -> bool:
    return any(folder.glob("[0-9]*/samples"))


def _prompt(path: Path) -> str:
    """What the pictures of a folder of a run were drawn from."""
    line = _parsed(path.read_text(encoding="utf-8").partition("\n")[0])
    if not isinstance(line.get("prompt"), str):
        raise ValueError(f"{path}: expected an object with 'prompt' in the first line.")
    return str(line["prompt"])


def _parsed(text: str) -> dict[str, Any]:
    """A line of JSON; empty if it is none, or another thing than an object."""
    try:
        line = json.loads(text)
    except json.JSONDecodeError:
        return {}
    return line if isinstance(line, dict) else {}


def own_batches(paths: Sequence[Path], batch_size: int, title: str) -> Iterator[Sequence[Path]]:
    """This process's share, batch by batch, under a progress bar."""
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
    state = processes()
    own = paths[state.process_index :: state.num_processes]
    with tqdm(total=len(own), desc=title, unit="picture", disable=not state.is_main_process) as progress:
        for start in range(0, len(own), batch_size):
            batch = own[start : start + batch_size]
            yield batch
            progress.update(len(batch))


def open_pictures(paths: Sequence[Path]) -> tuple[dict[Path, Image.Image], list[str]]:
    """RGB pictures by path, and a line for each that cannot be read."""
    images, unread = {}, []
    for path in paths:
        try:
            images[path] = open_rgb(path)
        except UNREADABLE as error:
            unread.append(f"{path} cannot be read ({error})")
    return images, unread


__all__ = [
    "drawn_with",
    "folder_pictures",
    "open_pictures",
    "own_batches",
    "prompted_pictures",
    "reference_pictures",
    "run_pictures",
]
