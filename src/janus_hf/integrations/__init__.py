"""Janus-Pro inside other people's harnesses. Importing this package imports none of them."""

from typing import Any


DEFAULT_CHECKPOINT = "deepseek-ai/Janus-Pro-7B"


def load_pipeline(pretrained: str, *, dtype: str = "bfloat16", device: Any = None, revision: str | None = None) -> Any:
    """A `JanusProPipeline` for evaluation, without progress bars of its own.

    Args:
        pretrained: Repository id or folder.
        dtype: A name of torch's ("bfloat16" is what the authors evaluated with, "float32", ...), or "auto" for the
            checkpoint's own.
        device: Where to; by default a GPU if there is one.
        revision: Of the repository.

    Raises:
        ValueError: If torch has no such dtype.
        CheckpointError: If the weights are not exactly the model's.
    """
    import torch

    from ..pipelines import JanusProPipeline

    resolved = dtype if dtype == "auto" else getattr(torch, str(dtype).removeprefix("torch."), None)
    if resolved != "auto" and not isinstance(resolved, torch.dtype):
        raise ValueError(
            f"Expected dtype to be 'auto' or a floating-point type of torch, as 'bfloat16'; got {dtype!r}."
        )
    hub: dict[str, Any] = {} if revision is None else {"revision": revision}
    pipe = JanusProPipeline.from_pretrained(pretrained, dtype=resolved, **hub)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))


__all__ = ["DEFAULT_CHECKPOINT", "load_pipeline"]
