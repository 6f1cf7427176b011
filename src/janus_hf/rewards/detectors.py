"""Interface and base class of object detectors, and functions that name the colours of detected objects with CLIP.

The rules of the GenEval benchmark (`geneval_rules`) judge the objects that a detector finds. The detectors themselves
are in `mask2former` (the detector that GenEval uses), `grounding_dino` (which finds objects of the classes that a text
names) and `shapes_detector` (exact, for the synthetic images of `janus_hf.shapes`). Colours are named as in
evaluation/evaluate_images.py of djghosh13/geneval.
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

# Function that receives an image and the objects found in it, and returns the name of each object's colour.
ColorNamer = Callable[[Image.Image, Sequence[Detection]], list[str]]


class Detector(Protocol):
    """Interface of object detectors: they return the class, the score and the box of each object in an image."""

    @property
    def name(self) -> str:
        """Name under which reports list the detector."""
        ...

    def detect(
        self, images: Sequence[Image.Image], metadata: Sequence[Mapping[str, Any]] | None = None
    ) -> list[list[Detection]]:
        """Find the objects in each image.

        Args:
            images: PIL images.
            metadata: The requirements of each image's prompt: one line of GenEval's `evaluation_metadata.jsonl` per
                image, as a dict. A detector that needs much time to name colours names only those that the
                requirements ask for, and leaves `color` None in its other detections.

        Returns:
            One list of detections per image.
        """
        ...


class PretrainedDetector(Pretrained, ABC):
    """Base class of object detectors that run a transformers model.

    It loads the model and names the colours of objects where the metadata ask for them. A subclass implements `_find`,
    which runs the model.

    Args:
        model: Name on the Hub, folder, or loaded model.
        processor: The model's processor; by default the one saved under the model's name.
        colors: Function that names the colours that the metadata ask for; by default a `ClipColors`, whose CLIP model
            is loaded at its first use.
        settings: `device`, `dtype` and `batch_size` of the model; see `Pretrained`. The default `colors` uses the same
            `device` and `dtype`.
    """

    title = "detector"  # name of the architecture in reports

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
        """Name under which reports list the detector, for example "Mask2Former (name or folder of the model)"."""
        return f"{self.title} ({self.source})"

    def detect(
        self, images: Sequence[Image.Image], metadata: Sequence[Mapping[str, Any]] | None = None
    ) -> list[list[Detection]]:
        """Find the objects in each image; `Detector.detect` explains arguments and result.

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
        """Find the objects in each RGB image and return one list of detections per image, without colours.

        Args:
            images: RGB images.
            metadata: The requirements of each image's prompt, as in `detect`.
        """


# Colours


class ClipColors(Clip):
    """Callable that names the colours of objects as GenEval does: with CLIP as a zero-shot classifier of ten colours.

    CLIP sees the image cropped to the object's box, with all pixels outside the object's mask painted grey. The text
    feature of a colour is the mean feature of three sentences about an object of the same class in this colour, such
    as "a photo of a red dog".

    Args:
        model: Name on the Hub, folder, or loaded `CLIPModel`.
        processor: The model's processor; by default the one saved under the model's name.
        settings: `batch_size`, `device` and `dtype`; see `Clip`.
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
        """Return the name of each object's colour, one of the ten `COLORS`.

        Args:
            image: The image in which the objects were found.
            things: The objects.

        Raises:
            ValueError: If an object's mask differs from the image in size, or its box is empty.
        """
        if not things:
            return []
        features = self.image_features([cut_out(image, thing) for thing in things])
        return [
            COLORS[int((self.color_features(thing.label) @ feature).argmax())]
            for thing, feature in zip(things, features, strict=True)
        ]

    def color_features(self, label: str) -> torch.Tensor:
        """Return the CLIP text features `(10, D)` of the ten `COLORS` for objects of class `label`.

        Each feature is a float32 vector of L2 norm 1.
        """
        # A benchmark has few classes and many objects, so the features of a class's 30 sentences are computed once.
        if label not in self._features_of_label:
            texts = [template.format(color=color, label=label) for color in COLORS for template in COLOR_TEMPLATES]
            features = self.text_features(texts).unflatten(0, (len(COLORS), len(COLOR_TEMPLATES)))
            self._features_of_label[label] = F.normalize(features.mean(dim=1), dim=-1)
        return self._features_of_label[label]


def cut_out(image: Image.Image, thing: Detection) -> Image.Image:
    """Crop an image to an object's box. If the object has a mask, paint all pixels outside the mask grey.

    Args:
        image: PIL image in which the object was found.
        thing: The object.

    Returns:
        An RGB image of the size of the box, whose coordinates are rounded to whole pixels.

    Raises:
        ValueError: If the object's mask differs from the image in size, or its box is empty.
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
    """Return whether a box contains no pixel after its coordinates are rounded to whole pixels."""
    left, top, right, bottom = _whole_pixels(box)
    return right <= left or bottom <= top


def _whole_pixels(box: Box) -> tuple[int, int, int, int]:
    """Return the coordinates `(x1, y1, x2, y2)` of a box, rounded to whole pixels."""
    left, top, right, bottom = (round(side) for side in box)
    return left, top, right, bottom


def with_colors(
    image: Image.Image, detections: Sequence[Detection], metadata: Mapping[str, Any], colors: ColorNamer
) -> list[Detection]:
    """Name the colours of those objects in an image whose colours GenEval's rules will compare.

    A requirement that asks for a colour (an element of `include` in the metadata) compares the colours of the `count`
    most confident detections of its class. Only these are named, because each costs a forward pass of CLIP.

    Args:
        image: RGB image.
        detections: The objects found in the image.
        metadata: The requirements of the image's prompt: a line of GenEval's `evaluation_metadata.jsonl`, as a dict.
        colors: Function that names the colours of objects.

    Returns:
        The detections in the same order. Those whose colour was named are copies with this colour.
    """
    num_named: dict[str, int] = {}
    for clause in metadata.get("include", []):
        if "color" in clause:
            num_named[clause["class"]] = max(num_named.get(clause["class"], 0), clause["count"])
    # The keys are the detections' `id`s, because two equal detections may be different objects.
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
