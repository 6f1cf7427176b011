"""Adapters that run Janus-Pro in the evaluation harnesses lmms-eval and VLMEvalKit, and evaluators during training.

Importing this package imports neither of the two harnesses.
"""

from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    import torch

    from ..pipelines import JanusProPipeline


DEFAULT_CHECKPOINT = "deepseek-ai/Janus-Pro-7B"


def load_pipeline(
    pretrained: str,
    *,
    dtype: str = "bfloat16",
    device: "str | torch.device | None" = None,
    revision: str | None = None,
) -> "JanusProPipeline":
    """Load and return the pipeline of a checkpoint for an evaluation harness.

    The pipeline shows no progress bars, because the harness shows its own.

    Args:
        pretrained: Repository id on the Hub, or folder of the checkpoint.
        dtype: Name of a torch dtype ("bfloat16", which the authors evaluated with, "float32", ...), or "auto" for the
            dtype of the checkpoint.
        device: Device of the model; by default a GPU if one is available.
        revision: Branch, tag or commit of the repository.

    Raises:
        ValueError: If torch has no dtype of this name.
        CheckpointError: If the checkpoint's weights are not exactly those that the model needs.
    """
    import torch

    from ..pipelines import JanusProPipeline

    resolved = dtype if dtype == "auto" else getattr(torch, str(dtype).removeprefix("torch."), None)
    if resolved != "auto" and not isinstance(resolved, torch.dtype):
        raise ValueError(
            f"`dtype` must be 'auto' or the name of a torch dtype, got {dtype!r}: write it as 'bfloat16'."
        )
    hub: dict[str, Any] = {} if revision is None else {"revision": revision}
    pipe = JanusProPipeline.from_pretrained(pretrained, dtype=resolved, **hub)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))


__all__ = ["DEFAULT_CHECKPOINT", "load_pipeline"]
