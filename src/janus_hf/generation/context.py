"""What a position of a sequence can read: the length of the context, and documents that share one row.

`B` batch, `T` sequence.
"""

from collections.abc import Sequence

import torch
from transformers import PreTrainedConfig, StoppingCriteria
from transformers.cache_utils import Cache


def context_length(text_config: PreTrainedConfig) -> int:
    """Return the largest number of positions that a language model can read.

    It is `max_position_embeddings`, or more under RoPE scaling: a factor stretches the positions that the model was
    trained with (`original_max_position_embeddings`, by default `max_position_embeddings`).

    Args:
        text_config: Configuration of the language model.
    """
    limit = int(text_config.max_position_embeddings)
    rope = getattr(text_config, "rope_parameters", None) or {}
    factor = rope.get("factor")
    if rope.get("rope_type", "default") == "default" or factor is None:
        return limit
    return max(limit, int(factor * (rope.get("original_max_position_embeddings") or limit)))


def check_context(length: int, text_config: PreTrainedConfig, advice: str) -> None:
    """Raise a ValueError if a sequence is longer than the context.

    Args:
        length: Number of positions of the sequence, those in a key-value cache included.
        text_config: Configuration of the language model.
        advice: What to do, for the message.
    """
    if length > (limit := context_length(text_config)):
        raise ValueError(
            f"The sequence must fit the model's context of {limit} tokens, got {length} tokens: {advice}."
        )


class EndOfContext(StoppingCriteria):
    """Criterion that ends every row of a batch where the model's context would end if the row were generated alone.

    Args:
        start: Length of the prompts, padding included.
        room: Number of new tokens that fit for each prompt.
    """

    def __init__(self, start: int, room: Sequence[int]) -> None:
        self.start, self.room = start, torch.tensor(room)

    def __call__(self, input_ids: torch.Tensor, scores: object, **kwargs: object) -> torch.Tensor:
        """Return which rows end, as bool `(R,)`, for ids `(R, T)` with the same number of rows for every prompt."""
        is_full = self.room <= input_ids.shape[1] - self.start
        return is_full.repeat_interleave(len(input_ids) // len(is_full)).to(input_ids.device)


def settle_packing(
    attention_mask: torch.Tensor | None,
    position_ids: torch.Tensor | None,
    past_key_values: Cache | None,
    use_cache: bool | None,
) -> torch.Tensor | None:
    """Return the mask with which several documents in one row do not attend to each other.

    transformers recognises such documents by positions that start again, and only if there is neither a mask nor a
    cache. So a mask without padding is left out here, and what would let documents read each other is refused.

    Args:
        attention_mask: `(B, T)`, 1 for real positions and 0 for padding; or one of another form, which is returned as
            it is; or None.
        position_ids: `(B, T)` or `(1, T)`, or None, with which nothing is packed.
        past_key_values: Key-value cache of earlier positions, or None.
        use_cache: Whether a cache will be made.

    Raises:
        ValueError: If documents are packed, and there is a cache or a mask with padding.
    """
    has_mask = isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2
    if attention_mask is not None and not has_mask:
        return attention_mask
    if position_ids is None or position_ids.ndim != 2 or position_ids.shape[1] == 1:
        return attention_mask
    if not (has_mask or past_key_values is not None or use_cache) or torch.compiler.is_compiling():
        return attention_mask
    starts = position_ids.diff(dim=1) != 1
    if has_mask:
        assert attention_mask is not None
        real = attention_mask[:, -position_ids.shape[1] :] != 0
        starts = starts & (real[:, 1:] & real[:, :-1]).to(starts.device)
    if not starts.any():
        return attention_mask
    if past_key_values is not None or use_cache:
        raise ValueError(
            "`use_cache` must be False and `past_key_values` None with `position_ids` that start again, got a cache: "
            "documents in one row would read each other through it. Pass use_cache=False, or one document per row."
        )
    assert attention_mask is not None
    if not attention_mask.all():
        raise ValueError(
            "`attention_mask` must be left out with `position_ids` that start again, got one with padding: documents "
            "in one row would read each other. Leave it out, and let the positions of the padding start at 0 too."
        )
    return None


__all__ = ["EndOfContext", "check_context", "context_length", "settle_packing"]
