"""Rewriting a checkpoint in the other layout."""

import os
from typing import Any

import torch

from ..layouts import Layout
from ..modeling import JanusProForConditionalGeneration
from ..processing import JanusProProcessor
from .verify import check_new_folder, save_and_verify


def convert_checkpoint(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    layout: Layout,
    *,
    dtype: torch.dtype | str = "auto",
    max_shard_size: int | str = "5GB",
    **hub_kwargs: Any,
) -> None:
    """Read a checkpoint in any layout, write it in `layout` as safetensors, reload it and compare every tensor.

    Args:
        source: Repository id or folder.
        destination: Folder to write; it is created and must be empty or absent.
        layout: "original" or "transformers".
        dtype: Convert the weights to this dtype; "auto" keeps the stored one.
        max_shard_size: Upper bound of one weight file, in bytes or as "5GB".
        hub_kwargs: Where on the Hub the source is: `revision`, `token`, `cache_dir`, ...

    Raises:
        CheckpointError: If the source is broken, or the reloaded copy differs.
        ValueError: If the destination is in use or the layout cannot hold the model.
    """
    folder = check_new_folder(destination)
    model = JanusProForConditionalGeneration.from_pretrained(source, dtype=dtype, **hub_kwargs)
    processor = JanusProProcessor.from_pretrained(source, **hub_kwargs)
    save_and_verify(model, folder, layout=layout, max_shard_size=max_shard_size)
    processor.save_pretrained(folder, layout=layout)


__all__ = ["convert_checkpoint"]
