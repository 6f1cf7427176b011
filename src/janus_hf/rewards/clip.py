"""CLIP features of images and texts (`Clip`), and two rewards that use them: `ClipScore` and `PickScore`.

Both rewards compare an image with its prompt. GenEval's official scorer loads CLIP ViT-L/14 with open_clip; here
transformers loads the same model.
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
PICK_SCORE_PROCESSOR = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"  # the processor of PickScore's training


class Clip(Pretrained):
    """A CLIP model that computes features of images and of texts.

    Args:
        model: Name on the Hub, folder, or loaded `CLIPModel`.
        processor: The model's processor; by default the one saved under the model's name.
        batch_size: Number of images or texts per forward pass.
        settings: `device` and `dtype` of the model; see `Pretrained`.
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
        """Return the CLIP features `(len(images), D)` of the images: one float32 vector of L2 norm 1 per image."""
        features = []
        for batch in self._batches(len(images)):
            inputs = self.processor.image_processor(images=list(images[batch]), return_tensors="pt")
            # In transformers 5 the projected features are the `pooler_output` of this call.
            outputs = self.model.get_image_features(self._to_model(inputs["pixel_values"]))
            features.append(outputs.pooler_output.float())
        return F.normalize(torch.cat(features), dim=-1)

    @torch.no_grad()
    def text_features(self, texts: Sequence[str]) -> torch.Tensor:
        """Return the CLIP features `(len(texts), D)` of the texts: one float32 vector of L2 norm 1 per text.

        A text of more than `num_tokens` tokens is truncated; the first time this happens, a warning is logged.
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
        """Maximum number of tokens of a text, including the start and the end token; CLIP cannot read longer texts."""
        return int(self.model.config.text_config.max_position_embeddings)

    def is_cut(self, texts: Sequence[str]) -> list[bool]:
        """Return for each text whether it has more than `num_tokens` tokens, so that `text_features` truncates it."""
        if not texts:
            return []
        # `verbose=False` silences the tokenizer's warning that the model fails on long texts: here they are truncated.
        ids = self.processor.tokenizer(list(texts), verbose=False)["input_ids"]
        return [len(own) > self.num_tokens for own in ids]


class ClipScore(Clip):
    """Reward that is the CLIPScore of an image and its prompt, in [0, 100].

    As in torchmetrics, it is 100 times the cosine similarity of the CLIP features of image and prompt, or 0 if that is
    negative.

    The arguments are those of `Clip`.
    """

    __name__ = "clip_score"

    def __call__(self, images: Images, prompts: Sequence[str], **columns: Any) -> list[float]:
        """Return the CLIPScore in [0, 100] of each image and its prompt; further `columns` are ignored."""
        return [max(100.0 * cosine, 0.0) for cosine in _cosines(self, images, prompts)]


class PickScore(Clip):
    """Reward that is the PickScore of an image and its prompt (Kirstain et al., arXiv 2305.01569).

    PickScore's model is a CLIP ViT-H/14 trained on people's choices between images. As published, the score is the
    cosine similarity of the CLIP features of image and prompt times the model's logit scale of about 100. Good images
    score about 20. Some trainers divide the score by 26.

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
        """Return the PickScore of each image and its prompt; further `columns` are ignored."""
        scale = self.model.logit_scale.exp().item()
        return [scale * cosine for cosine in _cosines(self, images, prompts)]


def _cosines(reward: ClipScore | PickScore, images: Images, prompts: Sequence[str]) -> list[float]:
    """Return the cosine similarity between the CLIP features of each image and those of its prompt.

    Raises:
        ValueError: If there is not one prompt per image.
    """
    check_lengths(reward, images, prompts)
    if not images:
        return []
    image_features = reward.image_features([as_rgb(image) for image in images])
    return (image_features * reward.text_features(prompts)).sum(dim=-1).tolist()


__all__ = ["Clip", "ClipScore", "PickScore"]
