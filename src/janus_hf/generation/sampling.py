"""Functions that turn logits into image tokens: guidance, temperature, top-k, top-p and seeded sampling.

A token is sampled by adding noise to the logits and taking the entry with the largest sum. The noise is a hash of the
image's random key, the token's position in its image and the codebook entry, computed by the step that needs it or for
many steps at once. An image therefore depends only on its seed and its prompt: not on the other images of the batch,
and not on the order in which its tokens are computed. The generation loop stores no random state and does not wait for
the device.

In shapes, `B` is the number of images, `n` the number of neighbouring positions of each image, and `K` the number of
codebook entries.
"""

from dataclasses import dataclass

import torch

from ..arguments import check_values
from .generation_arguments import IMAGE_VALUES, Generators, check_generators


_WORD = 0xFFFFFFFF  # largest 32-bit word
_VALUES_AHEAD = 2**22  # number of values of noise that are computed at once (16 MB, and twice that while computing)


def guide(
    conditional: torch.Tensor, unconditional: torch.Tensor, guidance_scale: float | torch.Tensor
) -> torch.Tensor:
    """Apply classifier-free guidance to logits `(..., K)` over `K` codebook entries, and return the guided logits.

    They are the unconditional logits plus `guidance_scale` times the difference between the conditional and the
    unconditional logits: a scale of 0 gives the unconditional logits, a scale of 1 the conditional ones.
    """
    return unconditional + guidance_scale * (conditional - unconditional)


@dataclass(frozen=True)
class Sampling:
    """Settings of sampling, which turn logits into tokens: temperature, top-k and top-p.

    With temperature 1 and without top-k and top-p, tokens are sampled from the full softmax, as in the original code
    (deepseek-ai/Janus generation_inference.py).

    Args:
        do_sample: True samples tokens; False takes the most likely token.
        temperature: 0-dimensional float32 tensor by which logits are divided.
        top_k: Number of most likely tokens to sample among; None samples among all.
        top_p: 0-dimensional float32 tensor with a probability: sample among the most likely tokens that together have
            this probability; None samples among all.
    """

    do_sample: bool
    temperature: torch.Tensor
    top_k: int | None = None
    top_p: torch.Tensor | None = None

    @classmethod
    def make(
        cls, do_sample: bool, temperature: float, top_k: int | None, top_p: float | None, device: torch.device
    ) -> "Sampling":
        """Check the settings and return a `Sampling` that holds `temperature` and `top_p` as tensors on `device`.

        A compiled step is specialised on Python numbers but not on the values of tensors, so another temperature or
        `top_p` reuses the compiled graph. The settings are explained at the class.

        Raises:
            TypeError: If a setting is of the wrong type.
            ValueError: If `temperature` is not positive and finite, `top_k` is below 1 or `top_p` lies outside (0, 1].
        """
        given = {"do_sample": do_sample, "temperature": temperature, "top_k": top_k, "top_p": top_p}
        said = check_values(given, IMAGE_VALUES)
        share = said["top_p"]
        return cls(
            do_sample=said["do_sample"],
            temperature=torch.tensor(said["temperature"], device=device),
            top_k=said["top_k"],
            top_p=None if share is None or share == 1 else torch.tensor(share, device=device),
        )

    def scores(self, logits: torch.Tensor) -> torch.Tensor:
        """Return logits divided by the temperature, with -inf for every token that top-k or top-p excludes.

        Args:
            logits: `(..., K)` float32 over the `K` codebook entries; the result has the same shape and dtype.
        """
        scores = logits / self.temperature
        if self.top_k is not None:
            # Tokens with the same score as the k-th largest are kept, as in transformers' TopKLogitsWarper.
            least = scores.topk(min(self.top_k, scores.shape[-1]), dim=-1).values[..., -1:]
            scores = scores.masked_fill(scores < least, float("-inf"))
        if self.top_p is not None:
            ordered, order = scores.sort(dim=-1, descending=True)
            probabilities = ordered.softmax(dim=-1)
            # Sum the probabilities of the more likely tokens only: the token that crosses `top_p` is still allowed.
            before = probabilities.cumsum(dim=-1) - probabilities
            excluded = torch.zeros_like(scores, dtype=torch.bool).scatter(-1, order, before >= self.top_p)
            scores = scores.masked_fill(excluded, float("-inf"))
        return scores

    def sample(self, scores: torch.Tensor, keys: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Sample one token for each image and position; with `do_sample=False` take the token with the highest score.

        Args:
            scores: `(B, n, K)` float32 scores of the `K` codebook entries at `n` positions of `B` images, from the
                method `scores`.
            keys: `(B, 2)` int64, one random key per image, from `draw_keys`.
            positions: `(n,)` int64, positions of the tokens in their image, counted from 0.

        Returns:
            `(B, n)` int64 tokens in `[0, K)`.
        """
        if not self.do_sample:
            return scores.argmax(dim=-1)
        return (scores + gumbel_noise(keys, positions, scores.shape[-1])).argmax(dim=-1)


@dataclass(frozen=True)
class Draw:
    """Random keys, guidance scale and sampling settings of a batch of images; the same at every step of generation.

    Together with the model and the prompts they determine the image tokens.

    Args:
        keys: `(B, 2)` int64, one random key per image (`draw_keys`), from which the noise of its tokens is computed.
        guidance_scale: 0-dimensional float32 tensor; None if the batch is generated without guidance.
        sampling: Temperature, top-k and top-p.
        noise: `(B, n, K)` float32, the noise of the `n` positions that the next step samples, if it was computed ahead
            (`NoiseAhead`). With None the step computes it.
    """

    keys: torch.Tensor
    guidance_scale: torch.Tensor | None
    sampling: Sampling
    noise: torch.Tensor | None = None

    def sample(self, scores: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Sample one token for each image and position: `(B, n)` int64; see `Sampling.sample`.

        Args:
            scores: `(B, n, K)` float32 scores of the `K` codebook entries, from `Sampling.scores`.
            positions: `(n,)` int64, positions of the tokens in their image.
        """
        if self.noise is None or not self.sampling.do_sample:
            return self.sampling.sample(scores, self.keys, positions)
        return (scores + self.noise).argmax(dim=-1)


class NoiseAhead:
    """The noise of a batch, computed for many positions at once, because it takes some forty kernels each time.

    The values are those of `gumbel_noise`.

    Args:
        keys: `(B, 2)` int64, one random key per image, from `draw_keys`.
        codebook_size: Number `K` of codebook entries.
    """

    def __init__(self, keys: torch.Tensor, codebook_size: int) -> None:
        self._keys, self._codebook_size = keys, codebook_size
        self._first = 0  # position of the first token that `_noise` is for
        self._noise = torch.empty(len(keys), 0, codebook_size, device=keys.device)

    def at(self, first: int, count: int) -> torch.Tensor:
        """Return the noise `(B, count, K)` float32 of `count` positions from `first` on."""
        start = first - self._first
        if start < 0 or start + count > self._noise.shape[1]:
            ahead = max(count, _VALUES_AHEAD // (len(self._keys) * self._codebook_size))
            positions = torch.arange(first, first + ahead, device=self._keys.device)
            self._noise = gumbel_noise(self._keys, positions, self._codebook_size)
            self._first, start = first, 0
        return self._noise[:, start : start + count]


def draw_keys(batch_size: int, generator: Generators, device: torch.device) -> torch.Tensor:
    """Return one random key per image: `(batch_size, 2)` int64 on `device`, two 32-bit words per key.

    Args:
        batch_size: Number of images.
        generator: A list holds one generator per image, which makes the key of this image. A single generator makes
            the keys of all images, one after the other. None uses the global generator of `device`. Generators may
            live on another device than the model.
        device: Device of the keys.

    Raises:
        TypeError: If `generator` is neither None, a generator nor a list of generators.
        ValueError: If `generator` is a list that does not have exactly one generator per image.
    """
    check_generators(generator, batch_size)
    if generator is None:
        return torch.randint(_WORD + 1, (batch_size, 2), device=device)
    if isinstance(generator, torch.Generator):
        generator = [generator] * batch_size
    # The words are made on the generator's device, so that an image does not depend on the model's device.
    return torch.stack([torch.randint(_WORD + 1, (2,), generator=g, device=g.device).to(device) for g in generator])


def gumbel_noise(keys: torch.Tensor, positions: torch.Tensor, codebook_size: int) -> torch.Tensor:
    """Return independent standard Gumbel noise, a deterministic function of image key, position and codebook entry.

    The entry with the largest sum of logit and noise is a sample from the softmax of the logits (the Gumbel-max
    trick).

    Args:
        keys: `(B, 2)` int64, one random key per image, from `draw_keys`.
        positions: `(n,)` int64, positions of the tokens in their image.
        codebook_size: Number `K` of codebook entries.

    Returns:
        `(B, n, K)` float32.
    """
    entries = torch.arange(codebook_size, device=positions.device, dtype=torch.int32)
    counters = (positions[:, None] * codebook_size).to(torch.int32) + entries
    keys = keys.to(torch.int32)  # wraps words above 2**31 - 1, which keeps their bits
    words = _mix(_mix(counters ^ keys[:, 0, None, None]) ^ keys[:, 1, None, None])
    # An int32 word cannot be converted as an unsigned number, so its two 16-bit halves are converted separately. Their
    # sum is rounded once, as the whole unsigned word would be.
    values = _logical_shift(words, 16).float().mul_(2.0**16).add_((words & 0xFFFF).float())
    uniforms = values.add_(0.5).mul_(2.0**-32).clamp_(max=1 - 2.0**-24)
    # The largest noise comes from uniforms near zero, where float32 is dense; log1p keeps that precision.
    return uniforms.neg_().log1p_().neg_().log_().neg_()


def _mix(words: torch.Tensor) -> torch.Tensor:
    """Scramble 32-bit words by a bijection, the finaliser of the hash function MurmurHash3 (public domain).

    The words come and are returned as int32, whose products wrap in the same way as those of unsigned words. This
    takes half the memory of int64, and processors multiply eight int32 values at a time.
    """
    words = (words ^ _logical_shift(words, 16)) * (0x85EBCA6B - 2**32)
    words = (words ^ _logical_shift(words, 13)) * (0xC2B2AE35 - 2**32)
    return words ^ _logical_shift(words, 16)


def _logical_shift(words: torch.Tensor, bits: int) -> torch.Tensor:
    """Return int32 words shifted right by `bits` and filled with zeros from the left, as unsigned words would be."""
    return (words >> bits) & (2 ** (32 - bits) - 1)


def check_codes(image_ids: torch.Tensor, codebook_size: int) -> None:
    """Raise a ValueError unless every id lies in `[0, codebook_size)`. The check waits for the device.

    Args:
        image_ids: Image tokens (codebook entries), a tensor of any shape.
        codebook_size: Number of codebook entries.
    """
    if image_ids.numel() == 0:
        return
    low, high = image_ids.min().item(), image_ids.max().item()
    if low < 0 or high >= codebook_size:
        raise ValueError(
            f"Image codes must lie in [0, {codebook_size}), got values from {low} to {high}: codes in the joint id "
            "space start at the text vocabulary's size, so subtract it first."
        )


__all__ = ["Draw", "NoiseAhead", "Sampling", "check_codes", "draw_keys", "guide", "gumbel_noise"]
