"""One picture of many: a run's best and worst, with their prompts and scores."""

import os
import textwrap
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

from ..image_grid import image_grid
from ..rewards.image_io import as_rgb, open_rgb
from .generate_run import png
from .run_folder import write_atomically


Picture = Image.Image | str | os.PathLike[str]

_SIDE = 192  # pixels of a picture on the sheet
_FRAME = 4
_FONT_SIZE = 12
_LINES, _CHARACTERS = 4, 32  # of a caption: what fits below a picture
_CAPTION = _LINES * (_FONT_SIZE + 3) + 4


def score_sheet(
    images: Sequence[Picture],
    prompts: Sequence[str],
    scores: Sequence[float],
    *,
    groups: Sequence[str] | None = None,
    each: int = 6,
    pass_mark: float | None = None,
) -> Image.Image:
    """The best and the worst pictures by their scores, whatever gave these: a benchmark, or a reward.

    Every group has a row, its best pictures on the left from the best on, its worst on the right from the worst on. Of
    equal scores the first come first; no picture is shown twice.

    Args:
        images: Pictures, or where they lie; only those that are shown are opened.
        prompts: One per picture.
        scores: One per picture, the more the better.
        groups: One label per picture, shown in the caption; rows are in the order of their first pictures. None is one
            group without a label.
        each: At most so many of the best, and so many of the worst.
        pass_mark: Pictures of at least this score get a green frame, the others a red one. None frames none.

    Raises:
        ValueError: If there are no pictures, or not one prompt, score and label for each.
    """
    labels = [""] * len(images) if groups is None else groups
    if not images or not len(images) == len(prompts) == len(scores) == len(labels):
        raise ValueError(
            "Expected pictures, and a prompt, a score and, if any, a group for each; got "
            f"{len(images)} pictures, {len(prompts)} prompts, {len(scores)} scores and {len(labels)} groups."
        )
    tiles = []
    for label in dict.fromkeys(labels):
        best = sorted((n for n in range(len(images)) if labels[n] == label), key=lambda n: -scores[n])
        worst = sorted(best[each:], key=lambda n: scores[n])[:each]
        for chosen in (best[:each], worst):
            shown = [_tile(images[n], label, prompts[n], scores[n], pass_mark) for n in chosen]
            tiles += shown + [_blank()] * (each - len(shown))
    return image_grid(tiles, columns=2 * each)


def save_sheet(
    folder: Path,
    images: Sequence[Picture],
    prompts: Sequence[str],
    scores: Sequence[float],
    *,
    groups: Sequence[str] | None = None,
    pass_mark: float | None = None,
) -> None:
    """Write `sheet.png` into a run's folder. Arguments as for `score_sheet`."""
    sheet = score_sheet(images, prompts, scores, groups=groups, pass_mark=pass_mark)
    write_atomically(folder / "sheet.png", png(sheet))


def _tile(picture: Picture, label: str, prompt: str, score: float, pass_mark: float | None) -> Image.Image:
    image = as_rgb(picture) if isinstance(picture, Image.Image) else open_rgb(picture)
    color = "white" if pass_mark is None else "green" if score >= pass_mark else "red"
    # A small picture's pixels stay what they are.
    filtering = Image.Resampling.NEAREST if max(image.size) < _SIDE else Image.Resampling.LANCZOS
    shown = ImageOps.pad(image, (_SIDE, _SIDE), filtering, color="white")
    tile = _blank()
    tile.paste(ImageOps.expand(shown, _FRAME, color), (0, 0))
    caption = f"{score:.3g} {label}: {prompt}" if label else f"{score:.3g} {prompt}"
    lines = textwrap.wrap(caption, _CHARACTERS, max_lines=_LINES, placeholder=" ...")
    font = ImageFont.load_default(_FONT_SIZE)
    ImageDraw.Draw(tile).multiline_text((_FRAME, _SIDE + 2 * _FRAME), "\n".join(lines), "black", font)
    return tile


def _blank() -> Image.Image:
    return Image.new("RGB", (_SIDE + 2 * _FRAME, _SIDE + 2 * _FRAME + _CAPTION), "white")


__all__ = ["save_sheet", "score_sheet"]
