"""Functions that paste the best and the worst images of a run on one sheet, each with its prompt and score."""

import os
import textwrap
from collections.abc import Iterable, Sequence
from numbers import Real
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

from ..arguments import checked, of_kind
from ..files import write_atomically
from ..image_grid import image_grid
from ..rewards.image_io import as_rgb, open_rgb
from .generate_run import png


Picture = Image.Image | str | os.PathLike[str]  # an image, or the path of one

# Sizes in a tile, in pixels. A tile shows an image in its frame, and the caption below.
_SIDE = 192
_FRAME = 4
_FONT_SIZE = 12
_LINES, _CHARACTERS = 4, 32  # size of the caption in lines, and in characters per line
_CAPTION = _LINES * (_FONT_SIZE + 3) + 4


def _are_pictures(value: object) -> bool:
    kinds = (Image.Image, str, os.PathLike)
    return isinstance(value, (list, tuple)) and all(isinstance(one, kinds) for one in value)


def _are_texts(value: object) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(one, str) for one in value)


def _are_numbers(value: object) -> bool:
    return (
        not isinstance(value, (str, bytes))
        and isinstance(value, Iterable)
        and all(isinstance(one, Real) for one in value)
    )


@checked(
    images=of_kind("a list of images or paths", _are_pictures, ["fox.png"]),
    prompts=of_kind("a list of strings", _are_texts, ["a fox"]),
    groups=of_kind("a list of strings", _are_texts, ["animals"]),
    scores=of_kind("a list of numbers", _are_numbers, [0.5]),
)
def score_sheet(
    images: Sequence[Picture],
    prompts: Sequence[str],
    scores: Sequence[float],
    *,
    groups: Sequence[str] | None = None,
    each: int = 6,
    pass_mark: float | None = None,
) -> Image.Image:
    """Paste the images with the highest and the lowest scores on one sheet.

    Every group of images has a row. On the left are its best images, the best one first; on the right its worst
    images, the worst one first. Images with equal scores keep their order, and no image is shown twice. The scores may
    come from any benchmark or reward.

    Args:
        images: Images, or the paths of image files. Only images that are shown are opened.
        prompts: One prompt per image.
        scores: One score per image; a higher score is better.
        groups: One label per image; images with the same label form a group. The label is shown in the caption, and
            rows are in the order in which the labels first occur. None puts all images into one group without a label.
        each: Largest number of best images in a row, and of worst images.
        pass_mark: Images with at least this score get a green frame, the others a red one. None draws no frames.

    Returns:
        The sheet as an RGB image.

    Raises:
        ValueError: If there are no images, or the number of prompts, scores or labels differs from that of the images.
    """
    labels = [""] * len(images) if groups is None else groups
    if not images or not len(images) == len(prompts) == len(scores) == len(labels):
        raise ValueError(
            "`images`, `prompts`, `scores` and `groups` must be of one length, at least 1, got "
            f"{len(images)} images, {len(prompts)} prompts, {len(scores)} scores and {len(labels)} groups: give a "
            "prompt, a score and, if any, a group for each image."
        )
    tiles = []
    for label in dict.fromkeys(labels):
        best = sorted((n for n in range(len(images)) if labels[n] == label), key=lambda n: -scores[n])
        worst = sorted(best[each:], key=lambda n: scores[n])[:each]
        for chosen in (best[:each], worst):
            shown = [_tile(images[n], label, prompts[n], scores[n], pass_mark) for n in chosen]
            tiles += shown + [_blank_tile()] * (each - len(shown))
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
    """Write `sheet.png`, a sheet of the best and the worst images, into the folder of a run.

    The other arguments are those of `score_sheet`.
    """
    sheet = score_sheet(images, prompts, scores, groups=groups, pass_mark=pass_mark)
    write_atomically(folder / "sheet.png", png(sheet))


def _tile(source: Picture, label: str, prompt: str, score: float, pass_mark: float | None) -> Image.Image:
    """Return one tile of a sheet: an image in its frame, and below it a caption with its score, label and prompt.

    The frame is green if the score is at least `pass_mark`, otherwise red; it is white if `pass_mark` is None.
    """
    image = as_rgb(source) if isinstance(source, Image.Image) else open_rgb(source)
    color = "white" if pass_mark is None else "green" if score >= pass_mark else "red"
    # Enlarge a small image without smoothing, so that its single pixels stay visible.
    filtering = Image.Resampling.NEAREST if max(image.size) < _SIDE else Image.Resampling.LANCZOS
    shown = ImageOps.pad(image, (_SIDE, _SIDE), filtering, color="white")
    tile = _blank_tile()
    tile.paste(ImageOps.expand(shown, _FRAME, color), (0, 0))
    caption = f"{score:.3g} {label}: {prompt}" if label else f"{score:.3g} {prompt}"
    lines = textwrap.wrap(caption, _CHARACTERS, max_lines=_LINES, placeholder=" ...")
    font = ImageFont.load_default(_FONT_SIZE)
    ImageDraw.Draw(tile).multiline_text((_FRAME, _SIDE + 2 * _FRAME), "\n".join(lines), "black", font)
    return tile


def _blank_tile() -> Image.Image:
    """Return a white tile of the size of an image with its frame and its caption."""
    return Image.new("RGB", (_SIDE + 2 * _FRAME, _SIDE + 2 * _FRAME + _CAPTION), "white")


__all__ = ["save_sheet", "score_sheet"]
