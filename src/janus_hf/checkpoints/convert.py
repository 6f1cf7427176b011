"""A function that rewrites a checkpoint in another file layout: deepseek-ai's "original" one or "transformers"."""

import os
from typing import Any

import torch

from ..hub.opening import open_checkpoint
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
    """Read a checkpoint in either file layout, write it in `layout`, reload the copy and compare every tensor.

    The weights are written as safetensors. The processor's files are written too.

    Args:
        source: Repository id or folder of the checkpoint.
        destination: Folder to write to. It must be empty, or not exist yet.
        layout: File layout of the copy: "original" (that of deepseek-ai's releases) or "transformers" (that of
            transformers' own Janus).
        dtype: Dtype to convert the weights to; "auto" keeps the stored one.
        max_shard_size: Largest size of one weight file, in bytes or as a string such as "5GB".
        hub_kwargs: Arguments that say where on the Hub the source is: `revision`, `token`, `cache_dir`, ...

    Raises:
        CheckpointError: If the source does not hold exactly the model's weights, or the reloaded copy differs.
        OSError: If the repository or one of its files cannot be had.
        ValueError: If the source is an adapter, the destination is not empty, or the layout is unknown or cannot hold
            the model.
    """
    folder = check_new_folder(destination)
    checkpoint = open_checkpoint(source, hub_kwargs)
    if checkpoint.adapter is not None:
        raise ValueError(
            f"`source` must be a whole checkpoint, got {str(source)!r}, which is an adapter for "
            f"{str(checkpoint.source.path)!r}: merge it with merge_adapter or `janus-hf merge`; both write any layout."
        )
    at = checkpoint.source.hub_kwargs  # both come from one commit
    model = JanusProForConditionalGeneration.from_pretrained(source, dtype=dtype, **at)
    processor = JanusProProcessor.from_pretrained(source, **at)
    save_and_verify(model, folder, layout=layout, max_shard_size=max_shard_size)
    processor.save_pretrained(folder, layout=layout)


__all__ = ["convert_checkpoint"]
