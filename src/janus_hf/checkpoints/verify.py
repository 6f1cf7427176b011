"""Functions that write a checkpoint and check by reloading it that it holds the model; for `convert` and `merge`."""

import os
from pathlib import Path

import torch

from ..errors import CheckpointError
from ..layouts import Layout
from ..modeling import JanusProForConditionalGeneration


def check_new_folder(destination: str | os.PathLike[str]) -> Path:
    """Return `destination` as a path after checking that a checkpoint can be written there.

    The folder may be empty or not exist yet; it is not created.

    Raises:
        ValueError: If the folder exists and is not empty.
        NotADirectoryError: If the path is a file.
    """
    folder = Path(destination)
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"`destination` must be a new folder, got {folder}, which is not empty: choose a new folder.")
    return folder


def save_and_verify(
    model: JanusProForConditionalGeneration, folder: Path, *, layout: Layout, max_shard_size: int | str
) -> None:
    """Write a model to a folder as safetensors, reload it from the folder and compare every tensor.

    Args:
        model: Model to write.
        folder: Folder to write to, which must be empty or not exist yet (see `check_new_folder`).
        layout: File layout: "original" (that of deepseek-ai's releases) or "transformers" (that of transformers' own
            Janus).
        max_shard_size: Largest size of one weight file, in bytes or as a string such as "5GB".

    Raises:
        CheckpointError: If a tensor is missing, added or changed in the reloaded model.
        ValueError: If the layout is unknown or cannot hold the model; nothing is written then.
    """
    model.save_pretrained(folder, layout=layout, max_shard_size=max_shard_size)
    expected = model.state_dict()
    found = JanusProForConditionalGeneration.from_pretrained(folder).state_dict()
    changed = [key for key in expected.keys() & found.keys() if not torch.equal(expected[key], found[key])]
    missing, unexpected = expected.keys() - found.keys(), found.keys() - expected.keys()
    if changed or missing or unexpected:
        raise CheckpointError(
            f"The checkpoint written to {folder} differs from the model after reloading; do not use it.",
            missing=missing,
            unexpected=unexpected,
            mismatched=[(key, tuple(found[key].shape), tuple(expected[key].shape)) for key in changed],
        )


__all__ = ["check_new_folder", "save_and_verify"]
