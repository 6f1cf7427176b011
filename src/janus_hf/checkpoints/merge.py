"""Merge an adapter into its base: one plain model to share."""

import json
import logging
from pathlib import Path
from typing import Any

import torch

from ..errors import CheckpointError
from ..layouts import Layout
from ..modeling import JanusProForConditionalGeneration
from ..processing import JanusProProcessor


logger = logging.getLogger(__name__)


def merge_adapter(
    adapter: Any,
    destination: Any,
    *,
    base: Any = None,
    layout: Layout = "original",
    dtype: Any = "auto",
    max_shard_size: int | str = "5GB",
) -> Path:
    """Write base plus adapter as one model, verified by reloading.

    Args:
        adapter: PEFT folder or repository.
        destination: New or empty folder.
        base: Folder or repository of the base; by default the one the adapter names.
        layout: See `JanusProPreTrainedModel.save_pretrained`.
        dtype: Of the base's weights while merging and of what is written; "auto" is the base's own.
        max_shard_size: As in transformers.

    Returns:
        The destination.

    Raises:
        ValueError: If the destination is not empty, or the adapter does not name its base and none is given.
        CheckpointError: If the adapter does not fit the base, the merged weights are not finite, or what was written
            reloads differently.
    """
    from peft import PeftConfig, PeftModel

    folder = Path(destination)
    if folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty: name a new folder.")
    base = base or PeftConfig.from_pretrained(adapter).base_model_name_or_path
    if base is None:
        raise ValueError(f"{adapter} does not say which model it was trained on: name the base.")
    model = JanusProForConditionalGeneration.from_pretrained(base, dtype=dtype)
    try:
        wrapped = PeftModel.from_pretrained(model, adapter)
        merged = wrapped.merge_and_unload(safe_merge=True)
    except (RuntimeError, ValueError) as error:
        raise CheckpointError(f"The adapter {str(adapter)!r} cannot be merged into {str(base)!r}: {error}") from error
    merged.save_pretrained(folder, layout=layout, max_shard_size=max_shard_size)
    _save_processor([adapter, base], folder)
    _compare(merged, folder)
    return folder


def _save_processor(sources: list[Any], folder: Path) -> None:
    """The processor that was saved with the adapter, or the base's."""
    for source in sources:
        try:
            processor = JanusProProcessor.from_pretrained(source)
        except (OSError, ValueError, json.JSONDecodeError):
            logger.info("%s has no processor.", source)
            continue
        processor.save_pretrained(folder)
        return


def _compare(merged: JanusProForConditionalGeneration, folder: Path) -> None:
    reloaded = JanusProForConditionalGeneration.from_pretrained(folder, dtype=merged.dtype).state_dict()
    for name, value in merged.state_dict().items():
        if not torch.equal(value, reloaded[name]):
            raise CheckpointError(f"{folder} reloads differently from what was merged: {name} changed.")


__all__ = ["merge_adapter"]
