"""Where a run's pictures, answers and settings lie: a run that was stopped goes on, and never mixes with another.

A folder belongs to one set of settings. What is already in it is not drawn again; other settings are refused.
"""

import hashlib
import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import accelerate
import torch
import transformers
from accelerate import PartialState

from .._version import __version__


SETTINGS = "settings.json"


def processes() -> PartialState:
    """The processes of this launch. Without a GPU accelerate must be told so, or each believes to be alone."""
    return PartialState(cpu=not torch.cuda.is_available())


def run_settings(pipe: Any, **chosen: Any) -> dict[str, Any]:
    """What the outcome of a run depends on: the checkpoint, this package's version, and what was chosen.

    Args:
        pipe: The pipeline; its weights are hashed, adapters included.
        chosen: The evaluator's own settings; JSON values.
    """
    config = pipe.model.config
    return {
        "model": str(getattr(config, "_name_or_path", "")) or type(pipe.model).__name__,
        "commit": getattr(config, "_commit_hash", None),
        "weights_sha256": hash_weights(pipe.model),
        "dtype": str(pipe.model.dtype).removeprefix("torch."),
        "janus_hf": __version__,
        **chosen,
    }


def environment() -> dict[str, Any]:
    """Recorded, not compared: versions, hardware, processes."""
    device = processes().device
    return {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "accelerate": accelerate.__version__,
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "processes": processes().num_processes,
    }


def hash_weights(model: torch.nn.Module) -> str | None:
    """SHA-256 over names, dtypes, shapes and bytes of all parameters and buffers; None if some lie outside memory
    (offloaded to a disk).
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if not isinstance(tensor, torch.Tensor) or tensor.is_meta:
            return None
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        flat = tensor.detach().cpu().contiguous().flatten()
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def open_run(folder: str | os.PathLike[str], settings: Mapping[str, Any]) -> Path:
    """Make the folder, or go on in it.

    Every process may call it; the main one writes.

    Returns:
        The folder.

    Raises:
        ValueError: If the folder was made with other settings; says which differ.
        FileExistsError: If there are other things in it.
    """
    folder = Path(folder)
    settings = json.loads(json.dumps(dict(settings)))
    path = folder / SETTINGS
    if path.is_file():
        found = json.loads(path.read_text(encoding="utf-8"))["settings"]
        differing = sorted(key for key in settings.keys() | found.keys() if settings.get(key) != found.get(key))
        if differing:
            lines = "".join(f"  {key}: {found.get(key)!r} there, {settings.get(key)!r} now\n" for key in differing)
            raise ValueError(f"{folder} was made with other settings:\n{lines}Choose another folder, or delete it.")
    elif processes().is_main_process:
        if folder.is_dir() and any(folder.iterdir()):
            raise FileExistsError(f"{folder} holds other things than a run of this benchmark. Choose a new folder.")
        folder.mkdir(parents=True, exist_ok=True)
        content = json.dumps({"settings": settings, "environment": environment()}, indent=2)
        write_atomically(path, (content + "\n").encode())
    processes().wait_for_everyone()
    return folder


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file that is either whole or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_bytes(content)
    os.replace(partial, path)


__all__ = ["environment", "hash_weights", "open_run", "processes", "run_settings", "write_atomically"]
