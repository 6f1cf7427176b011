"""Who finds the things that GenEval's rules judge: what detectors have in common, and the small world's.

GenEval's own is in `mask2former`, one that looks for words in `grounding_dino`.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from PIL import Image

from .clip import ClipColors, ColorNamer, with_colors
from .geneval_rules import Detection
from .image_io import as_rgb
from .loading import Pretrained
from .shapes_detector import detect as detect_shapes


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


class ShapesDetector:
    """The small world's exact detector (`shapes_detector.detect`). It always knows the colours."""

    name = "the small world's exact detector"

    def detect(
        self, images: Sequence[Image.Image], metadata: Sequence[Mapping[str, Any]] | None = None
    ) -> list[list[Detection]]:
        """See `Detector`."""
        return [detect_shapes(as_rgb(image)) for image in images]


__all__ = ["Detector", "PretrainedDetector", "ShapesDetector"]
