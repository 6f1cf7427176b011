"""Types (Protocols) for a model, processor or pipeline in code that receives one as an argument and uses its methods.

`generation`, `answering`, `data` and `evaluation` must not import the classes themselves, because those import them.
Each Protocol lists only what these folders use.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol, Self, overload

import torch
from PIL import Image
from torch import nn
from transformers import BatchFeature, GenerationConfig, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import ModelOutput


class BareModel(Protocol):
    """The model without its text head, as image generation uses it; `JanusProModel` has this type."""

    @property
    def config(self) -> PreTrainedConfig:
        """Configuration of the model."""
        ...

    @property
    def language_model(self) -> PreTrainedModel:
        """The language model, without its text head."""
        ...

    @property
    def generation_embeddings(self) -> nn.Module:
        """The module that maps image tokens to codebook vectors."""
        ...

    @property
    def generation_aligner(self) -> nn.Module:
        """The module that maps codebook vectors to inputs of the language model."""
        ...

    @property
    def generation_head(self) -> nn.Module:
        """The image head: hidden states `(..., D)` -> image logits `(..., K)` over the `K` codebook entries."""
        ...

    @property
    def vqmodel(self) -> PreTrainedModel:
        """The image codec: pixels <-> image tokens."""
        ...

    def __call__(self, *args: Any, **kwargs: Any) -> ModelOutput:  # Any: a transformers signature
        """Run the language model over a sequence that may mix text and image tokens, and return its hidden states."""
        ...

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """Iterate over all weights, as in PyTorch's `Module`."""
        ...

    def embed_ids(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Embed token ids `(B, T)` as inputs `(B, T, D)` of the language model, whose width is `D`.

        Text ids lie below the size `V` of the text vocabulary; id `V + c` is image token `c`.
        """
        ...

    def embed_image_ids(self, image_ids: torch.Tensor) -> torch.Tensor:
        """Embed image tokens `(...)` as inputs `(..., D)` of the language model, whose width is `D`."""
        ...


class ImageReader(BareModel, Protocol):
    """The model without its text head, as text generation uses it; `JanusProModel` has this type."""

    def get_image_features(self, pixel_values: torch.Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        """Encode `M` images `(M, 3, H, W)` as `pooler_output` `(M, P, D)`, `P` features per image of width `D`."""
        ...

    def find_placeholders(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Return which of the ids `(B, T)` are placeholders of images, as `(B, T)` bool."""
        ...

    def check_placeholders(self, mask: torch.Tensor, features: torch.Tensor | None) -> None:
        """Raise a ValueError unless a mask `(B, T)` has as many placeholders as there are features `(M, P, D)`."""
        ...


class HasImageTokens(Protocol):
    """A model that reads text and images and generates image tokens, such as `JanusProForConditionalGeneration`."""

    generation_config: GenerationConfig

    @property
    def config(self) -> PreTrainedConfig:
        """Configuration of the model."""
        ...

    @property
    def model(self) -> BareModel:
        """The model without its text head."""
        ...

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights."""
        ...

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Return parameters, buffers and the extra state of modules by name, as in PyTorch's `Module`."""
        ...

    def get_submodule(self, target: str) -> torch.nn.Module:
        """Return the submodule with this dotted name, as in PyTorch's `Module`."""
        ...

    def generate(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Generate text tokens and return them, as in transformers' `GenerationMixin`."""
        ...

    # Any: each caller gives the arguments that it needs, and a checker accepts every implementation only so
    def generate_images(self, input_ids: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Generate image tokens `(B, P)` int64, `P` per image, for `B` prompts `(B, T)`, and return them."""
        ...

    def encode_image_ids(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Encode square images of `S` pixels a side, `(B, 3, S, S)` in [-1, 1], as image tokens `(B, P)` int64."""
        ...

    def decode_image_ids(self, image_ids: torch.Tensor) -> torch.Tensor:
        """Decode image tokens `(B, P)` to square images of `S` pixels a side, `(B, 3, S, S)` in [-1, 1]."""
        ...


class ChatProcessor(Protocol):
    """A processor that renders conversations as prompts: `JanusProProcessor`, or that of any other chat model."""

    def apply_chat_template(self, conversation: Any, **kwargs: Any) -> BatchFeature:
        """Render conversations as prompts and tokenize them into one batch, as in transformers' `ProcessorMixin`."""
        ...

    def decode(self, token_ids: Any, **kwargs: Any) -> str:
        """Return the text of one sequence of token ids."""
        ...


class GeneratedImages(Protocol):
    """Output of a call of an `ImagePipeline`: PIL images, and their image tokens `(B, P)`, `P` per image."""

    images: list[Image.Image]
    image_ids: torch.Tensor


class ImagePipeline(Protocol):
    """A pipeline that generates images and answers questions about images; `JanusProPipeline` has this type."""

    processor: Any  # Any: a JanusProProcessor, of which evaluation uses the placeholder and the chat template

    @property
    def model(self) -> HasImageTokens:
        """The model that generates and answers."""
        ...

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        ...

    @property
    def default_guidance_scale(self) -> float:
        """Guidance scale that the pipeline uses for `guidance_scale=None`."""
        ...

    # Any: each caller gives the arguments that it needs, and a checker accepts every implementation only so

    def __call__(self, prompt: str | list[str], *args: Any, **kwargs: Any) -> GeneratedImages:
        """Generate images for one prompt or several; the arguments are those of `JanusProPipeline.__call__`."""
        ...

    @overload
    def ask(self, image: Any, question: str, *args: Any, **kwargs: Any) -> str: ...

    @overload
    def ask(self, image: Any, question: list[str], *args: Any, **kwargs: Any) -> list[str]: ...

    def ask(self, image: Any, question: str | list[str], *args: Any, **kwargs: Any) -> str | list[str]:
        """Answer one question about an image, or each question of a list."""
        ...

    def chat(self, messages: list[dict[str, Any]], *args: Any, **kwargs: Any) -> str:
        """Return the model's answer to a conversation, given as chat messages."""
        ...


if TYPE_CHECKING:

    class TypedModel(PreTrainedModel):
        """transformers' `PreTrainedModel` with the return types that it leaves out, for type checkers and editors."""

        def to(self, *args: Any, **kwargs: Any) -> Self:
            """Move the weights to a device or convert them to a dtype, in place, and return the model."""
            ...

        def cuda(self, device: int | torch.device | None = None) -> Self:
            """Move the weights to a GPU, in place, and return the model."""
            ...

        def half(self) -> Self:
            """Convert the weights to float16, in place, and return the model."""
            ...

        def float(self) -> Self:
            """Convert the weights to float32, in place, and return the model."""
            ...

        def train(self, mode: bool = True) -> Self:
            """Set training mode and return the model."""
            ...

        def eval(self) -> Self:
            """Set evaluation mode and return the model."""
            ...
else:
    TypedModel = PreTrainedModel


__all__ = [
    "BareModel",
    "ChatProcessor",
    "GeneratedImages",
    "HasImageTokens",
    "ImagePipeline",
    "ImageReader",
    "TypedModel",
]
