"""What detectors have in common."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from .clip import Clip
from .geneval_rules import Box, Detection, by_confidence
from .image_io import as_rgb
from .loading import Pretrained


COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
COLOR_TEMPLATES = (
    "a photo of a {color} {label}",
    "a photo of a {color}-colored {label}",
    "a photo of a {color} object",
)
BACKGROUND = (0x99, 0x99, 0x99)  # what CLIP sees around a thing

ColorNamer = Callable[[Image.Image, Sequence[Detection]], list[str]]


class Detector(Protocol):
    """Finds things in pictures."""

    @property
    def name(self) -> str:
        """What reports call it."""
        ...

    def detect(
        self, images: Sequence[Image.Image], metadata: Sequence[Mapping[str, Any]] | None = None
    ) -> list[list[Detection]]:
        """What is in each picture.

        Args:
            images: PIL pictures.
            metadata: A line of GenEval's `evaluation_metadata.jsonl` per picture. Colours are looked at only where
                such a line asks for them, so without it they stay None where looking costs something.
        """
        ...


class PretrainedDetector(Pretrained, ABC):
    """What detectors that are transformers models have in common: the colours.

    Args:
        colors: Names the colours that metadata ask for; by default a `ClipColors`, loaded when the first is asked.
        model, processor, device, dtype, batch_size: As for `Pretrained`.
    """

    def __init__(
        self, model: Any, processor: Any = None, *, colors: ColorNamer | None = None, **settings: Any
    ) -> None:
        super().__init__(model, processor, **settings)
        self.colors = colors or ClipColors(**{key: settings.get(key) for key in ("device", "dtype")})

    title = "detector"

    @property
    def name(self) -> str:
        """See `Detector`."""
        return f"{self.title} ({self.source})"

    def detect(
        self, images: Sequence[Image.Image], metadata: Sequence[Mapping[str, Any]] | None = None
    ) -> list[list[Detection]]:
        """See `Detector`.

        Raises:
            TypeError: If an image is not a PIL picture.
            ValueError: If there are not as many lines of metadata as pictures.
        """
        if metadata is not None and len(metadata) != len(images):
            raise ValueError(f"Expected a line of metadata for each of {len(images)} pictures, got {len(metadata)}.")
        pictures = [as_rgb(image) for image in images]
        found = self._find(pictures, metadata)
        if metadata is None:
            return found
        return [
            with_colors(image, things, line, self.colors)
            for image, things, line in zip(pictures, found, metadata, strict=True)
        ]

    @abstractmethod
    def _find(self, images: list[Image.Image], metadata: Sequence[Mapping[str, Any]] | None) -> list[list[Detection]]:
        """The detections of every picture (RGB), without colours."""


# Colours


class ClipColors(Clip):
    """GenEval's judge of colours: which of ten fits a thing best, zero-shot.

    A thing is shown alone: grey wherever its mask is not, cut to its box. A colour's text feature is the mean of those
    of three sentences that name the thing's class.
    """

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._of_label: dict[str, torch.Tensor] = {}

    def __call__(self, image: Image.Image, things: Sequence[Detection]) -> list[str]:
        """The colour of each thing, one of `COLORS`.

        Raises:
            ValueError: If a mask is not of the picture's size, or a box is empty.
        """
        if not things:
            return []
        seen = self.image_features([cut_out(image, thing) for thing in things])
        return [
            COLORS[int((self.color_features(thing.label) @ feature).argmax())]
            for thing, feature in zip(things, seen, strict=True)
        ]

    def color_features(self, label: str) -> torch.Tensor:
        """`(10, D)` float32 of length 1: each colour, said of things of a class."""
        if label not in self._of_label:
            texts = [template.format(color=color, label=label) for color in COLORS for template in COLOR_TEMPLATES]
            features = self.text_features(texts).unflatten(0, (len(COLORS), len(COLOR_TEMPLATES)))
            self._of_label[label] = F.normalize(features.mean(dim=1), dim=-1)
        return self._of_label[label]


def cut_out(image: Image.Image, thing: Detection) -> Image.Image:
    """The thing on grey, cut to its box; without a mask, whatever its box shows.

    Raises:
        ValueError: If the mask is not of the picture's size, or the box is empty.
    """
    image = image.convert("RGB")
    if thing.mask is not None:
        height, width = thing.mask.shape
        if (width, height) != image.size:
            raise ValueError(f"The mask of {thing} is {width} x {height}, the picture {image.width} x {image.height}.")
        background = Image.new("RGB", image.size, BACKGROUND)
        image = Image.composite(image, background, Image.fromarray(np.asarray(thing.mask, dtype=bool)))
    if is_empty(thing.box):
        raise ValueError(f"The box of {thing} is empty: it has no colour.")
    left, top, right, bottom = (round(side) for side in thing.box)
    return image.crop((left, top, right, bottom))


def is_empty(box: Box) -> bool:
    """Whether a box holds no whole pixel."""
    left, top, right, bottom = (round(side) for side in box)
    return right <= left or bottom <= top


def with_colors(
    image: Image.Image, detections: Sequence[Detection], metadata: Mapping[str, Any], colors: ColorNamer
) -> list[Detection]:
    """The detections, in their order, with the colours named that the rules will look at.

    These are, for a clause that asks for a colour, its `count` most confident of the class.

    Args:
        image: RGB.
        detections: What was found in it.
        metadata: A line of GenEval's metadata.
        colors: Names the colours of things.
    """
    asked: dict[str, int] = {}
    for clause in metadata.get("include", []):
        if "color" in clause:
            asked[clause["class"]] = max(asked.get(clause["class"], 0), clause["count"])
    named: dict[int, str] = {}  # by the detection's identity: equal ones may be several things
    for label, count in asked.items():
        best = [detection for detection in by_confidence(detections) if detection.label == label][:count]
        looked_at = [detection for detection in best if not is_empty(detection.box)]
        named |= zip(map(id, looked_at), colors(image, looked_at), strict=True)
    return [
        replace(detection, color=named[id(detection)]) if id(detection) in named else detection
        for detection in detections
    ]


__all__ = [
    "COLORS",
    "ClipColors",
    "ColorNamer",
    "Detector",
    "PretrainedDetector",
    "cut_out",
    "is_empty",
    "with_colors",
]
