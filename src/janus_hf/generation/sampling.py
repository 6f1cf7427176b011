"""Guidance, sampling and seeds: pure functions from logits to image tokens.

A token is sampled by adding noise to the logits and taking the largest sum. The noise is a hash of the image's key,
the token's position in its image and the codebook entry, computed where it is needed. An image therefore depends only
on its seed and its prompt: not on the other images of the batch, and not on the order in which its tokens are
computed. The loop stores no random state and does not wait for the device.

`B` images, `n` neighbouring positions of each, `K` codebook entries.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch


Generators = torch.Generator | Sequence[torch.Generator] | None

_WORD = 0xFFFFFFFF


def guide(
    conditional: torch.Tensor, unconditional: torch.Tensor, guidance_scale: float | torch.Tensor
) -> torch.Tensor:
    """Apply classifier-free guidance to logits `(..., K)`.

    Return the unconditional logits moved by `guidance_scale` times the difference to the conditional ones: a scale of
    0 gives the unconditional logits, 1 the conditional ones.
    """
    return unconditional + guidance_scale * (conditional - unconditional)


@dataclass(frozen=True)
class Sampling:
    """Settings that turn logits into tokens: temperature, top-k and top-p.

    By default tokens are sampled from the full softmax, as in the original
    (deepseek-ai/Janus generation_inference.py).

    Args:
        do_sample: True samples; False takes the most likely token.
        temperature: 0-dimensional float32 tensor that divides the logits.
        top_k: Sample among this number of most likely tokens; None samples among all.
        top_p: 0-dimensional float32 tensor: sample among the most likely tokens that together hold this probability;
            None samples among all.
    """

    do_sample: bool
    temperature: torch.Tensor
    top_k: int | None = None
    top_p: torch.Tensor | None = None

    @classmethod
    def make(
        cls, do_sample: bool, temperature: float, top_k: int | None, top_p: float | None, device: torch.device
    ) -> "Sampling":
        """Check the settings and return them with `temperature` and `top_p` as tensors on `device`.

        A compiled step is specialised on Python numbers but not on tensors, so another temperature or `top_p` reuses
        the compiled graph.

        Raises:
            ValueError: If `temperature` is not positive, `top_k` is below 1 or `top_p` lies outside (0, 1].
        """
        if not temperature > 0:
            raise ValueError(
                f"`temperature` must be positive, got {temperature}: use do_sample=False for the most likely tokens."
            )
        if top_k is not None and top_k < 1:
            raise ValueError(f"`top_k` must be at least 1, got {top_k}: use None to sample among all tokens.")
        if top_p is not None and not 0 < top_p <= 1:
            raise ValueError(f"`top_p` must lie in (0, 1], got {top_p}: use None to sample among all tokens.")
        return cls(
            do_sample=do_sample,
            temperature=torch.tensor(float(temperature), device=device),
            top_k=top_k,
            top_p=None if top_p is None or top_p == 1 else torch.tensor(float(top_p), device=device),
        )

    def scores(self, logits: torch.Tensor) -> torch.Tensor:
        """Divide logits `(..., K)` float32 by the temperature and set those that top-k or top-p exclude to -inf."""
        scores = logits / self.temperature
        if self.top_k is not None:
            # Tokens equal to the k-th largest stay, as in transformers' TopKLogitsWarper.
            least = scores.topk(min(self.top_k, scores.shape[-1]), dim=-1).values[..., -1:]
            scores = scores.masked_fill(scores < least, float("-inf"))
        if self.top_p is not None:
            ordered, order = scores.sort(dim=-1, descending=True)
            probabilities = ordered.softmax(dim=-1)
            # The probability before a token, not up to it: the token that crosses `top_p` is still allowed.
            before = probabilities.cumsum(dim=-1) - probabilities
            excluded = torch.zeros_like(scores, dtype=torch.bool).scatter(-1, order, before >= self.top_p)
            scores = scores.masked_fill(excluded, float("-inf"))
        return scores

    def sample(self, scores: torch.Tensor, keys: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Sample one token for each image and position; with `do_sample=False` take the most likely one.

        Args:
            scores: `(B, n, K)` float32, from `scores`.
            keys: `(B, 2)` int64, from `draw_keys`.
            positions: `(n,)` int64, positions of the tokens in their images, from 0.

        Returns:
            `(B, n)` int64 tokens in `[0, K)`.
        """
        if not self.do_sample:
            return scores.argmax(dim=-1)
        return (scores + gumbel_noise(keys, positions, scores.shape[-1])).argmax(dim=-1)


@dataclass(frozen=True)
class Draw:
    """What determines the tokens of a batch beside the model and the prompts; the same at every step.

    Args:
        keys: `(B, 2)` int64, the key of each image's noise (`draw_keys`).
        guidance_scale: 0-dimensional float32 tensor; None if the batch has no unconditional rows.
        sampling: Temperature, top-k and top-p.
    """

    keys: torch.Tensor
    guidance_scale: torch.Tensor | None
    sampling: Sampling


def draw_keys(batch_size: int, generator: Generators, device: torch.device) -> torch.Tensor:
    """Return a random key for each image: `(batch_size, 2)` int64 on `device`, two 32-bit words per key.

    Args:
        batch_size: Number of images.
        generator: A list gives every image its own stream. A single generator makes the keys one image after the
            other. None uses the global stream of `device`. Generators may live on another device than the model.
        device: Device of the keys.

    Raises:
        ValueError: If a list does not have exactly one generator per image.
    """
    if generator is None:
        return torch.randint(_WORD + 1, (batch_size, 2), device=device)
    if isinstance(generator, torch.Generator):
        generator = [generator] * batch_size
    if len(generator) != batch_size:
        raise ValueError(
            f"`generator` must be a list with one generator per image, {batch_size} in all, got a list of "
            f"{len(generator)}: pass a list of that length, or a single torch.Generator."
        )
    # Words are made on the generator's device, so that an image does not depend on the model's device.
    return torch.stack([torch.randint(_WORD + 1, (2,), generator=g, device=g.device).to(device) for g in generator])


def gumbel_noise(keys: torch.Tensor, positions: torch.Tensor, codebook_size: int) -> torch.Tensor:
    """Return independent standard Gumbel noise that is a function of key, position and codebook entry only.

    The entry with the largest sum of logit and noise is a sample of the softmax (the Gumbel-max trick).

    Args:
        keys: `(B, 2)` int64, from `draw_keys`.
        positions: `(n,)` int64, positions of the tokens in their images.
        codebook_size: `K`.

    Returns:
        `(B, n, K)` float32.
    """
    entries = torch.arange(codebook_size, device=positions.device, dtype=torch.int32)
    counters = (positions[:, None] * codebook_size).to(torch.int32) + entries
    keys = keys.to(torch.int32)  # wraps words above 2**31 - 1, which keeps their bits
    words = _mix(_mix(counters ^ keys[:, 0, None, None]) ^ keys[:, 1, None, None])
    # int32 has no unsigned conversion, so the two 16-bit halves are converted apart. Their sum is rounded once, as the
    # whole unsigned word would be.
    values = _logical_shift(words, 16).float().mul_(2.0**16).add_((words & 0xFFFF).float())
    uniforms = values.add_(0.5).mul_(2.0**-32).clamp_(max=1 - 2.0**-24)
    # The largest noise comes from uniforms near zero, where float32 is dense; log1p keeps that precision.
    return uniforms.neg_().log1p_().neg_().log_().neg_()


def _mix(words: torch.Tensor) -> torch.Tensor:
    """Scramble 32-bit words by a bijection: the finaliser of MurmurHash3 (public domain).

    Words are held in int32, whose products wrap as unsigned ones do. That takes half the memory of int64, and
    processors multiply eight at a time.
    """
    words = (words ^ _logical_shift(words, 16)) * (0x85EBCA6B - 2**32)
    words = (words ^ _logical_shift(words, 13)) * (0xC2B2AE35 - 2**32)
    return words ^ _logical_shift(words, 16)


def _logical_shift(words: torch.Tensor, bits: int) -> torch.Tensor:
    """Shift int32 words right and fill with zeros from the left, as for unsigned words."""
    return (words >> bits) & (2 ** (32 - bits) - 1)


def check_codes(image_ids: torch.Tensor, codebook_size: int) -> None:
    """Raise a ValueError unless every id lies in `[0, codebook_size)`. Waits for the device."""
    if image_ids.numel() == 0:
        return
    low, high = image_ids.min().item(), image_ids.max().item()
    if low < 0 or high >= codebook_size:
        raise ValueError(
            f"Image codes must lie in [0, {codebook_size}), got values from {low} to {high}: codes in the joint id "
            "space start at the text vocabulary's size, so subtract it first."
        )


__all__ = ["Draw", "Generators", "Sampling", "check_codes", "draw_keys", "guide", "gumbel_noise"]
