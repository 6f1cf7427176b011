"""A function that merges a PEFT adapter into its base model and saves the result as one plain checkpoint."""

import logging
import os
from pathlib import Path
from typing import Any

import torch
from transformers.tokenization_utils_base import FULL_TOKENIZER_FILE

from ..errors import CheckpointError
from ..hub.cards import CARD_FILE, finish_card, model_card
from ..hub.opening import ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE, Source, open_base, open_source
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
    **hub_kwargs: Any,
) -> Path:
    """Add an adapter's changes to the weights of its base model, write the result and check the files by reloading.

    The merged model is written as safetensors, reloaded, and compared tensor by tensor. A processor is written too if
    the adapter or the base model has one, and a model card that names both.

    Args:
        adapter: Folder or Hub repository of the adapter in PEFT's format.
        destination: Folder to write to. It must be empty, or not exist yet.
        base: Folder or repository of the base model; by default the one that the adapter's config names, at the
            revision that it names.
        layout: File layout of the merged model: "original" (that of deepseek-ai's releases) or "transformers" (that of
            transformers' own Janus).
        dtype: Dtype to convert the base model's weights to before merging; "auto" keeps the stored one.
        max_shard_size: Largest size of one weight file, in bytes or as a string such as "5GB".
        hub_kwargs: Arguments that say where on the Hub the adapter is: `revision`, `subfolder`, `token`, `cache_dir`,
            ... All but the first two are used for the base model too.

    Returns:
        The path of the destination.

    Raises:
        OSError: If the repository of the adapter or of the base model, or one of their files, cannot be had.
        ValueError: If the destination is not empty, or the adapter does not name its base and none is given.
        CheckpointError: If the adapter does not fit the base model, the merged weights are not finite, or the reloaded
            model differs from the merged one.
    """
    folder = check_new_folder(destination)
    source = open_source(adapter, hub_kwargs, first=ADAPTER_CONFIG_FILE)
    adapter_config = source.read_json(ADAPTER_CONFIG_FILE)
    if adapter_config is None:
        raise ValueError(
            f"`adapter` must be an adapter in PEFT's format, got {str(adapter)!r}, which has no "
            f"{ADAPTER_CONFIG_FILE}: name another folder or repository."
        )
    if base is None and adapter_config.get("base_model_name_or_path") is None:
        raise ValueError(
            f"`base` must be the model that {adapter} was trained on, got None, and the adapter's config does not "
            "name it either: name the base."
        )
    base_source = open_base(source, adapter_config, base)
    model = _merge(source, base_source, dtype)
    # The processor is loaded before anything is written, so that its errors come first.
    holder = next((place for place in (source, base_source) if place.download(FULL_TOKENIZER_FILE)), None)
    processor = None if holder is None else JanusProProcessor.from_pretrained(holder.path, **holder.hub_kwargs)
    save_and_verify(model, folder, layout=layout, max_shard_size=max_shard_size)
    if processor is not None:
        processor.save_pretrained(folder, layout=layout)
    else:
        logger.info("Neither %s nor %s has a processor.", source.path, base_source.path)
    card = model_card(model)
    card.text += (
        f"\n\nIts weights are those of {_name(base_source)} with the adapter {_name(source)} merged into them.\n"
    )
    (folder / CARD_FILE).write_text(finish_card(card, []), encoding="utf-8")
    return folder


def _merge(adapter: Source, base: Source, dtype: torch.dtype | str) -> JanusProForConditionalGeneration:
    """Load the base model, merge the adapter into it, and return it.

    Args:
        adapter: The adapter.
        base: The base model.
        dtype: Dtype of the base model's weights; "auto" keeps the stored one.
    """
    from peft import PeftModel

    # PEFT reads the files from the cache: it takes some arguments of Hub calls for the config alone.
    weights = adapter.find(ADAPTER_WEIGHTS_FILE) or adapter.find("adapter_model.bin")
    if weights is None:
        raise CheckpointError(
            f"{str(adapter.path)!r} must hold the weights of an adapter, got neither {ADAPTER_WEIGHTS_FILE} nor "
            "adapter_model.bin: check that all files are there."
        )
    model = JanusProForConditionalGeneration.from_pretrained(base.path, dtype=dtype, **base.hub_kwargs)
    try:
        return PeftModel.from_pretrained(model, os.path.dirname(weights)).merge_and_unload(safe_merge=True)
    except (RuntimeError, ValueError) as error:
        raise CheckpointError(
            f"The adapter {str(adapter.path)!r} cannot be merged into {str(base.path)!r}: {error}"
        ) from error


def _name(source: Source) -> str:
    """Return the id and the commit of a repository for a model card; a folder's path means nothing to its readers."""
    return f"`{source.path}` (commit `{source.commit}`)" if source.commit else "a local folder"


__all__ = ["merge_adapter"]
