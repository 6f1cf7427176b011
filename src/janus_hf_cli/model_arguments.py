"""Arguments that several commands share: the checkpoint, the device and the dtype; and the pipeline they describe."""

import argparse
import os
import sys
from typing import TYPE_CHECKING, Any, Protocol


if TYPE_CHECKING:
    from janus_hf import JanusProPipeline


class Commands(Protocol):
    """The object returned by `ArgumentParser.add_subparsers`, whose class is private to argparse."""

    def add_parser(self, *args: Any, **kwargs: Any) -> argparse.ArgumentParser:
        """Add a sub-command and return its parser."""
        ...


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--model`, `--revision`, `--device`, `--dtype` and `--quantize` to a command that loads a pipeline."""
    group = parser.add_argument_group("model")
    group.add_argument("-m", "--model", help="repository id or folder (default: the tiny model inside the package)")
    add_revision_argument(group)
    group.add_argument("--device", help="cpu, cuda, mps, ... (default: a GPU if there is one, else the CPU)")
    add_dtype_argument(group)
    group.add_argument(
        "--quantize",
        choices=("int8", "int4"),
        help="quantize the language model's weights while loading (default: keep them as they are)",
    )


class _HasArguments(Protocol):
    """A parser or a group of its arguments."""

    def add_argument(self, *args: Any, **kwargs: Any) -> argparse.Action: ...


def add_dtype_argument(parser: _HasArguments) -> None:
    """Add `--dtype` to a parser or a group of arguments."""
    parser.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16", "float16"),
        default="auto",
        help="dtype of the weights; auto keeps the stored one (default: auto)",
    )


def add_revision_argument(parser: _HasArguments) -> None:
    """Add `--revision` to a parser or a group of arguments."""
    parser.add_argument("--revision", help="branch, tag or commit of the repository")


def revision_kwargs(arguments: argparse.Namespace) -> dict[str, str]:
    """Return `{"revision": ...}` for `from_pretrained` if `--revision` was given, else an empty dict."""
    return {"revision": arguments.revision} if arguments.revision else {}


def load_pipeline(arguments: argparse.Namespace) -> "JanusProPipeline":
    """Load the checkpoint of `--model` on the device of `--device`; by default the model inside the package.

    Raises:
        ValueError: If the device cannot be used.
        CheckpointError: If the weights are not exactly the model's.
    """
    from transformers.utils import logging

    from janus_hf import JanusProPipeline
    from janus_hf.assets import DEFAULT_MODEL, DEFAULT_MODEL_NOTE

    if arguments.model is None:
        logging.disable_progress_bar()
        print(DEFAULT_MODEL_NOTE, file=sys.stderr)
    device = check_device(arguments.device or best_device())
    dtype = arguments.dtype
    if arguments.model is None and device == "cpu" and dtype == "auto" and arguments.quantize != "int4":
        # float32 is ten times as fast as bfloat16 on processors without bfloat16 instructions and takes 8 MB more.
        # The int4 kernel is the exception: it is much slower in float32.
        dtype = "float32"
    kwargs: dict[str, Any] = dict(revision_kwargs(arguments))
    if arguments.quantize:
        kwargs |= {"quantization_config": arguments.quantize, "device_map": device}
    pipe: JanusProPipeline = JanusProPipeline.from_pretrained(arguments.model or DEFAULT_MODEL, dtype=dtype, **kwargs)
    return pipe.to(device)


def best_device() -> str:
    """Return the name of this process's GPU, else of Apple's GPU, else "cpu"."""
    import torch

    if torch.cuda.is_available():
        rank = os.environ.get("LOCAL_RANK")  # accelerate launch gives every process a GPU of its own
        return "cuda" if rank is None else f"cuda:{rank}"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def check_device(device: str) -> str:
    """Return the name of a device after allocating an empty tensor on it.

    Raises:
        ValueError: If the device cannot be used.
    """
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"`--device` must be a device of this machine, got {device!r}, which cannot be used here: "
            f"{str(error).splitlines()[0]}"
        ) from error
    return device
