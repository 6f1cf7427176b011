"""What object detectors share: their interface, and the naming of the objects' colours by CLIP.

GenEval's rules (`geneval_rules`) judge the objects that a detector finds. Detectors are in `mask2former` (GenEval's
own), `grounding_dino` (which finds what words describe) and `shapes_detector` (exact, for the shapes world). Colours
are named as evaluation/evaluate_images.py of djghosh13/geneval names them.
"""

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
from .loading import ModelSource, Pretrained, ProcessorSource


COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
COLOR_TEMPLATES = (
    "a photo of a {color} {label}",
    "a photo of a {color}-colored {label}",
    "a photo of a {color} object",
)
BACKGROUND = (0x99, 0x99, 0x99)  # grey that replaces everything outside an object's mask

# Given an image and objects found in it, returns the name of each object's colour.
ColorNamer = Callable[[Image.Image, Sequence[Detection]], list[str]]


class Detector(Protocol):
    """Interface of object detectors."""

    @property
    def name(self) -> str:
        """Name of the detector in reports."""
        ...

    def detect(
        self, images: Sequence[Image.Image], metadata: Sequence[Mapping[str, Any]] | None = None
    ) -> list[list[Detection]]:
        """Find the objects in each image.

        Args:
            images: PIL images.
            metadata: One line of GenEval's `evaluation_metadata.jsonl` per image, as a dict: the requirements of the
                image's prompt. A detector for which naming colours is costly names them only where these ask for a
                colour, and leaves the others None.

        Returns:
            The detections of each image.
        """
        ...


class PretrainedDetector(Pretrained, ABC):
    """Base of detectors that are transformers models: loading, and colours where the metadata ask for them.

    Args:
        model: Name, folder or loaded model.
        processor: The model's processor; by default that of the model's name.
        colors: Names the colours that metadata ask for; by default a `ClipColors`, loaded when it is first needed.
        settings: `device`, `dtype` and `batch_size`, as for `Pretrained`. The default `colors` gets the first two.
    """

    title = "detector"  # the architecture's name, as reports show it

    def __init__(
        self,
        model: ModelSource,
        processor: ProcessorSource = None,
        *,
        colors: ColorNamer | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(model, processor, **settings)
        self.colors = colors or ClipColors(**{key: settings.get(key) for key in ("device", "dtype")})

    @property
    def name(self) -> str:
        """Architecture and source of the model, as reports show them."""
        return f"{self.title} ({self.source})"

    def detect(
        self, images: Sequence[Image.Image], metadata: Sequence[Mapping[str, Any]] | None = None
    ) -> list[list[Detection]]:
        """Find the objects in each image; see `Detector`.

        Raises:
            TypeError: If an image is not a PIL image.
            ValueError: If `metadata` and `images` differ in length.
        """
        if metadata is not None and len(metadata) != len(images):
            raise ValueError(
                f"`metadata` must have one line per image, got {len(metadata)} lines for {len(images)} images: pass "
                "the line of every image's prompt, or None."
            )
        images = [as_rgb(image) for image in images]
        found = self._find(images, metadata)
        if metadata is None:
            return found
        return [
            with_colors(image, detections, line, self.colors)
            for image, detections, line in zip(images, found, metadata, strict=True)
        ]

    @abstractmethod
    def _find(self, images: list[Image.Image], metadata: Sequence[Mapping[str, Any]] | None) -> list[list[Detection]]:
        """Return the detections of each RGB image, without colours."""


# Colours


class ClipColors(Clip):
    """GenEval's way to name an object's colour: zero-shot classification among ten colours by CLIP.

    The object is cut out along its box, with grey wherever its mask is not. A colour's text feature is the mean of
    those of three sentences about an object of this class and colour.

    Args:
        model: As for `Clip`.
        processor: As for `Clip`.
        settings: `batch_size`, `device` and `dtype`, as for `Clip`.
    """

    def __init__(
        self,
        model: ModelSource = "openai/clip-vit-large-patch14",
        processor: ProcessorSource = None,
        **settings: Any,
    ) -> None:
        super().__init__(model, processor, **settings)
        self._features_of_label: dict[str, torch.Tensor] = {}

    def __call__(self, image: Image.Image, things: Sequence[Detection]) -> list[str]:
        """Return the colour of each object, one of `COLORS`.

        Args:
            image: The image in which the objects were found.
            things: The objects.

        Raises:
            ValueError: If a mask differs from the image in size, or a box is empty.
        """
        if not things:
            return []
        features = self.image_features([cut_out(image, thing) for thing in things])
        return [
            COLORS[int((self.color_features(thing.label) @ feature).argmax())]
            for thing, feature in zip(things, features, strict=True)
        ]

    def color_features(self, label: str) -> torch.Tensor:
        """Return the text features `(10, D)` of the colours of an object of the class, float32 of length 1."""
        # A benchmark asks about few classes many times, so their thirty sentences are read once.
        if label not in self._features_of_label:
            texts = [template.format(color=color, label=label) for color in COLORS for template in COLOR_TEMPLATES]
            features = self.text_features(texts).unflatten(0, (len(COLORS), len(COLOR_TEMPLATES)))
            self._features_of_label[label] = F.normalize(features.mean(dim=1), dim=-1)
        return self._features_of_label[label]


def cut_out(image: Image.Image, thing: Detection) -> Image.Image:
    """Cut an object's box out of an image, with grey wherever the object's mask, if it has one, is not.

    Args:
        image: PIL image.
        thing: The object.

    Returns:
        An RGB image of the size of the box.

    Raises:
        ValueError: If the mask differs from the image in size, or the box is empty.
    """
    image = image.convert("RGB")
    if thing.mask is not None:
        height, width = thing.mask.shape
        if (width, height) != image.size:
            raise ValueError(
                f"`mask` of {thing} must have the size of the image, got {width} x {height} for an image of "
                f"{image.width} x {image.height}: pass the image in which the object was found."
            )
        background = Image.new("RGB", image.size, BACKGROUND)
        image = Image.composite(image, background, Image.fromarray(np.asarray(thing.mask, dtype=bool)))
    if is_empty(thing.box):
        raise ValueError(f"`box` must hold a pixel, got {thing}: leave out detections whose box is empty.")
    return image.crop(_whole_pixels(thing.box))


def is_empty(box: Box) -> bool:
    """Return whether a box holds no pixel once its sides are rounded to whole pixels."""
    left, top, right, bottom = _whole_pixels(box)
    return right <= left or bottom <= top


def _whole_pixels(box: Box) -> tuple[int, int, int, int]:
    left, top, right, bottom = (round(side) for side in box)
    return left, top, right, bottom


def with_colors(
    image: Image.Image, detections: Sequence[Detection], metadata: Mapping[str, Any], colors: ColorNamer
) -> list[Detection]:
    """Name the colours that GenEval's rules will compare.

    A clause of the metadata that asks for a colour compares those of the `count` most confident detections of its
    class. Only these are named, because each costs a forward pass of CLIP.

    Args:
        image: RGB image.
        detections: The objects found in it.
        metadata: A line of GenEval's metadata.
        colors: Names the colours of objects.

    Returns:
        The detections in the same order, some of them with a colour.
    """
    num_named: dict[str, int] = {}
    for clause in metadata.get("include", []):
        if "color" in clause:
            num_named[clause["class"]] = max(num_named.get(clause["class"], 0), clause["count"])
    # Keyed by identity, because detections that are equal may still be several objects.
    names: dict[int, str] = {}
    for label, count in num_named.items():
        best = [detection for detection in by_confidence(detections) if detection.label == label][:count]
        visible = [detection for detection in best if not is_empty(detection.box)]
        names |= zip(map(id, visible), colors(image, visible), strict=True)
    return [
        replace(detection, color=names[id(detection)]) if id(detection) in names else detection
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
