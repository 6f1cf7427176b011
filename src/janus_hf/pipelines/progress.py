"""The progress of a pipeline: its progress bar, and the callback that advances it after every step."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from .call_arguments import StepEndCallback, newest_tokens


# Default arguments of tqdm, which `set_progress_bar_config` may override.
_DEFAULTS = {"desc": "Generating images", "unit": " image tokens"}


class ProgressBarMixin(DiffusionPipeline):
    """Make the progress bar of a diffusers pipeline count image tokens, and let other code hide it."""

    def __init__(self) -> None:
        super().__init__()
        self.set_progress_bar_config()

    def set_progress_bar_config(self, **kwargs: Any) -> None:
        """Set the look of the progress bar of image generation, or turn it off with `disable=True`.

        The setting also holds for the progress bars of the evaluators in `janus_hf.evaluation`.

        Args:
            kwargs: Arguments of tqdm, which replace those of an earlier call.
        """
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


def step_callback(
    pipe: DiffusionPipeline,
    report_progress: Callable[[int], object],
    callback: StepEndCallback | None,
    names: Sequence[str],
) -> Callable[[int, torch.Tensor], torch.Tensor | None]:
    """Return a callback for the model's `generate_images` that reports progress and runs the caller's callback.

    The returned function receives the number of the step and the image tokens so far `(B, step + 1)`. It returns the
    `(B,)` tokens that replace the newest ones, or None to keep those.

    Args:
        pipe: The pipeline, which the caller's callback receives.
        report_progress: Function that advances the progress bar by a number of image tokens.
        callback: The caller's `callback_on_step_end`; None if there is none.
        names: The caller's `callback_on_step_end_tensor_inputs`.
    """

    def on_step(step: int, image_ids: torch.Tensor) -> torch.Tensor | None:
        report_progress(len(image_ids))
        if callback is None:
            return None
        return newest_tokens(callback(pipe, step, step, {"image_ids": image_ids} if "image_ids" in names else {}))

    return on_step


__all__ = ["ProgressBarMixin", "step_callback"]
