"""CLIP: features of pictures and texts, and rewards by them."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from transformers.utils import logging

from .image_io import as_rgb
from .loading import Pretrained
from .rewards import Images, check_lengths


logger = logging.get_logger(__name__)


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


class ClipScore(Clip):
    """CLIPScore in torchmetrics' convention: 100 times the cosine of picture and prompt, negative ones as 0."""

    __name__ = "clip_score"

    def __call__(self, images: Images, prompts: Sequence[str], **columns: Any) -> list[float]:
        """See `Reward`. Numbers in [0, 100]."""
        return [max(100.0 * cosine, 0.0) for cosine in _cosines(self, images, prompts)]


class PickScore(Clip):
    """PickScore (Kirstain et al., arXiv 2305.01569): a CLIP ViT-H/14 trained on what people chose among pictures.

    The published score: the cosine of picture and prompt times the model's own scale (about 100, so good pictures have
    about 20). Some trainers divide it by 26.
    """

    __name__ = "pick_score"

    def __init__(
        self,
        model: Any = "yuvalkirstain/PickScore_v1",
        processor: Any = None,
        *,
        batch_size: int = 16,
        **settings: Any,
    ) -> None:
        if processor is None and model == "yuvalkirstain/PickScore_v1":
            processor = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"  # the one it was trained with
        super().__init__(model, processor, batch_size=batch_size, **settings)

    def __call__(self, images: Images, prompts: Sequence[str], **columns: Any) -> list[float]:
        """See `Reward`."""
        scale = self.model.logit_scale.exp().item()
        return [scale * cosine for cosine in _cosines(self, images, prompts)]


def _cosines(clip: Clip, images: Images, prompts: Sequence[str]) -> list[float]:
    check_lengths(clip, images, prompts)
    if not images:
        return []
    seen = clip.image_features([as_rgb(image) for image in images])
    return (seen * clip.text_features(prompts)).sum(dim=-1).tolist()


__all__ = ["Clip", "ClipScore", "PickScore"]
