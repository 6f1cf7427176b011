"""CLIP: features of pictures and texts, and the colours of things by them.

The official GenEval scorer runs open_clip's ViT-L/14, here it is transformers'. Colours are asked as
evaluation/evaluate_images.py of djghosh13/geneval asks them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from transformers.utils import logging

from .geneval_rules import Box, Detection, by_confidence
from .loading import Pretrained


logger = logging.get_logger(__name__)

COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
COLOR_TEMPLATES = (
    "a photo of a {color} {label}",
    "a photo of a {color}-colored {label}",
    "a photo of a {color} object",
)
BACKGROUND = (0x99, 0x99, 0x99)  # what CLIP sees around a thing

ColorNamer = Callable[[Image.Image, Sequence[Detection]], list[str]]


class Clip(Pretrained):
    """CLIP's features of pictures and texts.

    Args:
        model: Name, folder or `CLIPModel`.
        processor, device, dtype, batch_size: As for `Pretrained`.
    """

    model_class = "CLIPModel"

    def __init__(
        self,
        model: Any = "openai/clip-vit-large-patch14",
        processor: Any = None,
        *,
        batch_size: int = 16,
        **settings: Any,
    ) -> None:
        super().__init__(model, processor, batch_size=batch_size, **settings)

    @torch.no_grad()
    def image_features(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """`(len(images), D)` float32 of length 1."""
        features = []
        for batch in self._batches(len(images)):
            inputs = self.processor.image_processor(images=list(images[batch]), return_tensors="pt")
            features.append(self.model.get_image_features(self._place(inputs["pixel_values"])).pooler_output.float())
        return F.normalize(torch.cat(features), dim=-1)

    @torch.no_grad()
    def text_features(self, texts: Sequence[str]) -> torch.Tensor:
        """`(len(texts), D)` float32 of length 1. Texts longer than CLIP reads are cut, with a warning, once."""
        if any(self.is_cut(texts)):
            logger.warning_once(f"CLIP reads {self.num_tokens} tokens: the ends of longer texts are not seen.")
        features = []
        for batch in self._batches(len(texts)):
            inputs = self.processor.tokenizer(
                list(texts[batch]), padding=True, truncation=True, max_length=self.num_tokens, return_tensors="pt"
            ).to(self.model.device)
            features.append(self.model.get_text_features(**inputs).pooler_output.float())
        return F.normalize(torch.cat(features), dim=-1)

    @property
    def num_tokens(self) -> int:
        """How many tokens of a text CLIP reads; the two that begin and end it are among them."""
        return int(self.model.config.text_config.max_position_embeddings)

    def is_cut(self, texts: Sequence[str]) -> list[bool]:
        """Which texts are longer than CLIP reads."""
        if not texts:
            return []
        ids = self.processor.tokenizer(list(texts), verbose=False)["input_ids"]
        return [len(own) > self.num_tokens for own in ids]


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
    "Clip",
    "ClipColors",
    "ColorNamer",
    "cut_out",
    "is_empty",
    "with_colors",
]
