"""Functions that open the folder of a benchmark run, and record its settings and environments there.

A folder belongs to one set of settings, such as checkpoint, prompts and seed. A run that was stopped continues in its
folder, without repeating work that is already there. A folder that was made with other settings is refused, so images
and answers of different runs never mix. The environment, which is versions and hardware, may change.
"""

import hashlib
import json
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import accelerate
import torch
import transformers
from accelerate import PartialState
from accelerate.utils import align_module_device, has_offloaded_params
from transformers import PreTrainedConfig
from transformers.utils import logging

from .._version import __version__
from ..files import remove_unfinished, write_atomically
from ..protocols import HasImageTokens, ImagePipeline


logger = logging.get_logger(__name__)

SETTINGS = "settings.json"

# Keys of the result of `environment` that can affect measured numbers, so `open_run` warns if one of them changes.
_WARNED_ABOUT = ("janus_hf", "torch", "transformers", "device")


class Processes(Protocol):
    """The processes that share the work of a benchmark, as `processes` returns them; `PartialState` has this type."""

    @property
    def num_processes(self) -> int:
        """Number of processes."""
        ...

    @property
    def process_index(self) -> int:
        """Rank of this process, from 0."""
        ...

    @property
    def device(self) -> torch.device:
        """Device on which this process computes."""
        ...

    @property
    def is_main_process(self) -> bool:
        """Whether this process writes the files of the run."""
        ...

    def wait_for_everyone(self) -> None:
        """Wait until all processes call this method."""
        ...


@dataclass(frozen=True)
class _Single:
    """A process that shares nothing with the others of its launch; `device` is where it computes."""

    device: torch.device
    num_processes: int = 1
    process_index: int = 0
    is_main_process: bool = True

    def wait_for_everyone(self) -> None:
        """Return at once."""


# The processes inside a block of `every_process_alone`; None outside of it.
_ALONE: ContextVar[_Single | None] = ContextVar("alone", default=None)


@contextmanager
def every_process_alone() -> Iterator[None]:
    """Let each process of a launch do all the work of a benchmark inside the `with` block, instead of its share of it.

    That is necessary if the processes hold one model together, each a part of its weights: then no process can run the
    model unless all others run it at the same time. All processes compute the same results. Each one writes the files
    of the run, so each one needs a folder of its own.
    """
    token = _ALONE.set(_Single(processes().device))
    try:
        yield
    finally:
        _ALONE.reset(token)


def processes() -> Processes:
    """Return the processes that share the work: this one's rank and device, and the number of them.

    It is accelerate's `PartialState`, except in a block of `every_process_alone`.
    """
    if (alone := _ALONE.get()) is not None:
        return alone
    # On a machine without a GPU accelerate needs `cpu=True`; otherwise each process acts as the only one.
    return PartialState(cpu=not torch.cuda.is_available())


def run_settings(pipe: ImagePipeline, **chosen: Any) -> dict[str, Any]:
    """Return the settings that the outcome of a run depends on, as JSON values.

    Args:
        pipe: Pipeline of the evaluated model. The model's weights are hashed, those of adapters included.
        chosen: The benchmark's own settings; JSON values.

    Returns:
        A dictionary with "model" (name of the checkpoint), "commit", "weights_sha256", "dtype", "quantization" and the
        entries of `chosen`.
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


def _quantization(config: PreTrainedConfig) -> dict[str, Any] | None:
    """Return the quantisation settings in a model's config as JSON values; None if the weights are not quantised."""
    found = getattr(config, "quantization_config", None)
    if found is None:
        return None
    settings: dict[str, Any] = json.loads(json.dumps(found if isinstance(found, dict) else found.to_dict()))
    return settings


def environment() -> dict[str, Any]:
    """Return the environment of this launch: library versions, hardware ("device") and number of processes.

    The folder of a run records it. A run may continue in another environment, but warns if the change can affect its
    numbers.
    """
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
    """Return every environment (versions and hardware, see `environment`) that a run has used, the first one first.

    Args:
        folder: Folder of the run. None stands for a run that keeps nothing on disk; its only environment is the
            present one.
    """
    return [environment()] if folder is None else recorded(folder)[1]


def recorded(folder: str | os.PathLike[str]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Read the settings and the environments that `open_run` recorded in the folder of a run.

    Returns:
        The settings, and the list of environments (see `environment`), the first one first.

    Raises:
        FileNotFoundError: If nothing is recorded in the folder.
        ValueError: If `settings.json` was written by another program.
    """
    path = Path(folder) / SETTINGS
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        content = None
    if not isinstance(content, dict) or not isinstance(content.get("settings"), dict):
        raise ValueError(
            f"{path} must hold the settings of a run, a JSON object with 'settings', got something else: choose "
            "another folder, or move the file away."
        )
    return content["settings"], content.get("environments", [])


def hash_weights(model: torch.nn.Module | HasImageTokens) -> str:
    """Return the SHA-256, in hexadecimal, over names, dtypes, shapes and bytes of a model's parameters and buffers.

    A quantised weight is hashed as the plain tensors that it consists of. Weights that accelerate has offloaded to the
    CPU or to disk are fetched one by one.

    Raises:
        ValueError: If a weight has no value, because it is on the meta device and accelerate has not offloaded it.
    """
    digest = hashlib.sha256()
    # Sort by name, so that the hash does not depend on the order in which modules are registered.
    for name, value in sorted(model.state_dict().items()):
        if not isinstance(value, torch.Tensor):  # a module's extra state, which may be any Python value
            digest.update(f"{name} {value!r}".encode())
            continue
        for part, tensor in _plain_tensors(name, _fetch(model, name) if value.is_meta else value):
            tensor = tensor.detach().cpu()
            digest.update(f"{part} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _plain_tensors(name: str, value: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the name and the value of a tensor, or those of each plain tensor that a quantised tensor consists of."""
    # `__tensor_flatten__` is PyTorch's protocol for tensor subclasses; torchao's quantised weights implement it.
    if not hasattr(value, "__tensor_flatten__"):
        yield name, value
        return
    for part in value.__tensor_flatten__()[0]:
        yield from _plain_tensors(f"{name}.{part}", getattr(value, part))


def _fetch(model: torch.nn.Module | HasImageTokens, name: str) -> torch.Tensor:
    """Return an offloaded weight of a model, the parameter or buffer `name`, as a tensor on the CPU.

    Raises:
        ValueError: If accelerate has not offloaded the weight, so that it has no value anywhere.
    """
    owner, _, last = name.rpartition(".")
    module = model.get_submodule(owner)
    if not has_offloaded_params(module):
        raise ValueError(
            f"{name} has no values here, so the report could not say which weights were evaluated: load the "
            "checkpoint with its weights in memory, or offload it through accelerate (device_map, offload_folder)."
        )
    with align_module_device(module, torch.device("cpu")):
        tensor: torch.Tensor = getattr(module, last).detach()
    return tensor


def open_run(folder: str | os.PathLike[str], settings: Mapping[str, Any]) -> Path:
    """Create the folder of a run, or check that an existing folder belongs to the same run and can continue it.

    Every process of a launch calls it and waits for the others; only the main process writes. The main process warns
    if earlier work in the folder was done with other versions or on another device; `environments` returns all of
    them.

    Args:
        folder: Folder of the run.
        settings: Settings that the outcome of the run depends on, as `run_settings` returns them; JSON values.

    Returns:
        The folder as a `Path`.

    Raises:
        ValueError: If the folder was made with other settings; the message lists the differences. Also if its
            `settings.json` was written by another program.
        FileExistsError: If the folder holds files but no run.
    """
    folder = Path(folder)
    settings = json.loads(json.dumps(dict(settings)))  # as `recorded` reads them, with lists for tuples
    path = folder / SETTINGS
    earlier: list[dict[str, Any]] = []
    if path.is_file():
        found, earlier = recorded(folder)
        differing = sorted(key for key in settings.keys() | found.keys() if settings.get(key) != found.get(key))
        if differing:
            lines = "".join(f"  {key}: {found.get(key)!r} there, {settings.get(key)!r} now\n" for key in differing)
            raise ValueError(f"{folder} was made with other settings:\n{lines}Choose another folder, or delete it.")
    # Only the main process checks this, because it may write into the folder before another process reads it.
    elif processes().is_main_process and folder.is_dir() and any(_foreign(folder)):
        raise FileExistsError(f"{folder} holds other files than a run of this benchmark. Choose a new folder.")
    now = environment()
    if processes().is_main_process and now not in earlier:
        remove_unfinished(path)
        content = {"settings": settings, "environments": [*earlier, now]}
        write_atomically(path, json.dumps(content, indent=2) + "\n")
    if processes().is_main_process:
        _warn_of_changes(folder, earlier, now)
    # No process may work in the folder before its settings are checked and written.
    processes().wait_for_everyone()
    return folder


def _foreign(folder: Path) -> Iterator[Path]:
    """Yield what is in a folder, without the unfinished `settings.json` of a run that was killed while it began."""
    return (path for path in folder.iterdir() if not path.name.startswith(f".{SETTINGS}."))


def _warn_of_changes(folder: Path, earlier: Sequence[Mapping[str, Any]], now: Mapping[str, Any]) -> None:
    """Log a warning for each version or device that differs between earlier environments of a run and the present one.

    Args:
        folder: Folder of the run, for the message.
        earlier: Environments (see `environment`) that the run has used before.
        now: The present environment.
    """
    for key in _WARNED_ABOUT:
        if others := sorted({str(before.get(key)) for before in earlier} - {str(now[key])}):
            logger.warning(
                "Part of %s was made with %s %s, and it continues with %s: numbers may differ from those of a run in "
                "one piece. The report names both.",
                *(folder, key, ", ".join(others), now[key]),
            )


__all__ = [
    "SETTINGS",
    "environment",
    "environments",
    "every_process_alone",
    "hash_weights",
    "open_run",
    "processes",
    "recorded",
    "run_settings",
]
