"""What rooms below the model and the pipeline need of them, as types.

`generation`, `answering`, `data` and `evaluation` receive a model or a pipeline as an argument and must not import the
classes, which import them. Each Protocol lists what these rooms use, and no more.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from PIL import Image
from torch import nn
from transformers import BatchFeature, GenerationConfig, PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput


class BareModel(Protocol):
    """The model without its text head, as generation uses it: `JanusProModel`."""

    config: PreTrainedConfig
    language_model: PreTrainedModel
    generation_aligner: nn.Module
    generation_head: nn.Module  # hidden states (..., D) -> image logits (..., K)
    vqmodel: PreTrainedModel  # the image codec: pixels <-> image tokens

    def __call__(self, **kwargs: Any) -> ModelOutput:  # Any: a transformers signature
        """Run the language model over a mixed sequence of text and image tokens."""
        ...

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """Iterate over all weights."""
        ...

    def embed_ids(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Embed joint ids `(B, T)` as inputs `(B, T, D)` of the language model."""
        ...

    def embed_image_ids(self, image_ids: torch.Tensor) -> torch.Tensor:
        """Embed image tokens `(...)` as inputs `(..., D)` of the language model."""
        ...


class HasImageTokens(Protocol):
    """A model that reads text and images and generates image tokens: `JanusProForConditionalGeneration`."""

    config: PreTrainedConfig
    generation_config: GenerationConfig
    model: BareModel

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return parameters, buffers and modules' extra state by name, as in PyTorch's `Module`."""
        ...

    def get_submodule(self, target: str) -> torch.nn.Module:
        """Return a part of the model by its dotted name, as in PyTorch's `Module`."""
        ...

    def generate(self, **kwargs: Any) -> torch.Tensor:
        """Generate text tokens, as in transformers' `GenerationMixin`."""
        ...

    def generate_images(self, input_ids: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """Generate image tokens `(B, P)` int64 from prompts `(B, T)`."""
        ...

    def encode_image_ids(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Encode pixels `(B, 3, S, S)` in [-1, 1] as image tokens `(B, P)` int64."""
        ...

    def decode_image_ids(self, image_ids: torch.Tensor) -> torch.Tensor:
        """Decode image tokens `(B, P)` to pixels `(B, 3, S, S)` in [-1, 1]."""
        ...


class ChatProcessor(Protocol):
    """A processor that renders conversations: `JanusProProcessor`, or that of any transformers chat model."""

    def apply_chat_template(self, conversation: Any, **kwargs: Any) -> BatchFeature:
        """Render conversations and tokenize them into one batch, as in transformers' `ProcessorMixin`."""
        ...

    def decode(self, token_ids: Any, **kwargs: Any) -> str:
        """Decode one row of token ids."""
        ...


class GeneratedImages(Protocol):
    """What a call of an `ImagePipeline` returns."""

    images: list[Image.Image]
    image_ids: torch.Tensor


class ImagePipeline(Protocol):
    """A pipeline that generates images and answers questions about images: `JanusProPipeline`."""

    model: HasImageTokens
    processor: Any  # a JanusProProcessor, of which evaluation uses the placeholder and the chat template

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        ...

    @property
    def default_guidance_scale(self) -> float:
        """The guidance scale that `guidance_scale=None` stands for."""
        ...

    def __call__(self, prompt: str | list[str], **kwargs: Any) -> GeneratedImages:
        """Generate images; the arguments are those of `JanusProPipeline.__call__`."""
        ...

    def ask(self, image: Any, question: str | list[str], **kwargs: Any) -> str | list[str]:
        """Answer questions about an image."""
        ...

    def chat(self, messages: Sequence[dict[str, Any]], **kwargs: Any) -> str:
        """Continue a conversation."""
        ...


__all__ = ["BareModel", "ChatProcessor", "GeneratedImages", "HasImageTokens", "ImagePipeline"]
