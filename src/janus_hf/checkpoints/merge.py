"""A function that merges a PEFT adapter into its base model and saves the result as one plain checkpoint."""

import logging
import os
from collections.abc import Iterable
from pathlib import Path

import torch
from transformers.tokenization_utils_base import FULL_TOKENIZER_FILE

from ..errors import CheckpointError
from ..files import fetch_files
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
    """Add an adapter's changes to the weights of its base model, write the result and check the files by reloading.

    The merged model is written as safetensors, reloaded, and compared tensor by tensor. A processor is written too if
    the adapter or the base model has one.

    Args:
        adapter: Folder or Hub repository of the adapter in PEFT's format.
        destination: Folder to write to. It must be empty, or not exist yet.
        base: Folder or repository of the base model; by default the one that the adapter's config names.
        layout: File layout of the merged model: "original" (that of deepseek-ai's releases) or "transformers" (that of
            transformers' own Janus).
        dtype: Dtype to convert the base model's weights to before merging; "auto" keeps the stored one.
        max_shard_size: Largest size of one weight file, in bytes or as a string such as "5GB".

    Returns:
        The path of the destination.

    Raises:
        ValueError: If the destination is not empty, or the adapter does not name its base and none is given.
        CheckpointError: If the adapter does not fit the base model, the merged weights are not finite, or the reloaded
            model differs from the merged one.
        OSError: If the Hub does not answer whether a file exists.
    """
    folder = check_new_folder(destination)
    base, model = _merge(adapter, base, dtype)
    processor = _load_processor([adapter, base])  # before anything is written, so that its errors come first
    save_and_verify(model, folder, layout=layout, max_shard_size=max_shard_size)
    if processor is not None:
        processor.save_pretrained(folder, layout=layout)
    return folder


def _merge(
    adapter: str | os.PathLike[str], base: str | os.PathLike[str] | None, dtype: torch.dtype | str
) -> tuple[str | os.PathLike[str], JanusProForConditionalGeneration]:
    """Load the base model and merge the adapter into it.

    Args:
        adapter: Folder or repository of the adapter.
        base: Folder or repository of the base model; None takes the one that the adapter's config names.
        dtype: Dtype of the base model's weights; "auto" keeps the stored one.

    Returns:
        The folder or repository of the base model, and the merged model.
    """
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


def _load_processor(sources: Iterable[str | os.PathLike[str]]) -> JanusProProcessor | None:
    """Return the processor of the first source that has one, or None if no source has one.

    Raises:
        OSError: If the Hub does not answer whether a source has one.
        ValueError: If the first processor cannot be loaded. The next one is not taken in its place.
    """
    for source in sources:
        if fetch_files(source, needed=[], optional=[FULL_TOKENIZER_FILE])[FULL_TOKENIZER_FILE] is not None:
            processor: JanusProProcessor = JanusProProcessor.from_pretrained(source)
            return processor
        logger.info("%s has no processor.", source)
    return None


__all__ = ["merge_adapter"]
