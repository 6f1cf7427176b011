"""Record the tokens and logits of the first steps of a generation, and compare two such records."""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import torch

from janus_hf import JanusProForConditionalGeneration

from .contenders import Enough


class Recording(NamedTuple):
    """The first `n` image tokens of `B` images, and the logits of all of them but the first.

    Attributes:
        tokens: `(B, n)` int64.
        logits: `(B, n - 1, K)` float32 over the `K` codebook entries, after guidance. The first token comes from the
            prompt, which no decoder runs, so its logits are not recorded.
    """

    tokens: torch.Tensor
    logits: torch.Tensor


def record(
    model: JanusProForConditionalGeneration, ids: torch.Tensor, count: int, seeds: Sequence[int], **settings: Any
) -> Recording:
    """Generate the first `count` tokens of an image per prompt, and return tokens and logits on the CPU.

    Args:
        model: This package's model, with the decoder that is to run.
        ids: Prompts `(B, T)`.
        count: Number of tokens per image.
        seeds: One seed per image.
        settings: Further arguments of `generate_images`.
    """
    logits: list[torch.Tensor] = []
    tokens: list[torch.Tensor] = []
    step = model._decoder.step

    def spy(*arguments: Any) -> Any:
        output = step(*arguments)
        logits.append(output.logits.float().clone())  # the next step may overwrite it
        return output

    def stop(position: int, sampled: torch.Tensor) -> None:
        if position + 1 == count:
            tokens.append(sampled.clone())
            raise Enough

    # A hook on a module would change how decoders treat the model, so the decoder's own method is wrapped.
    model._decoder.step = spy
    try:
        with suppress(Enough):
            generators = [torch.Generator().manual_seed(seed) for seed in seeds]
            model.generate_images(ids, generator=generators, callback=stop, **settings)
    finally:
        del model._decoder.step
    return Recording(tokens[0].cpu(), torch.cat(logits, dim=1)[:, : count - 1].cpu())


class Comparison(NamedTuple):
    """How two recordings differ. Steps are counted from 1, which samples the second token.

    Attributes:
        equal: Share of tokens that are equal.
        first_token: Position of the first token that differs, from 0; None if none does.
        first_step: First step whose logits differ; None if none does.
        by: Largest difference of the logits of that step, the last one that both recordings reach with equal tokens;
            0 if none differs.
    """

    equal: float
    first_token: int | None
    first_step: int | None
    by: float


def compare(first: Recording, second: Recording) -> Comparison:
    """Compare two recordings of the same number of tokens and images."""
    same = first.tokens == second.tokens
    steps = (first.logits - second.logits).abs().amax(dim=(0, 2))  # largest difference of each step
    # A difference that is not a number is a difference too.
    different = (~(steps == 0)).nonzero().flatten().tolist()
    unequal = (~same.all(dim=0)).nonzero().flatten().tolist()
    return Comparison(
        equal=same.float().mean().item(),
        first_token=unequal[0] if unequal else None,
        first_step=different[0] + 1 if different else None,
        by=steps[different[0]].item() if different else 0.0,
    )


__all__ = ["Comparison", "Recording", "compare", "record"]
