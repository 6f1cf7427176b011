"""The interface of decoders (classes that run one step of the generation loop), and the input and output of a step.

In shapes, `B` is the number of images, `R` the number of rows (sequences that the language model runs: `B`, or `2 B`
with guidance, conditional rows first), `T` the prompt length, `n` the number of tokens fed at once, `K` the number of
codebook entries, and `L` the number of positions of the cache.
"""

from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import nn
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache
from transformers.utils import ModelOutput

from ...protocols import BareModel
from ..sampling import Draw


@dataclass(frozen=True)
class TextHead:
    """Modules with which a step reads text tokens and computes text logits, in place of those of image tokens.

    Args:
        embeddings: Text tokens `(...)` -> inputs `(..., C)` of the language model, whose width is `C`.
        head: Hidden states `(..., C)` -> text logits `(..., V)` over the `V` tokens of the vocabulary.
        identity: Value that changes if the modules would launch other kernels (`fingerprint`).
    """

    embeddings: nn.Module
    head: nn.Module
    identity: Hashable


@dataclass(frozen=True)
class StepInput:
    """Input of one step of image generation, or of an answer, besides the model and the key-value cache.

    In an answer, tokens are text tokens, and an image below is an answer.

    A row is a sequence that the language model runs. `B` images have `R` rows: `R = B`, or with guidance `R = 2 B`,
    conditional rows first.

    Args:
        tokens: `(B, n)` int64, the `n` image tokens to feed for each image. The conditional and the unconditional row
            of an image get the same tokens.
        mask: `(R, L)` attention mask over the `L` positions of the cache, 0 on the left padding of the prompts; None
            if there is no padding.
        lengths: `(R, 1)` int64, lengths of the prompts without padding.
        positions: `(n,)` int64, positions in the image of the tokens to sample.
        draw: Random keys, guidance scale and sampling settings of the batch; or the modules of text tokens.
    """

    tokens: torch.Tensor
    mask: torch.Tensor | None
    lengths: torch.Tensor
    positions: torch.Tensor
    draw: Draw | TextHead


class StepModel(Protocol):
    """What a step uses of a model without its text head; `BareModel` and `FusedModel` have this type."""

    @property
    def config(self) -> PreTrainedConfig:
        """Config of the model."""
        ...

    @property
    def language_model(self) -> Callable[..., ModelOutput]:
        """The language model, called with the keyword arguments of transformers' `LlamaModel`."""
        ...

    @property
    def generation_head(self) -> Callable[[torch.Tensor], torch.Tensor]:
        """The image head: hidden states `(..., C)` -> image logits `(..., K)`."""
        ...

    def embed_image_ids(self, image_ids: torch.Tensor) -> torch.Tensor:
        """Embed image tokens `(...)` as inputs `(..., C)` of the language model, whose width is `C`."""
        ...


class StepOutput(NamedTuple):
    """Tokens that one step sampled for `B` images at `n` positions, and the logits and scores they come from.

    Attributes:
        tokens: `(B, n)` int64.
        logits: `(B, n, K)` float32 logits of the `K` codebook entries, after guidance.
        scores: `(B, n, K)` float32 logits after guidance, temperature, top-k and top-p.
    """

    tokens: torch.Tensor
    logits: torch.Tensor
    scores: torch.Tensor


class Decoder(Protocol):
    """Interface of classes that run one step of image generation: run the language model and sample image tokens.

    A decoder does not own a batch. All objects that belong to one batch (cache, mask, positions, `Draw`) are passed to
    every call, so steps of batches of different sizes may alternate. Compiled graphs, packed weights
    (copies for matrix kernels) and the memory of caches belong to the model, and the decoder keeps them from batch to
    batch.
    """

    def turn(self, owner: object) -> AbstractContextManager[None]:
        """Return a context manager that the caller holds from before `prepare` until after the last step of a batch.

        A decoder that can generate only one batch at a time makes other threads wait in it.

        Args:
            owner: The whole model, to which the model without its text head belongs.
        """
        ...

    def prepare(self, model: BareModel) -> None:
        """Update all objects that the decoder derived from the model's weights, such as compiled graphs.

        The caller calls this method before the first step of a batch.
        """
        ...

    def running(self, model: BareModel) -> AbstractContextManager[None]:
        """Return a context manager inside which the caller runs the language model.

        The decoder may install faster layers when the context is entered; it removes them when the context is left.
        """
        ...

    def make_cache(self, implementation: str, text_config: PreTrainedConfig, rows: int, length: int) -> Cache:
        """Return an empty key-value cache for one batch.

        The decoder may reuse the memory of a cache that it returned before for the same size: the caller must not use
        that earlier cache any more.

        Args:
            implementation: "static" or "dynamic".
            text_config: Config of the language model.
            rows: Number of rows (sequences) of the batch: the number of images, or twice that with guidance.
            length: Number of positions that the batch needs.

        Raises:
            ValueError: If the decoder does not support this implementation.
        """
        ...

    def make_mask(self, mask_RT: torch.Tensor, cache: Cache, length: int) -> torch.Tensor | None:
        """Return the attention mask for all steps of a batch, or None if none is needed.

        Args:
            mask_RT: Attention mask of the prompts, `(R, T)` for `R` rows (sequences) of length `T`, 0 on the left
                padding.
            cache: The batch's cache.
            length: Number of positions that the batch needs.

        Returns:
            `(R, length or more)`, or None.
        """
        ...

    def step(self, model: BareModel, cache: Cache, step: StepInput) -> StepOutput:
        """Feed image tokens to the language model, sample one token after each of them, and return the sampled tokens.

        The next step may overwrite the output.

        Args:
            model: The model without its text head.
            cache: Keys and values of all earlier positions; the step appends those of the fed tokens.
            step: The tokens to feed and the positions to sample, with the mask that `make_mask` returned.
        """
        ...

    def rewind(self, cache: Cache, count: int) -> None:
        """Remove the last `count` positions from the key-value cache, in place; `count` is at least 1."""
        ...


__all__ = ["Decoder", "StepInput", "StepModel", "StepOutput", "TextHead"]
