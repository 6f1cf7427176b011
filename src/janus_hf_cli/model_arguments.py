"""Which model a command works with, and where."""

import argparse
import os
import sys
from typing import Any


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """`--model`, `--revision`, `--device`, `--dtype`, `--quantize`."""
    group = parser.add_argument_group("model")
    group.add_argument("-m", "--model", help="repository id or folder (default: the tiny model inside the package)")
    group.add_argument("--revision", help="branch, tag or commit of the repository")
    group.add_argument("--device", help="cpu, cuda, mps, ... (default: the best there is)")
    add_dtype_argument(group)
    group.add_argument(
        "--quantize",
        choices=("int8", "int4"),
        help="round the language model's weights when loading (default: leave them as they are)",
    )


def add_dtype_argument(parser: Any) -> None:
    """`--dtype`."""
    parser.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16", "float16"),
        default="auto",
        help="of the weights; auto is the stored one (default: auto)",
    )


def load_pipeline(arguments: argparse.Namespace) -> Any:
    """The pipeline that the arguments name, where they say; by default the embedded one."""
    from transformers.utils import logging

    from janus_hf import JanusProPipeline
    from janus_hf.assets import DEFAULT_MODEL, DEFAULT_MODEL_NOTE

    if arguments.model is None:
        logging.disable_progress_bar()
        print(DEFAULT_MODEL_NOTE, file=sys.stderr)
    device = check_device(arguments.device or best_device())
    dtype = arguments.dtype
    if arguments.model is None and device == "cpu" and dtype == "auto" and arguments.quantize != "int4":
        # Ten times as fast as bfloat16 on processors without units for it, and 8 MB more; the int4 kernel is the one
        # that is much slower.
        dtype = "float32"
    kwargs: dict[str, Any] = {"revision": arguments.revision} if arguments.revision else {}
    if arguments.quantize:
        kwargs |= {"quantization_config": arguments.quantize, "device_map": device}
    pipe = JanusProPipeline.from_pretrained(arguments.model or DEFAULT_MODEL, dtype=dtype, **kwargs)
    return pipe.to(device)


def best_device() -> str:
    """This process's GPU, Apple's, or the CPU."""
    import torch

    if torch.cuda.is_available():
        rank = os.environ.get("LOCAL_RANK")  # under accelerate launch every process has a GPU of its own
        return "cuda" if rank is None else f"cuda:{rank}"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def check_device(device: str) -> str:
    """The device, if it can be used.

    Raises:
        ValueError: If it cannot.
    """
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {device} cannot be used here: {str(error).splitlines()[0]}") from error
    return device
