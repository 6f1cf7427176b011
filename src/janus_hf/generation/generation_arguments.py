"""Types of the keyword arguments of image generation, the table of what they may be, and checks of the others.

Overloads use the types: their signatures name only the arguments that decide the type of the result, and take the
others as one `TypedDict`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict

import torch

from ..arguments import (
    FLAG,
    FUNCTION,
    SOME_SHARE,
    Value,
    check_choice,
    check_integer,
    describe,
    integer,
    number,
    one_of,
    or_none,
)


# Source of random keys: one generator for all images, one per image, or None for the device's global generator.
Generators = torch.Generator | Sequence[torch.Generator] | None


# Value of the argument `mode` that captures steps in a CUDA graph; all other values are modes of torch.compile.
CAPTURED = "graph"

MAX_GRAPHS = 4  # default of `max_graphs`, the number of captured graphs that a model keeps


class SamplingArguments(TypedDict, total=False):
    """Keyword arguments that `JanusProPipeline.__call__` and the model's `generate_images` share."""

    guidance_scale: float | None
    do_sample: bool
    temperature: float
    top_k: int | None
    top_p: float | None
    generator: Generators
    image_ids: torch.Tensor | None
    speculative_window: int
    cache_implementation: Literal["static", "dynamic"]


_ALL_TOKENS = "use None to sample among all tokens"
# What each argument of `generate_images` may be that is neither a tensor nor a generator.
IMAGE_VALUES: Mapping[str, Value] = {
    "guidance_scale": number(
        "be 0 or more", lambda value: value >= 0, 5.0, "use 1 for no guidance, 5 as the original"
    ),
    "do_sample": FLAG,
    "temperature": number(
        "be positive", lambda value: value > 0, 1.0, "use do_sample=False for the most likely tokens"
    ),
    "top_k": or_none(integer(1, 50, _ALL_TOKENS)),
    "top_p": or_none(number(*SOME_SHARE, 0.9, _ALL_TOKENS)),
    "speculative_window": integer(1, 4, "use 1 to guess nothing"),
    "cache_implementation": one_of("static", "dynamic"),
    "callback": or_none(FUNCTION),
    **dict.fromkeys(("output_logits", "output_scores", "return_dict_in_generate"), FLAG),
}


def check_generators(generator: Any, num_images: int) -> None:
    """Raise an error unless `generator` is None, a `torch.Generator`, or a list or tuple with one for each image.

    Args:
        generator: The caller's argument.
        num_images: Number of images.

    Raises:
        TypeError: If it is anything else, for example a seed.
        ValueError: If a list or tuple has another length.
    """
    if generator is None or isinstance(generator, torch.Generator):
        return
    seeded = "write torch.Generator().manual_seed(0) for the seed 0"
    if not isinstance(generator, (list, tuple)):
        raise TypeError(
            f"`generator` must be a torch.Generator, or a list with one per image, got {describe(generator)}: "
            f"{seeded}."
        )
    for one in generator:
        if not isinstance(one, torch.Generator):
            raise TypeError(
                f"`generator` must be a torch.Generator, or a list with one per image, got a list with "
                f"{describe(one)} in it: {seeded}."
            )
    if len(generator) != num_images:
        raise ValueError(
            f"`generator` must be a list with one generator per image, {num_images} in all, got a list of "
            f"{len(generator)}: pass a list of that length, or a single torch.Generator."
        )


def check_integer_tensor(value: Any, name: str, shape: str) -> None:
    """Raise a TypeError unless an argument is a tensor of integers.

    Args:
        value: The caller's argument.
        name: Name of that argument, for the message.
        shape: Shape that it must have, for the message.
    """
    if not isinstance(value, torch.Tensor):
        raise TypeError(
            f"`{name}` must be a tensor of integers {shape}, got {describe(value)}: convert it with torch.as_tensor."
        )
    if value.is_floating_point() or value.is_complex() or value.dtype == torch.bool:
        raise TypeError(f"`{name}` must be a tensor of integers {shape}, got dtype {value.dtype}: pass token ids.")


def check_compiling(mode: Any, batch_sizes: Any, speculative_window: Any, max_graphs: Any = None) -> None:
    """Raise an error if an argument of `compile_generation`, or of the pipeline's `enable_fast_decoding`, is invalid.

    Args:
        mode: A mode of `torch.compile`, or "graph", or None.
        batch_sizes: Sequence of numbers of images, which the model's method calls `warm_up`.
        speculative_window: Number of image tokens that one step processes.
        max_graphs: Number of captured graphs to keep, or None.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If the mode is unknown, a number is below 1, or `max_graphs` is given without the mode "graph" or
            is smaller than the number of different batch sizes.
    """
    if mode is not None:
        import torch._inductor  # torch.compile has no public list of its modes, its documentation names this function

        check_choice(mode, "mode", (CAPTURED, *torch._inductor.list_mode_options()))
    if not isinstance(batch_sizes, Sequence) or isinstance(batch_sizes, (str, bytes)):
        raise TypeError(
            f"`batch_sizes` (`warm_up`) must be a list of integers, got {describe(batch_sizes)}: write [8] for "
            "batches of eight images, or [] to compile later."
        )
    for size in batch_sizes:
        check_integer(size, "batch_sizes", "give the numbers of images that you will generate at a time")
    check_integer(speculative_window, "speculative_window", "use 1 to guess nothing")
    if max_graphs is not None:
        check_integer(max_graphs, "max_graphs", f"leave it out for {MAX_GRAPHS}")
        if mode != CAPTURED:
            raise ValueError(
                f"`max_graphs` must be None unless mode='graph', got {max_graphs} with mode={mode!r}: leave it out."
            )
    if mode == CAPTURED and len(set(batch_sizes)) > (kept := max_graphs or MAX_GRAPHS):
        raise ValueError(
            f"`max_graphs` must be at least the number of different `batch_sizes` (`warm_up`), "
            f"{len(set(batch_sizes))}, got {kept}: raise it, or name fewer sizes."
        )


__all__ = [
    "CAPTURED",
    "IMAGE_VALUES",
    "MAX_GRAPHS",
    "Generators",
    "SamplingArguments",
    "check_compiling",
    "check_generators",
    "check_integer_tensor",
]
