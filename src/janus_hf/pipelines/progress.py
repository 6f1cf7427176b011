"""The progress bar of a pipeline: what it counts, and how it is configured and hidden."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from diffusers.pipelines.pipeline_utils import DiffusionPipeline


# Arguments of tqdm, for which `set_progress_bar_config` may give other values.
_LOOK = {"desc": "Generating images", "unit": " image tokens"}


class ProgressBarMixin(DiffusionPipeline):
    """Make the progress bar of a diffusers pipeline count image tokens, and let other code hide it."""

    def __init__(self) -> None:
        super().__init__()
        self.set_progress_bar_config()

    def set_progress_bar_config(self, **kwargs: Any) -> None:
        """Set how the progress bar of image generation looks; `disable=True` shows none.

        The setting also holds for the progress bars of the evaluators in `janus_hf.evaluation`.

        Args:
            kwargs: Arguments of tqdm, which replace those of an earlier call.
        """
        self._progress_look = kwargs
        super().set_progress_bar_config(**_LOOK | kwargs)

    @contextmanager
    def hidden_progress_bar(self) -> Iterator[bool]:
        """Show no progress bar inside the `with` block, for code that shows its own.

        Yields:
            Whether the pipeline shows a progress bar outside of the block, which is whether the user wants any.
        """
        look = self._progress_look
        super().set_progress_bar_config(disable=True)
        try:
            yield not look.get("disable", False)
        finally:
            self.set_progress_bar_config(**look)


__all__ = ["ProgressBarMixin"]
