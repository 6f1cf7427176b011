"""The progress of a pipeline: its progress bar, and the callback that advances it after every step."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from tqdm import tqdm

from ..arguments import describe
from .call_arguments import StepEndCallback, newest_tokens


# Default arguments of tqdm, which `set_progress_bar_config` may override.
_DEFAULTS = {"desc": "Generating images", "unit": " image tokens"}


class ProgressBarMixin(DiffusionPipeline):
    """Make the progress bar of a diffusers pipeline count image tokens, and let other code hide it."""

    _interrupt = False  # diffusers' name of the flag that a callback, or another thread, sets to end generation

    def __init__(self) -> None:
        super().__init__()
        self.set_progress_bar_config()

    @property
    def interrupt(self) -> bool:
        """Whether generation is to end after the present token; `pipe._interrupt = True` sets it, a call resets it."""
        return self._interrupt

    def set_progress_bar_config(self, **kwargs: Any) -> None:
        """Set the look of the progress bar of image generation, or turn it off with `disable=True`.

        The setting also holds for the progress bars of the evaluators in `janus_hf.evaluation`.

        Args:
            kwargs: Arguments of tqdm, which replace those of an earlier call.

        Raises:
            TypeError: If tqdm has no argument of this name.
        """
        if unknown := sorted(kwargs.keys() - inspect.signature(tqdm.__init__).parameters.keys()):
            raise TypeError(
                f"`{unknown[0]}` must be an argument of tqdm, got {describe(kwargs[unknown[0]])} for a name that is "
                "none: leave it out; disable=True shows no bar."
            )
        self._progress_arguments = kwargs
        super().set_progress_bar_config(**_DEFAULTS | kwargs)

    @contextmanager
    def hidden_progress_bar(self) -> Iterator[bool]:
        """Show no progress bar inside the `with` block, for code that shows its own.

        Yields:
            Whether the pipeline shows a progress bar outside of the block; if not, the user wants no other one either.
        """
        arguments = self._progress_arguments
        super().set_progress_bar_config(disable=True)
        try:
            yield not arguments.get("disable", False)
        finally:
            self.set_progress_bar_config(**arguments)


class InterruptionError(Exception):
    """Raised inside `generate_images` when the flag `_interrupt` of the pipeline is set, and caught by the pipeline.

    Args:
        image_ids: The image tokens so far, `(B, p)`.
    """

    def __init__(self, image_ids: torch.Tensor) -> None:
        super().__init__("Image generation was interrupted.")
        self.image_ids = image_ids

    def filled(self, num_tokens: int) -> torch.Tensor:
        """Return `(B, num_tokens)` tokens: those so far, and copies of the last one."""
        missing = num_tokens - self.image_ids.shape[1]
        return torch.cat([self.image_ids, self.image_ids[:, -1:].repeat(1, missing)], dim=1)


def step_callback(
    pipe: ProgressBarMixin,
    report_progress: Callable[[int], object],
    callback: StepEndCallback | None,
    names: Sequence[str],
) -> Callable[[int, torch.Tensor], torch.Tensor | None]:
    """Return a callback for the model's `generate_images` that reports progress and runs the caller's callback.

    The returned function receives the number of the step and the image tokens so far `(B, step + 1)`. It returns the
    `(B,)` tokens that replace the newest ones, or None to keep those. It raises `InterruptionError` if the flag
    `_interrupt` of the pipeline is set.

    Args:
        pipe: The pipeline, which the caller's callback receives.
        report_progress: Function that advances the progress bar by a number of image tokens.
        callback: The caller's `callback_on_step_end`; None if there is none.
        names: The caller's `callback_on_step_end_tensor_inputs`.
    """

    def on_step(step: int, image_ids: torch.Tensor) -> torch.Tensor | None:
        report_progress(len(image_ids))
        newest = None
        if callback is not None:
            tensors = {"image_ids": image_ids} if "image_ids" in names else {}
            newest = newest_tokens(callback(pipe, step, step, tensors))
        if pipe.interrupt:
            last = image_ids[:, -1] if newest is None else newest
            raise InterruptionError(torch.cat([image_ids[:, :-1], last.to(image_ids)[:, None]], dim=1))
        return newest

    return on_step


__all__ = ["InterruptionError", "ProgressBarMixin", "step_callback"]
