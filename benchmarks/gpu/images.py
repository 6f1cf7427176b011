"""Functions that time the steps of image generation and whole images, for several topics of `benchmarks.gpu`."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from janus_hf import JanusProForConditionalGeneration

from ..contenders import Draw, draw_ours, make_prompts
from ..drawing import measure
from ..machine import now
from ..memory import PeakDeviceMemory
from .bench import Bench


def time_steps(bench: Bench, draw: Draw, batch_size: int, values: dict[str, Any], *, steps: int) -> None:
    """Time the steps of generating `batch_size` images, after a warm-up that compiles or captures.

    Five numbers are added to `values`: "ms" (milliseconds per step), "first" (seconds until the first token), "ready"
    (seconds by which the warm-up call took longer than a later call), "rate" (images per second, without decoding) and
    "peak" (peak memory of the warm-up call in GB, with the weights).

    Args:
        bench: The part's bench.
        draw: Function that generates images.
        batch_size: Number of images at once.
        values: Values of a row, changed in place.
        steps: Number of steps to time. The clock waits for the device after each step.
    """
    before = torch.cuda.memory_allocated() if bench.cuda else 0
    timing = measure({"it": draw}, batch_size, bench.pick(steps, 2), bench.pick(2, 1), bench.device)["it"]
    tokens = 64 if bench.dry else 576
    values["ms"], values["first"], values["ready"] = timing.step * 1e3, timing.first, timing.warm
    values["rate"] = batch_size / (timing.first + (tokens - 1) * timing.step)
    values["peak"] = (before + timing.peak) / 1e9


def time_image(
    bench: Bench, draw: Draw, decode: Callable[[torch.Tensor], Any], batch_size: int = 1
) -> tuple[float, float]:
    """Time generating whole images and decoding as many, without waiting for the device in between.

    Args:
        bench: The part's bench.
        draw: Function that generates images.
        decode: Function that decodes image tokens.
        batch_size: Number of images at once.

    Returns:
        The seconds that all images took together, and the peak memory in GB, with the weights.
    """
    ids = make_prompts(batch_size, bench.device)
    tokens = torch.zeros(batch_size, 64 if bench.dry else 576, dtype=torch.long, device=bench.device)
    before = torch.cuda.memory_allocated() if bench.cuda else 0
    with PeakDeviceMemory(bench.device) as memory:
        start = now(bench.device)
        draw(ids, _no_clock)  # type: ignore[arg-type]
        with torch.no_grad():
            decode(tokens)
        seconds = now(bench.device) - start
    return seconds, (before + memory.bytes) / 1e9


def time_our_image(bench: Bench, model: JanusProForConditionalGeneration, batch_size: int = 1) -> tuple[float, float]:
    """Call `time_image` for this package's model with its present decoder, and return the result."""
    return time_image(bench, partial(draw_ours, model), model.decode_image_ids, batch_size)


def _no_clock(*_: Any) -> None:
    """Do nothing. This function takes the place of a clock that waits for the device after every token."""


__all__ = ["time_image", "time_our_image", "time_steps"]
