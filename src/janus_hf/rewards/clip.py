"""CLIP: features of images and texts, and two rewards that compare an image with its prompt by them.

GenEval's official scorer runs ViT-L/14 of open_clip; here the same model is transformers'.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from transformers.utils import logging

from .image_io import as_rgb
from .loading import ModelSource, Pretrained, ProcessorSource
from .rewards import Images, check_lengths


logger = logging.get_logger(__name__)

PICK_SCORE = "yuvalkirstain/PickScore_v1"
PICK_SCORE_PROCESSOR = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"  # the one that PickScore was trained with


class Clip(Pretrained):
    """CLIP's features of images and texts.

    Args:
        model: Name, folder or loaded `CLIPModel`.
        processor: The model's processor; by default that of the model's name.
        batch_size: Number of images or texts per forward pass.
        settings: `device` and `dtype`, as for `Pretrained`.
    """

    model_class = "CLIPModel"

    def __init__(
        self,
        model: ModelSource = "openai/clip-vit-large-patch14",
        processor: ProcessorSource = None,
        *,
        batch_size: int = 16,
        **settings: Any,
    ) -> None:
        super().__init__(model, processor, batch_size=batch_size, **settings)

    @torch.no_grad()
    def image_features(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Return the image features `(len(images), D)`, float32 vectors of length 1."""
        features = []
        for batch in self._batches(len(images)):
            inputs = self.processor.image_processor(images=list(images[batch]), return_tensors="pt")
            # In transformers 5 the projected features are the `pooler_output` of this call.
            outputs = self.model.get_image_features(self._to_model(inputs["pixel_values"]))
            features.append(outputs.pooler_output.float())
        return F.normalize(torch.cat(features), dim=-1)

    @torch.no_grad()
    def text_features(self, texts: Sequence[str]) -> torch.Tensor:
        """Return the text features `(len(texts), D)`, float32 vectors of length 1.

        Texts of more than `num_tokens` tokens are cut; the first time this happens, a warning says so.
        """
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
        """Largest number of tokens of a text that CLIP reads, including the start and the end token."""
        return int(self.model.config.text_config.max_position_embeddings)

    def is_cut(self, texts: Sequence[str]) -> list[bool]:
        """Return for each text whether it has more tokens than CLIP reads."""
        if not texts:
            return []
        # The tokenizer's own warning about long texts would say that the model fails on them.
        ids = self.processor.tokenizer(list(texts), verbose=False)["input_ids"]
        return [len(own) > self.num_tokens for own in ids]


class ClipScore(Clip):
    """CLIPScore as torchmetrics defines it: 100 times the cosine of image and prompt, or 0 where that is negative.

    The arguments are those of `Clip`.
    """

    __name__ = "clip_score"

    def __call__(self, images: Images, prompts: Sequence[str], **columns: Any) -> list[float]:
        """Return one number in [0, 100] per image; see `Reward`."""
        return [max(100.0 * cosine, 0.0) for cosine in _cosines(self, images, prompts)]


class PickScore(Clip):
    """PickScore (Kirstain et al., arXiv 2305.01569): a CLIP ViT-H/14 trained on people's choices between images.

    The published score is the cosine of image and prompt times the model's own scale of about 100, so good images have
    about 20. Some trainers divide it by 26.

    The arguments are those of `Clip`.
    """

    __name__ = "pick_score"

    def __init__(
        self,
        model: ModelSource = PICK_SCORE,
        processor: ProcessorSource = None,
        *,
        batch_size: int = 16,
        **settings: Any,
    ) -> None:
        if processor is None and model == PICK_SCORE:
            processor = PICK_SCORE_PROCESSOR
        super().__init__(model, processor, batch_size=batch_size, **settings)

    def __call__(self, images: Images, prompts: Sequence[str], **columns: Any) -> list[float]:
        """Return one score per image; see `Reward`."""
        scale = self.model.logit_scale.exp().item()
        return [scale * cosine for cosine in _cosines(self, images, prompts)]


def _cosines(reward: ClipScore | PickScore, images: Images, prompts: Sequence[str]) -> list[float]:
    """Return the cosine between the features of each image and those of its prompt."""
    check_lengths(reward, images, prompts)
    if not images:
        return []
    image_features = reward.image_features([as_rgb(image) for image in images])
    return (image_features * reward.text_features(prompts)).sum(dim=-1).tolist()


__all__ = ["Clip", "ClipScore", "PickScore"]
