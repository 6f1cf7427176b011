"""The function `draw_reference`: image generation without any optimisation, a reference for tests."""

import torch

from ..protocols import HasImageTokens
from .prompt_rows import add_unconditional_twins
from .sampling import guide, gumbel_noise


@torch.no_grad()
def draw_reference(
    model: HasImageTokens,
    input_ids: torch.Tensor,
    *,
    guidance_scale: float = 5.0,
    keys: torch.Tensor | None = None,
) -> torch.Tensor:
    """Generate image tokens without a cache or padding: recompute the whole sequence at every step. For tests.

    Args:
        model: The model; its `generation_config` must hold a `pad_token_id`.
        input_ids: `(B, T)` token ids of `B` prompts, all of length `T`.
        guidance_scale: Scale of classifier-free guidance. Every prompt also runs as an unconditional prompt, even with
            a scale of 1.
        keys: `(B, 2)` int64, one random key per image to sample with, from `draw_keys`; None takes the most likely
            tokens.

    Returns:
        `(B, P)` int64 image tokens, `P` per image.
    """
    bare = model.model
    rows, _ = add_unconditional_twins(input_ids, torch.ones_like(input_ids), model.generation_config.pad_token_id)
    tokens = input_ids.new_empty(len(input_ids), 0)
    for position in range(model.config.vq_config.num_image_tokens):
        embeds = torch.cat([bare.embed_ids(rows), bare.embed_image_ids(tokens.repeat(2, 1))], dim=1)
        hidden = bare.language_model(inputs_embeds=embeds, use_cache=False).last_hidden_state[:, -1]
        conditional, unconditional = bare.generation_head(hidden).float().chunk(2)
        scores = guide(conditional, unconditional, guidance_scale)
        if keys is not None:
            scores = scores + gumbel_noise(keys, torch.tensor([position]), scores.shape[-1])[:, 0]
        tokens = torch.cat([tokens, scores.argmax(dim=-1, keepdim=True)], dim=1)
    return tokens


__all__ = ["draw_reference"]
