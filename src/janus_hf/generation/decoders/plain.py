"""The function `decode_step`, one step of the generation loop, and a decoder that runs it without compiling.

In shapes, `B` is the number of images, `R` the number of rows (sequences that the language model runs: `B`, or `2 B`
with guidance, conditional rows first), `T` the prompt length, `n` the number of tokens fed at once, `D` the width of
the language model, and `L` the number of positions of the cache.
"""

from contextlib import AbstractContextManager, nullcontext
from weakref import WeakKeyDictionary

import torch
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache, DynamicCache

from ...protocols import BareModel
from ..cache import PreallocatedCache
from ..context import context_length
from ..sampling import Draw, guide
from .fused_layers import fuse
from .interface import StepInput, StepModel, StepOutput, TextHead


def draw_from(model: StepModel, hidden_RnD: torch.Tensor, positions: torch.Tensor, draw: Draw) -> StepOutput:
    """Compute the image logits of hidden states, apply guidance, and sample image tokens.

    Args:
        model: The model without its text head; its image head computes the logits.
        hidden_RnD: Last hidden states `(R, n, D)` of `R` rows (one per image, or two with guidance, all conditional
            rows first) at `n` positions.
        positions: `(n,)` int64, positions in the image of the tokens to sample.
        draw: Random keys, guidance scale and sampling settings of the batch.

    Returns:
        Tokens `(B, n)`, logits and scores `(B, n, K)` of `B` images over `K` codebook entries.
    """
    # The logits are float32 from here on, because guidance multiplies the logits' rounding errors by its scale.
    logits = model.generation_head(hidden_RnD).float()
    if draw.guidance_scale is not None:
        conditional, unconditional = logits.chunk(2)
        logits = guide(conditional, unconditional, draw.guidance_scale)
    scores = draw.sampling.scores(logits)
    return StepOutput(draw.sample(scores, positions), logits, scores)


def decode_step(
    model: StepModel,
    cache: Cache,
    tokens: torch.Tensor,
    mask: torch.Tensor | None,
    lengths: torch.Tensor,
    positions: torch.Tensor,
    draw: Draw | TextHead,
) -> StepOutput:
    """Run one step of image generation: embed image tokens, run the language model, sample one token after each.

    The function does not wait for the device and has no shapes that depend on data, so that it compiles to one graph.
    It takes the fields of a `StepInput` as separate arguments, because a compiled graph checks the attributes of every
    new object that it is called with (measured with a tiny model: 0.25 ms of a step of 1.2 ms).

    Args:
        model: The model without its text head.
        cache: Keys and values of all earlier positions; the step appends those of the fed tokens.
        tokens: `(B, n)` int64, the `n` image tokens to feed for each of `B` images.
        mask: Attention mask of all rows (one per image, or two with guidance), or None. It must cover exactly the
            positions of the cache that are attended to.
        lengths: `(R, 1)` int64, lengths of the `R` rows' prompts without padding.
        positions: `(n,)` int64, positions in the image of the tokens to sample.
        draw: Random keys, guidance scale and sampling settings of the batch; or, for answers, the modules that read
            text tokens and compute text logits. Tokens are text tokens then.

    Returns:
        Tokens `(B, n)`, logits and scores `(B, n, K)` over `K` codebook entries; for answers the most likely text
        tokens, and their logits in the dtype of the text head as both logits and scores.
    """
    hidden = run_tokens(model, cache, tokens, mask, lengths, positions, draw)
    if isinstance(draw, TextHead):
        logits = draw.head(hidden)
        return StepOutput(logits.argmax(dim=-1), logits, logits)
    return draw_from(model, hidden, positions, draw)


def run_tokens(
    model: StepModel,
    cache: Cache,
    tokens: torch.Tensor,
    mask: torch.Tensor | None,
    lengths: torch.Tensor,
    positions: torch.Tensor,
    draw: Draw | TextHead,
) -> torch.Tensor:
    """Embed tokens and run the language model over them: the first half of `decode_step`, with its arguments.

    Returns:
        Last hidden states `(R, n, D)`.
    """
    # The last guesses may lie past the end of the image, and so past the end of the context. They are never accepted,
    # but some kinds of RoPE depend on the largest position.
    limit = context_length(model.config.text_config) - 1
    position_ids = (lengths + positions - 1).clamp(max=limit)
    embeds = draw.embeddings(tokens) if isinstance(draw, TextHead) else model.embed_image_ids(tokens)
    # Conditional and unconditional rows of an image continue with the same tokens.
    if isinstance(draw, Draw) and draw.guidance_scale is not None:
        embeds = torch.cat([embeds, embeds])
    outputs = model.language_model(
        inputs_embeds=embeds, attention_mask=mask, position_ids=position_ids, past_key_values=cache, use_cache=True
    )
    hidden: torch.Tensor = outputs.last_hidden_state
    return hidden


class PlainDecoder:
    """Decoder that runs `decode_step` without compiling it and makes a new cache for every batch.

    On a GPU the language model runs with layers that launch few kernels, if its own layers allow it (see `fuse`).
    These layers need copies of weights, which are made at the first step of a batch and freed with the batch's cache.
    A change of a copied weight in the middle of a batch therefore takes effect only in the next batch.
    """

    def __init__(self) -> None:
        self._step_models: WeakKeyDictionary[Cache, StepModel] = WeakKeyDictionary()

    def __reduce__(self) -> tuple[type["PlainDecoder"], tuple[()]]:
        """Return how to copy or pickle the decoder: as a new one, without the layers of running batches."""
        return PlainDecoder, ()

    def turn(self, owner: object) -> AbstractContextManager[None]:
        """Return a context manager that does nothing, because batches of several threads share no state."""
        return nullcontext()

    def prepare(self, model: BareModel) -> None:
        """Do nothing, because this decoder derives nothing from the model's weights."""

    def running(self, model: BareModel) -> AbstractContextManager[None]:
        """Return a context manager that does nothing, because this decoder replaces no layers of the model."""
        return nullcontext()

    def make_cache(self, implementation: str, text_config: PreTrainedConfig, rows: int, length: int) -> Cache:
        """Return an empty key-value cache for one batch; `rows` is not used.

        Args:
            implementation: "static" allocates memory for `length` positions at once; "dynamic" grows.
            text_config: Config of the language model.
            rows: Number of rows (sequences) of the batch.
            length: Number of positions that the batch needs.

        Raises:
            ValueError: If `implementation` is neither "static" nor "dynamic".
        """
        if implementation == "static":
            return PreallocatedCache(text_config, length)
        if implementation == "dynamic":
            return DynamicCache(config=text_config)
        raise ValueError(
            f"`cache_implementation` must be 'static' or 'dynamic', got {implementation!r}: leave it out for 'static'."
        )

    def make_mask(self, mask_RT: torch.Tensor, cache: Cache, length: int) -> torch.Tensor | None:
        """Return the prompts' attention mask extended by ones to `(R, length)`, or None if no prompt is padded.

        Without a mask, attention kernels take their causal path. The given mask is `(R, T)` for `R` rows (sequences)
        of length `T`.
        """
        return None if bool(mask_RT.all()) else lengthen(mask_RT, length)

    def step(self, model: BareModel, cache: Cache, step: StepInput) -> StepOutput:
        """Run `decode_step` and return its output.

        The mask is cut to the positions in the cache and those of the fed tokens.
        """
        mask = step.mask
        if mask is not None:
            mask = mask[:, : cache.get_seq_length() + step.tokens.shape[1]]
        step_model = self._step_models.get(cache)
        if step_model is None:
            step_model = fuse(model) if few_kernels_pay(step.tokens.device) else model
            self._step_models[cache] = step_model
        return decode_step(step_model, cache, step.tokens, mask, step.lengths, step.positions, step.draw)

    def rewind(self, cache: Cache, count: int) -> None:
        """Remove the last `count` positions from the cache, in place."""
        cache.crop(-count)


def few_kernels_pay(device: torch.device) -> bool:
    """Return whether a step on `device` becomes faster with fewer kernels, even if weights have to be copied for that.

    It does on CUDA. On a CPU running the kernels takes most of the time, and starting them almost none.
    """
    return device.type == "cuda"


def lengthen(mask_RT: torch.Tensor, length: int) -> torch.Tensor:
    """Extend the attention mask of prompts `(R, T)` by ones to `(R, length)` and return it.

    Positions that are not written yet get a one too; causal attention hides them.
    """
    return torch.nn.functional.pad(mask_RT, (0, length - mask_RT.shape[1]), value=1)


__all__ = ["PlainDecoder", "decode_step", "draw_from", "few_kernels_pay", "lengthen", "run_tokens"]
