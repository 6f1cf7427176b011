"""Rewriting a checkpoint in the other layout, and proof that nothing changed."""

from pathlib import Path
from typing import Any

import torch

from ..errors import CheckpointError
from ..layouts import Layout
from ..modeling import JanusProForConditionalGeneration
from ..processing import JanusProProcessor


def convert_checkpoint(
    source: Any,
    destination: str | Path,
    layout: Layout,
    *,
    dtype: Any = "auto",
    max_shard_size: str = "5GB",
    **hub_kwargs: Any,
) -> None:
    """Read a checkpoint in any layout, write it in `layout` as safetensors, reload the result and compare every
    tensor.

    Args:
        source: Repository id or folder.
        destination: Folder to write; created, must be empty or absent.
        layout: "original" or "transformers".
        dtype: Convert weights to this dtype; "auto" keeps the stored one.
        max_shard_size: Upper bound of one weight file.
        hub_kwargs: `revision`, `token`, `cache_dir`, ...

    Raises:
        CheckpointError: If the source is broken, or the reloaded copy differs.
        ValueError: If the destination is in use or the layout cannot hold the model.
    """
    destination = Path(destination)
    if destination.exists() and any(destination.iterdir()):
        raise ValueError(f"{destination} is not empty; choose a new folder for the converted checkpoint.")
    model = JanusProForConditionalGeneration.from_pretrained(source, dtype=dtype, **hub_kwargs)
    processor = JanusProProcessor.from_pretrained(source, **hub_kwargs)
    model.save_pretrained(destination, layout=layout, max_shard_size=max_shard_size)
    processor.save_pretrained(destination, layout=layout)

    expected = model.state_dict()
    found = JanusProForConditionalGeneration.from_pretrained(destination).state_dict()
    changed = [key for key in expected if key not in found or not torch.equal(expected[key], found[key])]
    if changed or found.keys() - expected.keys():
        raise CheckpointError(
            f"The copy in {destination} differs from {str(source)!r} after reloading; do not use it.",
            mismatched=[
                (key, tuple(found[key].shape) if key in found else (), tuple(expected[key].shape)) for key in changed
            ],
            unexpected=found.keys() - expected.keys(),
        )


__all__ = ["convert_checkpoint"]
