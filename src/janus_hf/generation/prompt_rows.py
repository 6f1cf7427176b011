"""Functions that check the arguments of `generate_images` and build the rows (sequences) that the language model runs.

With guidance every prompt runs as two rows: the conditional row is the prompt as it is; in the unconditional row its
text is replaced by padding tokens that ARE attended to (deepseek-ai/Janus generation_inference.py). Both rows have the
same length, so they have the same positions and share one cache. All conditional rows come first, then all
unconditional rows (or negative prompts, which replace them).

In shapes, `B` is the number of images, `R` the number of rows (`B`, or `2 B` with guidance), and `T` the prompt
length.
"""

import torch

from ..arguments import check_integer, describe
from .generation_arguments import check_integer_tensor
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
    """Check the prompts and return the rows (sequences) that the language model runs, with their attention mask.

    Args:
        input_ids: `(B, T)` token ids of the prompts, left-padded.
        attention_mask: `(B, T)`, 0 on the padding; None if there is no padding.
        negative_input_ids: `(B, T')` token ids of negative prompts, which replace the unconditional prompts; or None.
        negative_attention_mask: `(B, T')`, 0 on the padding; None if there is no padding.
        guided: Whether to add a second row for every prompt; negative prompts act only through it.
        pad_token_id: Id of the padding token, which replaces the text in unconditional rows.

    Returns:
        Ids and attention mask, both int64 `(R, T)`: the `R = B` prompts, or with guidance the prompts and then their
        unconditional rows or negative prompts, `R = 2 B`. Negative prompts longer than `T` extend all rows to `T'`.

    Raises:
        TypeError: If an argument is no tensor, or ids are no integers.
        ValueError: If shapes disagree, a prompt is not left-padded, `pad_token_id` is None but needed, or an argument
            about negative prompts has no effect.
    """
    ids_RT, mask_RT = _check_prompts(input_ids, attention_mask, "input_ids")
    if negative_input_ids is not None and not guided:
        raise ValueError(
            "`guidance_scale` must not be 1 with a negative prompt, which acts through guidance, got 1: set it above "
            "1, or leave the negative prompt out."
        )
    if negative_input_ids is None and negative_attention_mask is not None:
        raise ValueError(
            "`negative_attention_mask` must come together with `negative_input_ids`, without which it has no effect, "
            "got it alone: pass both from one call of the processor."
        )
    if pad_token_id is not None:
        pad_token_id = check_integer(pad_token_id, "pad_token_id", "pass processor.pad_token_id", least=0)
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
    return add_unconditional_twins(ids_RT, mask_RT, pad_token_id)


def add_unconditional_twins(
    ids: torch.Tensor, mask: torch.Tensor, pad_token_id: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Append an unconditional row for every prompt: ids and mask `(B, T)` -> ids and mask `(2 B, T)`, prompts first.

    An unconditional row keeps two ids of its prompt: the first one after the left padding (`<begin_of_sentence>`) and
    the last one (`<begin_of_image>`). The ids between them become `pad_token_id` and are attended to.
    """
    # `argmax` finds the first 1 of a left-padded mask, which is the position of the prompt's first id.
    keep = torch.zeros_like(ids, dtype=torch.bool)
    keep[torch.arange(len(ids), device=ids.device), mask.argmax(dim=-1)] = True
    keep[:, -1] = True
    # The new padding tokens are attended to, so an unconditional row has the mask of its prompt.
    twins = torch.where(keep, ids, pad_token_id)
    return torch.cat([ids, twins]), torch.cat([mask, mask])


def check_prefix(
    image_ids: torch.Tensor | None, batch_size: int, num_tokens: int, codebook_size: int, device: torch.device
) -> torch.Tensor:
    """Check the first image tokens that the caller of `generate_images` gives, and return them as int64 on `device`.

    Args:
        image_ids: `(B, p)` first tokens of every image; None is the same as `p = 0`.
        batch_size: Number `B` of images.
        num_tokens: Number of tokens per image, which is the upper bound of `p`.
        codebook_size: Number `K` of codebook entries; the tokens must lie in `[0, K)`.
        device: Device of the result.

    Returns:
        `(B, p)` int64.

    Raises:
        TypeError: If it is no tensor of integers.
        ValueError: If the shape is wrong or a token lies outside the codebook.
    """
    if image_ids is None:
        return torch.empty(batch_size, 0, dtype=torch.long, device=device)
    check_integer_tensor(image_ids, "image_ids", "(B, p)")
    if image_ids.ndim != 2 or len(image_ids) != batch_size or image_ids.shape[1] > num_tokens:
        raise ValueError(
            f"`image_ids` must be of shape ({batch_size}, p) with p <= {num_tokens} image tokens to continue from, "
            f"got {tuple(image_ids.shape)}: give every prompt the same number of tokens."
        )
    check_codes(image_ids, codebook_size)
    return image_ids.to(device=device, dtype=torch.long)


def _check_prompts(ids: torch.Tensor, mask: torch.Tensor | None, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Check prompts and return their ids and their attention mask, both `(B, T)` integers.

    Args:
        ids: `(B, T)` token ids.
        mask: `(B, T)`, 0 on the left padding; None if there is no padding.
        name: Name of the argument in error messages.

    Raises:
        TypeError: If an argument is no tensor, or the ids are no integers.
        ValueError: If shapes disagree, or a prompt is not left-padded.
    """
    check_integer_tensor(ids, name, "(B, T)")
    if ids.ndim != 2 or 0 in ids.shape:
        raise ValueError(
            f"`{name}` must be of shape (B, T) with at least one prompt, got {tuple(ids.shape)}: make it with "
            "processor.prepare_image_generation."
        )
    mask_name = name.replace("input_ids", "attention_mask")
    if mask is not None and not isinstance(mask, torch.Tensor):
        raise TypeError(
            f"`{mask_name}`, the attention mask of `{name}`, must be a tensor (B, T) of zeros and ones, got "
            f"{describe(mask)}: pass both from one call of the processor."
        )
    # Masks are summed to lengths and accumulated to positions, so a bool or float mask becomes integer.
    mask = torch.ones_like(ids) if mask is None else mask.to(ids)
    if mask.shape != ids.shape:
        raise ValueError(
            f"`{mask_name}`, the attention mask of `{name}`, must be of its shape {tuple(ids.shape)}, got "
            f"{tuple(mask.shape)}: pass both from one call of the processor."
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
    """Append negative prompts `(B, T')` to prompts `(B, T)`, all left-padded to the longer of the two lengths.

    Return ids and attention mask, both `(2 B, max(T, T'))`, prompts first. Raise a ValueError unless there is one
    negative prompt per prompt.
    """
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
