"""Arguments that several commands share (model, device, dtype), and a function that loads the pipeline they name."""

import argparse
import os
import sys
from typing import TYPE_CHECKING, Any, Literal, Protocol


if TYPE_CHECKING:
    from janus_hf import JanusProPipeline


class Commands(Protocol):
    """Type of the object that `ArgumentParser.add_subparsers` returns, whose class is private to argparse."""

    def add_parser(self, *args: Any, **kwargs: Any) -> argparse.ArgumentParser:
        """Add a sub-command and return its parser."""
        ...


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add to a parser the arguments with which `load_pipeline` loads a pipeline.

    These are `--model`, `--revision`, `--device`, `--dtype`, `--quantize` and `--no-parse-special-tokens`.
    """
    group = parser.add_argument_group("model")
    group.add_argument(
        "-m",
        "--model",
        help="repository id or folder (default: the small model inside the package, which knows coloured shapes only "
        "and wants prompts such as 'a photo of a red circle')",
    )
    add_revision_argument(group)
    group.add_argument("--device", help="cpu, cuda, mps, ... (default: a GPU if there is one, else the CPU)")
    add_dtype_argument(group)
    group.add_argument(
        "--quantize",
        choices=("int8", "int4", "fp8"),
        help="quantize the language model's weights while loading (default: keep them as they are)",
    )
    group.add_argument(
        "--no-parse-special-tokens",
        dest="parse_special_tokens",
        action="store_false",
        help="read special tokens that stand in prompts, questions and messages as text, for texts of others "
        "(default: they become special tokens)",
    )


class _HasArguments(Protocol):
    """Type of an argument parser, or of a group of a parser's arguments."""

    def add_argument(self, *args: Any, **kwargs: Any) -> argparse.Action: ...


def add_dtype_argument(parser: _HasArguments) -> None:
    """Add the argument `--dtype`, the dtype of a model's weights, to a parser or a group of arguments."""
    parser.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16", "float16"),
        default="auto",
        help="dtype of the weights; auto keeps the stored one, but on a GPU without bfloat16 takes float16, and "
        "float32 for the image codec (default: auto)",
    )


def batch_size(text: str) -> "int | Literal['auto']":
    """Return the value of `--batch-size`, a number or "auto". argparse reports a ValueError as a wrong value."""
    return "auto" if text == "auto" else int(text)


def add_revision_argument(parser: _HasArguments, help: str = "branch, tag or commit of the repository") -> None:
    """Add the argument `--revision`, a version of a Hub repository, to a parser or a group of arguments.

    Args:
        parser: The parser or group.
        help: The line of help.
    """
    parser.add_argument("--revision", help=help)


def revision_kwargs(arguments: argparse.Namespace, source: str | None) -> dict[str, str]:
    """Return `{"revision": value}` for `from_pretrained` if `--revision` was given, otherwise an empty dict.

    Args:
        arguments: The parsed arguments.
        source: The folder or repository of which it is a revision; None is the model inside the package.

    Raises:
        ValueError: If the source is no repository, and so has no revisions.
    """
    if not arguments.revision:
        return {}
    if source is None or os.path.isdir(source):
        which = "the model inside the package" if source is None else f"the folder {source!r}"
        raise ValueError(
            f"`--revision` must come together with a repository of the Hub, got it with {which}: leave it out, or "
            "name the repository."
        )
    return {"revision": arguments.revision}


def load_pipeline(arguments: argparse.Namespace) -> "JanusProPipeline":
    """Load the pipeline that the arguments of `add_model_arguments` describe, and return it on its device.

    Without `--model` it is the small model inside the package. Without `--device` the device is `best_device()`.

    Raises:
        ValueError: If the device cannot be used, or `--revision` is given without a repository.
        CheckpointError: If the files of the model do not hold exactly its weights.
    """
    from transformers.utils import logging

    from janus_hf import JanusProPipeline
    from janus_hf.assets import DEFAULT_MODEL, DEFAULT_MODEL_NOTE

    kwargs: dict[str, Any] = dict(revision_kwargs(arguments, arguments.model))
    if arguments.model is None:
        logging.disable_progress_bar()
        print(DEFAULT_MODEL_NOTE, file=sys.stderr)
    device = check_device(arguments.device or best_device())
    dtype = arguments.dtype
    if arguments.model is None and device == "cpu" and dtype == "auto" and arguments.quantize != "int4":
        # float32 is ten times as fast as bfloat16 on processors without bfloat16 instructions and takes 8 MB more.
        # The int4 kernel is the exception: it is much slower in float32.
        dtype = "float32"
    if not arguments.parse_special_tokens:
        kwargs["parse_special_tokens"] = False
    if arguments.quantize:
        kwargs["quantization_config"] = arguments.quantize
    if arguments.quantize or device != "cpu":
        kwargs["device_map"] = device  # the dtype and the kernels are chosen for the device, and its memory is checked
    pipe: JanusProPipeline = JanusProPipeline.from_pretrained(arguments.model or DEFAULT_MODEL, dtype=dtype, **kwargs)
    return pipe.to(device)


def best_device() -> str:
    """Return "cuda" if there is a CUDA GPU, else "mps" if there is an Apple GPU, else "cpu".

    In a process of `accelerate launch` the name includes the index of the GPU of this process, for example "cuda:1".
    """
    import torch

    if torch.cuda.is_available():
        rank = os.environ.get("LOCAL_RANK")  # accelerate launch gives every process a GPU of its own
        return "cuda" if rank is None else f"cuda:{rank}"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def check_device(device: str) -> str:
    """Return `device` unchanged after checking that PyTorch can allocate a tensor on it.

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
