"""The step of the generation loop, run by PyTorch's operators one by one.

`B` images, `R` rows (`B`, or `2 B` with guidance: conditional rows first), `T` prompt length, `n` tokens fed at once,
`D` width of the language model, `L` positions of the cache.
"""

from contextlib import AbstractContextManager, nullcontext

import torch
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache, DynamicCache

from ...protocols import BareModel
from ..cache import PreallocatedCache
from ..sampling import Draw, guide
from .interface import StepInput, StepOutput


def draw_from(model: BareModel, hidden_RnD: torch.Tensor, positions: torch.Tensor, draw: Draw) -> StepOutput:
    """Sample image tokens from hidden states: image head, guidance, sampling.

    Args:
        model: The bare model, for its image head.
        hidden_RnD: Last hidden states `(R, n, D)`.
        positions: `(n,)` int64, positions in their images of the tokens to sample.
        draw: Keys, guidance scale and sampling settings.
    """
    # In float32 from here on, because guidance multiplies the logits' rounding errors by its scale.
    logits = model.generation_head(hidden_RnD).float()
    if draw.guidance_scale is not None:
        conditional, unconditional = logits.chunk(2)
        logits = guide(conditional, unconditional, draw.guidance_scale)
    scores = draw.sampling.scores(logits)
    return StepOutput(draw.sampling.sample(scores, draw.keys, positions), logits, scores)


def decode_step(
    model: BareModel,
    cache: Cache,
    tokens: torch.Tensor,
    mask: torch.Tensor | None,
    lengths: torch.Tensor,
    positions: torch.Tensor,
    draw: Draw,
) -> StepOutput:
    """Run one step: embed tokens, run the language model, sample the token after each.

    The function does not wait for the device and has no shapes that depend on data, so that it compiles to one graph.
    It takes the fields of a `StepInput` as separate arguments, because a compiled graph checks the attributes of every
    new object that it is called with (measured with a tiny model: 0.25 ms of a step of 1.2 ms).

    Args:
        model: The bare model.
        cache: Keys and values of all positions before; the step appends to it.
        tokens: See `StepInput`.
        mask: See `StepInput`. It must cover exactly the positions of the cache that are attended to.
        lengths: See `StepInput`.
        positions: See `StepInput`.
        draw: See `StepInput`.
    """
    # The last guesses may lie past the image's end and so past the context. They are never accepted, but some kinds of
    # RoPE depend on the largest position.
    limit = model.config.text_config.max_position_embeddings - 1
    position_ids = (lengths + positions - 1).clamp(max=limit)
    embeds = model.embed_image_ids(tokens)
    # Conditional and unconditional rows of an image continue with the same tokens.
    if draw.guidance_scale is not None:
        embeds = torch.cat([embeds, embeds])
    outputs = model.language_model(
        inputs_embeds=embeds, attention_mask=mask, position_ids=position_ids, past_key_values=cache, use_cache=True
    )
    return draw_from(model, outputs.last_hidden_state, positions, draw)


class PlainDecoder:
    """Runs `decode_step` as it is and makes a new cache for every batch. It has no state."""

    def prepare(self, model: BareModel) -> None:
        """Do nothing: nothing is derived from the weights."""

    def running(self, model: BareModel) -> AbstractContextManager[None]:
        """Return an empty context: the model runs as it is."""
        return nullcontext()

    def make_cache(self, implementation: str, text_config: PreTrainedConfig, rows: int, length: int) -> Cache:
        """Return an empty cache, allocated at once ("static") or growing ("dynamic"); see `Decoder.make_cache`."""
        if implementation == "static":
            return PreallocatedCache(text_config, length)
        if implementation == "dynamic":
            return DynamicCache(config=text_config)
        raise ValueError(
            f"`cache_implementation` must be 'static' or 'dynamic', got {implementation!r}: leave it out for 'static'."
        )

    def make_mask(self, mask_RT: torch.Tensor, cache: Cache, length: int) -> torch.Tensor | None:
        """Return the mask `(R, length)`, or None without padding: attention kernels then take their causal path."""
        return None if bool(mask_RT.all()) else lengthen(mask_RT, length)

    def step(self, model: BareModel, cache: Cache, step: StepInput) -> StepOutput:
        """Run `decode_step` with the part of the mask that covers the cache and the tokens fed."""
        mask = step.mask
        if mask is not None:
            mask = mask[:, : cache.get_seq_length() + step.tokens.shape[1]]
        return decode_step(model, cache, step.tokens, mask, step.lengths, step.positions, step.draw)

    def rewind(self, cache: Cache, count: int) -> None:
        """Remove the last `count` positions from the cache, in place."""
        cache.crop(-count)


def lengthen(mask_RT: torch.Tensor, length: int) -> torch.Tensor:
    """Append ones to a prompt's mask `(R, T)`: `(R, length)`. Causality hides positions that are not written yet."""
    return torch.nn.functional.pad(mask_RT, (0, length - mask_RT.shape[1]), value=1)


__all__ = ["PlainDecoder", "decode_step", "draw_from", "lengthen"]
