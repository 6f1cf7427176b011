"""Where a run's pictures, answers and settings lie: a run that was stopped goes on, and never mixes with another.

A folder belongs to one set of settings. What is already in it is not drawn again; other settings are refused.
"""

import hashlib
import json
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import accelerate
import torch
import transformers
from accelerate import PartialState
from accelerate.utils import align_module_device, has_offloaded_params
from transformers.utils import logging

from .._version import __version__


logger = logging.get_logger(__name__)

SETTINGS = "settings.json"

_TOLD = ("janus_hf", "torch", "transformers", "device")  # of the environment: what may move a number


def processes() -> PartialState:
    """The processes of this launch. Without a GPU accelerate must be told so, or each believes to be alone."""
    return PartialState(cpu=not torch.cuda.is_available())


def run_settings(pipe: Any, **chosen: Any) -> dict[str, Any]:
    """What the outcome of a run depends on: the checkpoint, how it was quantised, and what was chosen.

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
        "quantization": _quantization(config),
        **chosen,
    }


def _quantization(config: Any) -> dict[str, Any] | None:
    """What transformers' quantiser was asked for, as JSON has it; None for weights as they were stored."""
    found = getattr(config, "quantization_config", None)
    if found is None:
        return None
    asked: dict[str, Any] = json.loads(json.dumps(found if isinstance(found, dict) else found.to_dict()))
    return asked


def environment() -> dict[str, Any]:
    """Versions, hardware, processes: recorded, and told where they change, but no ground for refusal."""
    device = processes().device
    return {
        "janus_hf": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "accelerate": accelerate.__version__,
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "processes": processes().num_processes,
    }


def environments(folder: str | os.PathLike[str] | None) -> list[dict[str, Any]]:
    """Every `environment` that a run was worked on in, the first one first; of no folder, the present one."""
    return [environment()] if folder is None else recorded(folder)[1]


def recorded(folder: str | os.PathLike[str]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The settings of a run and its environments, as `open_run` wrote them.

    Raises:
        FileNotFoundError: If nothing is recorded in the folder.
        ValueError: If the file is another program's.
    """
    path = Path(folder) / SETTINGS
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        content = None
    if not isinstance(content, dict) or not isinstance(content.get("settings"), dict):
        raise ValueError(
            f"Expected the settings of a run, JSON of an object with 'settings', in {path}; it holds something else. "
            "Choose another folder, or move the file away."
        )
    return content["settings"], content.get("environments", [])


def hash_weights(model: torch.nn.Module) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of all parameters and buffers, also of those that are quantised, or
    that accelerate keeps on the CPU or on a disk.

    Raises:
        ValueError: If there are weights without values.
    """
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        if not isinstance(value, torch.Tensor):  # what a module keeps beside its tensors
            digest.update(f"{name} {value!r}".encode())
            continue
        for part, tensor in _plain(name, _fetched(model, name) if value.is_meta else value):
            tensor = tensor.detach().cpu()
            digest.update(f"{part} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _plain(name: str, value: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensor, or those that a quantised one consists of."""
    if not hasattr(value, "__tensor_flatten__"):
        yield name, value
        return
    for part in value.__tensor_flatten__()[0]:
        yield from _plain(f"{name}.{part}", getattr(value, part))


def _fetched(model: torch.nn.Module, name: str) -> torch.Tensor:
    """An offloaded tensor."""
    owner, _, last = name.rpartition(".")
    module = model.get_submodule(owner)
    if not has_offloaded_params(module):
        raise ValueError(
            f"{name} has no values here, so that nobody could tell which weights were judged. Load the checkpoint "
            "with its weights in memory, or offload it through accelerate (device_map, offload_folder)."
        )
    with align_module_device(module, torch.device("cpu")):
        tensor: torch.Tensor = getattr(module, last).detach()
    return tensor


def open_run(folder: str | os.PathLike[str], settings: Mapping[str, Any]) -> Path:
    """Make the folder, or go on in it.

    Every process may call it; the main one writes, and warns if what worked in the folder before was of another
    version: `environments` has them all.

    Returns:
        The folder.

    Raises:
        ValueError: If the folder was made with other settings; says which differ. Also as `recorded`.
        FileExistsError: If there are other things in it.
    """
    folder = Path(folder)
    settings = json.loads(json.dumps(dict(settings)))
    path = folder / SETTINGS
    worked: list[dict[str, Any]] = []
    if path.is_file():
        found, worked = recorded(folder)
        differing = sorted(key for key in settings.keys() | found.keys() if settings.get(key) != found.get(key))
        if differing:
            lines = "".join(f"  {key}: {found.get(key)!r} there, {settings.get(key)!r} now\n" for key in differing)
            raise ValueError(f"{folder} was made with other settings:\n{lines}Choose another folder, or delete it.")
    elif processes().is_main_process and folder.is_dir() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} holds other things than a run of this benchmark. Choose a new folder.")
    now = environment()
    if processes().is_main_process and now not in worked:
        content = {"settings": settings, "environments": [*worked, now]}
        write_atomically(path, (json.dumps(content, indent=2) + "\n").encode())
    if processes().is_main_process:
        _tell(folder, worked, now)
    processes().wait_for_everyone()
    return folder


def _tell(folder: Path, worked: Sequence[Mapping[str, Any]], now: Mapping[str, Any]) -> None:
    for key in _TOLD:
        if others := sorted({str(before.get(key)) for before in worked} - {str(now[key])}):
            logger.warning(
                "Part of %s was made with %s %s, and it goes on with %s: numbers may differ from those of a run in "
                "one piece. The report names both.",
                *(folder, key, ", ".join(others), now[key]),
            )


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file that is either whole or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_bytes(content)
    os.replace(partial, path)


__all__ = [
    "environment",
    "environments",
    "hash_weights",
    "open_run",
    "processes",
    "recorded",
    "run_settings",
    "write_atomically",
]
