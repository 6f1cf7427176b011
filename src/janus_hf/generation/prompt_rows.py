"""Checked prompts as rows of a batch: conditional rows first, then their unconditional or negative rows.

With guidance every prompt runs twice: as it is, and as its unconditional twin, whose text is replaced by padding
tokens that ARE attended to (deepseek-ai/Janus generation_inference.py). A twin has its prompt's length, so both rows
have the same positions and share one cache.

`B` images, `R` rows (`B`, or `2 B` with guidance), `T` prompt length.
"""

import torch

from .sampling import check_codes


def make_rows(
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None,
    negative_input_ids: torch.Tensor | None,
    negative_attention_mask: torch.Tensor | None,
    *,
    guided: bool,
    pad_token_id: int | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Check the prompts and return the rows to run and their attention mask, both `(R, T)` int64.

    Args:
        input_ids: `(B, T)` prompts, left-padded.
        attention_mask: `(B, T)`, 0 on the padding; None if there is none.
        negative_input_ids: `(B, T')` prompts that take the place of the unconditional twins.
        negative_attention_mask: `(B, T')`, 0 on the padding; None if there is none.
        guided: Whether the batch has unconditional rows.
        pad_token_id: Id that the unconditional twins are made of.

    Raises:
        ValueError: If shapes disagree, a prompt is not left-padded, or `pad_token_id` is needed and None.
    """
    ids_RT, mask_RT = _check_prompts(input_ids, attention_mask, "input_ids")
    if negative_input_ids is not None:
        negative = _check_prompts(negative_input_ids, negative_attention_mask, "negative_input_ids")
        return _add_negative_prompts(ids_RT, mask_RT, *negative)
    if not guided:
        return ids_RT, mask_RT
    if pad_token_id is None:
        raise ValueError(
            "`pad_token_id` must be the id of the padding token, of which the unconditional prompt is made, got None: "
            "pass pad_token_id=processor.pad_token_id, or set it in model.generation_config."
        )
    return add_unconditional_twins(ids_RT, mask_RT, int(pad_token_id))


def add_unconditional_twins(
    ids: torch.Tensor, mask: torch.Tensor, pad_token_id: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Append the unconditional twin of every prompt: ids and mask `(B, T)` -> ids and mask `(2 B, T)`.

    A twin keeps its prompt's first id after the left padding (`<begin_of_sentence>`) and last id
    (`<begin_of_image>`). The ids between become padding tokens that are attended to.
    """
    # The first 1 of a left-padded mask, which is the first largest value, is the prompt's first id.
    keep = torch.zeros_like(ids, dtype=torch.bool)
    keep[torch.arange(len(ids), device=ids.device), mask.argmax(dim=-1)] = True
    keep[:, -1] = True
    # The new padding tokens are attended to, so a twin has its prompt's mask.
    twins = torch.where(keep, ids, pad_token_id)
    return torch.cat([ids, twins]), torch.cat([mask, mask])


def check_prefix(
    image_ids: torch.Tensor | None, batch_size: int, num_tokens: int, codebook_size: int, device: torch.device
) -> torch.Tensor:
    """Check the image tokens that a caller gives and return them as `(B, p)` int64 on `device`.

    Args:
        image_ids: `(B, p)` first tokens of every image; None is the same as `p = 0`.
        batch_size: `B`.
        num_tokens: `P`, the number of image tokens per image and the upper bound of `p`.
        codebook_size: `K`; the tokens must lie in `[0, K)`.
        device: Device of the result.

    Raises:
        ValueError: If the shape or a token is out of range.
    """
    if image_ids is None:
        return torch.empty(batch_size, 0, dtype=torch.long, device=device)
    if image_ids.ndim != 2 or len(image_ids) != batch_size or image_ids.shape[1] > num_tokens:
        raise ValueError(
            f"`image_ids` must be of shape ({batch_size}, p) with p <= {num_tokens} image tokens to continue from, "
            f"got {tuple(image_ids.shape)}: give every prompt the same number of tokens."
        )
    check_codes(image_ids, codebook_size)
    return image_ids.to(device=device, dtype=torch.long)


def _check_prompts(ids: torch.Tensor, mask: torch.Tensor | None, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Check prompts `(B, T)` and return them with their mask as integers; `name` stands in the messages."""
    if ids.ndim != 2 or 0 in ids.shape:
        raise ValueError(
            f"`{name}` must be of shape (B, T) with at least one prompt, got {tuple(ids.shape)}: make it with "
            "processor.prepare_image_generation."
        )
    # Masks are summed to lengths and accumulated to positions, so a bool or float mask becomes integer.
    mask = torch.ones_like(ids) if mask is None else mask.to(ids)
    if mask.shape != ids.shape:
        raise ValueError(
            f"The attention mask of `{name}` must be of its shape {tuple(ids.shape)}, got {tuple(mask.shape)}: pass "
            "both from one call of the processor."
        )
    if not bool(mask[:, -1].all()) or bool((mask.diff(dim=-1) < 0).any()):
        raise ValueError(
            f"`{name}` must be padded on the left only, got an attention mask with a 0 after a 1 or at the end: the "
            "image continues at the last position of every row, so pad with padding_side='left'."
        )
    return ids, mask


def _add_negative_prompts(
    ids: torch.Tensor, mask: torch.Tensor, negative_ids: torch.Tensor, negative_mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Append negative prompts `(B, T')` to prompts `(B, T)`: `(2 B, max(T, T'))`, left-padded to a common length."""
    if len(negative_ids) != len(ids):
        raise ValueError(
            f"`negative_input_ids` must hold one negative prompt per prompt, {len(ids)} in all, got "
            f"{len(negative_ids)}: repeat a negative prompt that several prompts share."
        )
    # All rows share one cache, so they need one length. The ids of padding are masked and may have any value.
    length = max(ids.shape[1], negative_ids.shape[1])

    def pad(tensor: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.pad(tensor, (length - tensor.shape[1], 0))

    return torch.cat([pad(ids), pad(negative_ids.to(ids))]), torch.cat([pad(mask), pad(negative_mask.to(mask))])


__all__ = ["add_unconditional_twins", "check_prefix", "make_rows"]
