"""The interface of decoders, which run one step of the generation loop.

`B` images, `R` rows (`B`, or `2 B` with guidance: conditional rows first), `T` prompt length, `n` tokens fed at once,
`K` codebook entries, `L` positions of the cache.
"""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache

from ...protocols import BareModel
from ..sampling import Draw


@dataclass(frozen=True)
class StepInput:
    """Input of one step, beside the model and the cache.

    Args:
        tokens: `(B, n)` int64 image tokens to feed. An image's conditional and unconditional row get the same tokens.
        mask: `(R, L)` attention mask, 0 on the left padding of the prompts; None if there is no padding.
        lengths: `(R, 1)` int64, lengths of the prompts without padding.
        positions: `(n,)` int64, positions in their images of the tokens to sample.
        draw: Keys, guidance scale and sampling settings.
    """

    tokens: torch.Tensor
    mask: torch.Tensor | None
    lengths: torch.Tensor
    positions: torch.Tensor
    draw: Draw


class StepOutput(NamedTuple):
    """Tokens that a step sampled, and the logits and scores that they were sampled from."""

    tokens: torch.Tensor  # (B, n) int64
    logits: torch.Tensor  # (B, n, K) float32, after guidance
    scores: torch.Tensor  # (B, n, K) float32, after guidance, temperature, top-k and top-p


class Decoder(Protocol):
    """Runs steps of the language model and samples image tokens from them.

    A decoder does not own a batch. All that belongs to one batch (cache, mask, positions, `Draw`) is passed to every
    call, so batches of different sizes may take turns. Graphs, packed weights and the memory of caches belong to the
    model and are kept from batch to batch.
    """

    def prepare(self, model: BareModel) -> None:
        """Update what was derived from the model's weights. The caller calls this before the first step of a batch."""
        ...

    def running(self, model: BareModel) -> AbstractContextManager[None]:
        """Return the context in which the language model runs: it installs fast layers and removes them again."""
        ...

    def make_cache(self, implementation: str, text_config: PreTrainedConfig, rows: int, length: int) -> Cache:
        """Return an empty cache.

        The decoder may reuse the memory of a cache that it returned before for the same size: that cache must not be
        used any more.

        Args:
            implementation: "static" or "dynamic".
            text_config: Config of the language model.
            rows: `R`.
            length: Number of positions that the batch needs.

        Raises:
            ValueError: If the decoder does not have this implementation.
        """
        ...

    def make_mask(self, mask_RT: torch.Tensor, cache: Cache, length: int) -> torch.Tensor | None:
        """Return the attention mask for all steps of a batch: `(R, length or more)`, or None if none is needed.

        Args:
            mask_RT: Attention mask of the prompts, 0 on the left padding.
            cache: The batch's cache.
            length: Number of positions that the batch needs.
        """
        ...

    def step(self, model: BareModel, cache: Cache, step: StepInput) -> StepOutput:
        """Feed tokens and sample the token after each; the next step may overwrite the output.

        Args:
            model: The bare model.
            cache: Keys and values of all positions before; the step appends those of the tokens.
            step: The tokens and their positions, with the mask of `make_mask`.
        """
        ...

    def rewind(self, cache: Cache, count: int) -> None:
        """Remove the last `count` positions from the cache, in place; `count` is at least 1."""
        ...


__all__ = ["Decoder", "StepInput", "StepOutput"]
