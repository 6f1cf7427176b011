"""`stage_upload`, which collects the files of a run for an upload, without Hub tokens and paths of this machine.

Paths are shortened only in copies of the files. The run's own files keep them, because training needs them to resume.
"""

import json
import os
import shutil
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path

import torch
from transformers.trainer import TRAINER_STATE_NAME, TRAINING_ARGS_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import ADAPTER_CONFIG_NAME

from ...hub.cards import published_base
from ..recording import FACTS_FILE
from .run_arguments import RunArguments, hide_folders


# Files in which the trainers, PEFT and the samples write paths of this machine.
_JSON_WITH_PATHS = (ADAPTER_CONFIG_NAME, TRAINER_STATE_NAME, FACTS_FILE, "step-*.json")
# Files of a checkpoint that are needed only to resume training.
_TRAINING_STATE = (
    "optimizer*",
    "scheduler*",
    "scaler*",
    "rng_state*",
    "global_step*",
    "latest",
    "zero_to_*.py",
    "pytorch_model_fsdp*",
    TRAINER_STATE_NAME,
)
# Names that begin with an underscore are private, such as the training data that a recipe prepares.
_PRIVATE = ("_*", f"{PREFIX_CHECKPOINT_DIR}-*")


def stage_upload(
    destination: Path, run: Path, args: RunArguments, *, model: Path | None = None, checkpoint_name: str = ""
) -> None:
    """Fill a folder with the files of a run to upload: those of the model, its card, its samples and its logs.

    Checkpoints and names that begin with an underscore are left out. Files of the model become hard links if the file
    system supports them. They then take no space, and an upload in the background is complete even if the run deletes
    the checkpoint meanwhile. Files that contain paths of this machine are copied, and each path is shortened to its
    last part in the copy.

    Args:
        destination: The folder to fill.
        run: The run's output folder.
        args: The run's configuration.
        model: Folder of the checkpoint that the model is taken from; None takes the model in `run`.
        checkpoint_name: Name of a subfolder of `destination` to fill with all files of the checkpoint `model`, among
            them those that are needed to resume from it; empty to leave it out.
    """
    if model is None:
        _copy_tree(run, destination, without=_PRIVATE)
    else:
        _copy_tree(model, destination, without=_TRAINING_STATE)
        for folder in (path for path in run.iterdir() if path.is_dir() and not _matches(path.name, _PRIVATE)):
            shutil.copytree(folder, destination / folder.name)  # no links, because logs grow while they are uploaded
        if checkpoint_name:
            _copy_tree(model, destination / checkpoint_name, without=())
    for copied in destination.rglob("*"):
        if copied.name == TRAINING_ARGS_NAME:
            copied.unlink()
            torch.save(args.published(), copied)
        elif _matches(copied.name, _JSON_WITH_PATHS):
            content = json.loads(copied.read_text(encoding="utf-8"))
            if copied.name == ADAPTER_CONFIG_NAME:
                content["base_model_name_or_path"] = published_base(content.get("base_model_name_or_path"))
            text = json.dumps(hide_folders(content), indent=2, ensure_ascii=False) + "\n"
            copied.unlink()  # it may be a link to the original, which must not change
            copied.write_text(text, encoding="utf-8")


def _copy_tree(source: Path, destination: Path, *, without: Iterable[str]) -> None:
    """Link or copy a folder's files to another folder, except top-level names that match a pattern in `without`."""
    for path in source.iterdir():
        if _matches(path.name, without):
            continue
        if path.is_dir():
            shutil.copytree(path, destination / path.name, copy_function=_link, dirs_exist_ok=True)
        else:
            destination.mkdir(parents=True, exist_ok=True)
            _link(str(path), str(destination / path.name))


def _link(source: str, destination: str) -> None:
    """Make a hard link to a file, or copy the file if the file system has no hard links."""
    try:
        os.link(source, destination)
    except OSError:
        shutil.copyfile(source, destination)


def _matches(name: str, patterns: Iterable[str]) -> bool:
    """Return whether a name matches one of the shell patterns."""
    return any(fnmatch(name, pattern) for pattern in patterns)


__all__ = ["stage_upload"]
