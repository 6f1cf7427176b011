"""Merging an adapter into its base model, so that one plain model can be shared."""

import json
import logging
import os
from collections.abc import Iterable
from pathlib import Path

import torch

from ..errors import CheckpointError
from ..layouts import Layout
from ..modeling import JanusProForConditionalGeneration
from ..processing import JanusProProcessor
from .verify import check_new_folder, save_and_verify


logger = logging.getLogger(__name__)


def merge_adapter(
    adapter: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    base: str | os.PathLike[str] | None = None,
    layout: Layout = "original",
    dtype: torch.dtype | str = "auto",
    max_shard_size: int | str = "5GB",
) -> Path:
    """Write the base model with the adapter's changes added to its weights, reload it and compare every tensor.

    Args:
        adapter: PEFT folder or repository.
        destination: New or empty folder.
        base: Folder or repository of the base model; by default the one that the adapter's config names.
        layout: See `JanusProPreTrainedModel.save_pretrained`.
        dtype: Convert the base model's weights to this dtype first; "auto" keeps the stored one.
        max_shard_size: Upper bound of one weight file, in bytes or as "5GB".

    Returns:
        The destination.

    Raises:
        ValueError: If the destination is not empty, or the adapter does not name its base and none is given.
        CheckpointError: If the adapter does not fit the base, the merged weights are not finite, or the reloaded
            model differs.
    """
    folder = check_new_folder(destination)
    base, model = _merge(adapter, base, dtype)
    save_and_verify(model, folder, layout=layout, max_shard_size=max_shard_size)
    _save_processor([adapter, base], folder)
    return folder


def _merge(
    adapter: str | os.PathLike[str], base: str | os.PathLike[str] | None, dtype: torch.dtype | str
) -> tuple[str | os.PathLike[str], JanusProForConditionalGeneration]:
    """Return the folder or repository of the base model, and the merged model."""
    from peft import PeftConfig, PeftModel

    base = base or PeftConfig.from_pretrained(adapter).base_model_name_or_path
    if base is None:
        raise ValueError(
            f"`base` must be the model that {adapter} was trained on, got None, and the adapter's config does not "
            "name it either: name the base."
        )
    model = JanusProForConditionalGeneration.from_pretrained(base, dtype=dtype)
    try:
        return base, PeftModel.from_pretrained(model, adapter).merge_and_unload(safe_merge=True)
    except (RuntimeError, ValueError) as error:
        raise CheckpointError(f"The adapter {str(adapter)!r} cannot be merged into {str(base)!r}: {error}") from error


def _save_processor(sources: Iterable[str | os.PathLike[str]], folder: Path) -> None:
    """Save the processor of the first source that has one; if none has, write nothing."""
    for source in sources:
        try:
            processor = JanusProProcessor.from_pretrained(source)
        except (OSError, ValueError, json.JSONDecodeError):
            logger.info("%s has no processor.", source)
            continue
        processor.save_pretrained(folder)
        return


__all__ = ["merge_adapter"]
