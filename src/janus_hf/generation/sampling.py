"""Pure functions from logits to image codes.

Randomness enters as noise that is a function of a picture's key, the code's place and the code, computed where it is
needed. A picture therefore depends on its seed and its prompt, not on the batch it is drawn in nor on the order in
which its codes are looked at, and the loop needs no random state and no host round trip.

`B` pictures, `n` neighbouring places of each, `K` codebook entries.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch


Generators = torch.Generator | Sequence[torch.Generator] | None

_WORD = 0xFFFFFFFF


def guide(
    conditional: torch.Tensor, unconditional: torch.Tensor, guidance_scale: float | torch.Tensor
) -> torch.Tensor:
    """Classifier-free guidance on logits `(..., K)`: away from the unconditional ones by `guidance_scale`."""
    return unconditional + guidance_scale * (conditional - unconditional)


@dataclass(frozen=True)
class Sampling:
    """How a code is drawn from logits: divided by a temperature, among the `top_k` likeliest codes, among the
    likeliest that hold the probability `top_p`.

    By default the full softmax is sampled, as in the original.

    Args:
        do_sample: False takes the most likely code.
        temperature: 0-dimensional tensor.
        top_k: Number of codes, or None.
        top_p: 0-dimensional tensor, or None.
    """

    do_sample: bool
    temperature: torch.Tensor
    top_k: int | None = None
    top_p: torch.Tensor | None = None

    @classmethod
    def make(
        cls, do_sample: bool, temperature: float, top_k: int | None, top_p: float | None, device: torch.device
    ) -> "Sampling":
        """Checked settings; what may change from call to call becomes a tensor, so that nothing is compiled anew.

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
        return cls(
            do_sample=do_sample,
            temperature=torch.tensor(float(temperature), device=device),
            top_k=top_k,
            top_p=None if top_p is None or top_p == 1 else torch.tensor(float(top_p), device=device),
        )

    def scores(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits `(..., K)` float32 -> logits to sample from, -inf for codes that must not be drawn."""
        scores = logits / self.temperature
        if self.top_k is not None:
            least = scores.topk(min(self.top_k, scores.shape[-1]), dim=-1).values[..., -1:]
            scores = scores.masked_fill(scores < least, float("-inf"))
        if self.top_p is not None:
            ordered, order = scores.sort(dim=-1, descending=True)
            probabilities = ordered.softmax(dim=-1)
            likelier = probabilities.cumsum(dim=-1) - probabilities  # what the codes before hold
            dropped = torch.zeros_like(scores, dtype=torch.bool).scatter(-1, order, likelier >= self.top_p)
            scores = scores.masked_fill(dropped, float("-inf"))
        return scores

    def draw(self, scores: torch.Tensor, keys: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """One code for each place.

        Args:
            scores: `(B, n, K)` float32.
            keys: `(B, 2)` of `draw_keys`.
            places: `(n,)` int64, numbers of the codes in their pictures.

        Returns:
            `(B, n)` int64.
        """
        if not self.do_sample:
            return scores.argmax(dim=-1)
        return (scores + gumbel_noise(keys, places, scores.shape[-1])).argmax(dim=-1)


def draw_keys(batch_size: int, generator: Generators, device: torch.device) -> torch.Tensor:
    """A key of two 32-bit words for each picture: `(batch_size, 2)` int64 on `device`.

    Args:
        generator: A list gives every picture its own stream; a single one is drawn from picture by picture; None uses
            the global stream of `device`. Generators may live on another device than the model.

    Raises:
        ValueError: If a list has not exactly one generator per picture.
    """
    if generator is None:
        return torch.randint(_WORD + 1, (batch_size, 2), device=device)
    if isinstance(generator, torch.Generator):
        generator = [generator] * batch_size
    if len(generator) != batch_size:
        raise ValueError(
            f"Expected one generator per picture, {batch_size} in all, got a list of {len(generator)}. "
            "Pass a list of that length, or a single torch.Generator."
        )
    return torch.stack([torch.randint(_WORD + 1, (2,), generator=g, device=g.device).to(device) for g in generator])


def gumbel_noise(keys: torch.Tensor, places: torch.Tensor, num_codes: int) -> torch.Tensor:
    """Independent standard Gumbel noise, a function of key, place and code: `(B, 2)`, `(n,)` -> `(B, n, K)` float32.

    The code with the largest sum of logit and noise is a sample of the softmax (the Gumbel-max trick).
    """
    codes = torch.arange(num_codes, device=places.device, dtype=torch.int32)
    counters = (places[:, None] * num_codes).to(torch.int32) + codes
    keys = keys.to(torch.int32)
    words = _mix(_mix(counters ^ keys[:, 0, None, None]) ^ keys[:, 1, None, None])
    # The halves apart, because the word is unsigned: their sum is rounded once, as the word itself would be.
    values = _logical_shift(words, 16).float().mul_(2.0**16).add_((words & 0xFFFF).float())
    uniforms = values.add_(0.5).mul_(2.0**-32).clamp_(max=1 - 2.0**-24)
    # The winners have uniforms near zero, where float32 is fine, and log1p keeps that.
    return uniforms.neg_().log1p_().neg_().log_().neg_()


def _mix(words: torch.Tensor) -> torch.Tensor:
    """A bijection of 32-bit words that looks random: the finaliser of MurmurHash3 (public domain).

    Words are held in int32, whose products wrap as unsigned ones do: half the memory of int64, and processors multiply
    eight at a time.
    """
    words = (words ^ _logical_shift(words, 16)) * (0x85EBCA6B - 2**32)
    words = (words ^ _logical_shift(words, 13)) * (0xC2B2AE35 - 2**32)
    return words ^ _logical_shift(words, 16)


def _logical_shift(words: torch.Tensor, bits: int) -> torch.Tensor:
    """To the right, zeros coming in from the left."""
    return (words >> bits) & (2 ** (32 - bits) - 1)


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
