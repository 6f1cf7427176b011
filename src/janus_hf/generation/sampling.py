"""Pure functions from logits to image codes.

Randomness enters as one uniform number per code, drawn before the loop from each picture's own generator. A picture
therefore depends on its seed and its prompt, not on the batch it is drawn in, and the loop itself needs no random
state and no host round trip.
"""

from collections.abc import Sequence

import torch
from transformers.generation.logits_process import (
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)


Generators = torch.Generator | Sequence[torch.Generator] | None


def guide(conditional: torch.Tensor, unconditional: torch.Tensor, guidance_scale: float) -> torch.Tensor:
    """Classifier-free guidance on logits `(B, K)`: away from the unconditional ones by `guidance_scale`."""
    return unconditional + guidance_scale * (conditional - unconditional)


def make_warpers(temperature: float, top_k: int | None, top_p: float | None) -> LogitsProcessorList:
    """transformers' warpers for image codes; none by default, so that the full softmax is sampled as in the original.

    Raises:
        ValueError: If `temperature` is not positive, `top_k` is below 1 or `top_p` lies outside (0, 1].
    """
    if not temperature > 0:
        raise ValueError(
            f"temperature must be positive, got {temperature}. For the most likely codes use do_sample=False."
        )
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must be at least 1, got {top_k}. For the full distribution use top_k=None.")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p must lie in (0, 1], got {top_p}. For the full distribution use top_p=None.")
    warpers = LogitsProcessorList()
    if temperature != 1:
        warpers.append(TemperatureLogitsWarper(float(temperature)))
    if top_k is not None:
        warpers.append(TopKLogitsWarper(top_k))
    if top_p is not None and top_p < 1:
        warpers.append(TopPLogitsWarper(float(top_p)))
    return warpers


def draw_uniforms(batch_size: int, count: int, generator: Generators, device: torch.device) -> torch.Tensor:
    """One uniform number in [0, 1) for each code of each picture: `(batch_size, count)` float32 on `device`.

    Args:
        generator: A list gives every picture its own stream; a single one is drawn from picture by picture; None uses
            the global stream of `device`. Generators may live on another device than the model.

    Raises:
        ValueError: If a list has not exactly one generator per picture.
    """
    if generator is None:
        return torch.rand(batch_size, count, device=device)
    if isinstance(generator, torch.Generator):
        generator = [generator] * batch_size
    if len(generator) != batch_size:
        raise ValueError(
            f"Expected one generator per picture, {batch_size} in all, got a list of {len(generator)}. "
            "Pass a list of that length, or a single torch.Generator."
        )
    rows = [torch.rand(count, generator=g, device=g.device).to(device) for g in generator]
    return torch.stack(rows)


def sample(scores: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """Draw one code per row by inverting the cumulative distribution.

    Args:
        scores: `(B, K)` float32 logits; -inf for codes that must not be drawn.
        uniforms: `(B,)` in [0, 1).

    Returns:
        `(B,)` int64.
    """
    # In float32 the running sum of 16384 probabilities is off by about 1e-5; float64 also keeps u * total below total.
    precise = torch.float32 if scores.device.type == "mps" else torch.float64
    cumulative = scores.softmax(dim=-1, dtype=precise).cumsum(dim=-1)
    threshold = uniforms.to(precise).unsqueeze(-1) * cumulative[:, -1:]
    # The first entry above the threshold: entries of probability zero repeat their predecessor and are never first.
    return torch.searchsorted(cumulative, threshold, right=True).squeeze(-1).clamp(max=scores.shape[-1] - 1)


def check_codes(image_ids: torch.Tensor, num_codes: int) -> None:
    """Raise a ValueError unless every id lies in `[0, num_codes)`."""
    if image_ids.numel() == 0:
        return
    low, high = image_ids.min().item(), image_ids.max().item()
    if low < 0 or high >= num_codes:
        raise ValueError(
            f"Image codes must lie in [0, {num_codes}), got values from {low} to {high}. "
            "Codes in the joint id space start at the text vocabulary's size: subtract it first."
        )
