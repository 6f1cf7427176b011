"""Functions that describe this environment for a bug report, which `janus-hf info --environment` prints."""

import os
import re
import sys
from importlib import metadata
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    import torch


# Optional packages that no extra of janus_hf installs: attention kernels, torch.compile's GPU back end, and frameworks
# that evaluate models.
OTHER_PACKAGES = ("flash-attn", "triton", "lmms-eval", "ms-vlmeval")


def describe_environment() -> str:
    """Return the versions, devices and kernels of this environment as a Markdown list with one fact per line.

    The text has no paths, host names or user names. Nothing is compiled or downloaded.
    """
    import platform

    import torch

    facts = {
        "janus_hf": metadata.version("janus_hf"),
        "Python": platform.python_version(),
        **{name: _version(name) for name in [*_dependencies(), *OTHER_PACKAGES]},
        "operating system": platform.platform(),
        "CPU": _describe_cpu(),
        "GPU": _describe_gpus(),
        "CUDA": _describe_cuda(),
        "attention kernels": _describe_attention(),
        "x86 kernels": _describe_x86_kernels(),
        "torch.compile": _why_not_compilable(torch.device("cuda" if torch.cuda.is_available() else "cpu")) or "yes",
    }
    return "\n".join(f"- {name}: {fact}" for name, fact in facts.items())


def _dependencies() -> list[str]:
    """Return the names of the packages that janus_hf and its extras (except `dev`) require, torch first."""
    names = {
        re.split(r"[^\w.-]", requirement, maxsplit=1)[0]: None  # a dict keeps the order and drops repetitions
        for requirement in metadata.requires("janus_hf") or []
        if not re.search(r"extra\s*==\s*['\"]dev['\"]", requirement)
    }
    return list(names)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _describe_cpu() -> str:
    """Return, in one line of text, the CPU's architecture, instruction set, cores, threads and memory.

    The instruction set is the one that PyTorch uses on this CPU.
    """
    import platform

    import torch

    try:
        memory = _gib(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf, other systems may lack the names
        memory = "unknown memory"
    instructions = torch.backends.cpu.get_cpu_capability()
    return f"{platform.machine()}, {instructions}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, {memory}"


def _describe_gpus() -> str:
    """Return, in one line of text, the name, memory and compute capability of every GPU; "none" without a GPU."""
    import torch

    if torch.cuda.is_available():
        found = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
        return "; ".join(f"{gpu.name}, {_gib(gpu.total_memory)}, capability {gpu.major}.{gpu.minor}" for gpu in found)
    if torch.backends.mps.is_available():
        return f"Apple (mps), {_gib(torch.mps.recommended_max_memory())}"
    return "none"


def _describe_cuda() -> str:
    """Return, in one line of text, the versions of CUDA and cuDNN, or of ROCm, that PyTorch was built with."""
    import torch

    if torch.version.hip:
        return f"ROCm {torch.version.hip}"
    if not torch.version.cuda:
        return "not in this build of torch"
    return f"{torch.version.cuda}, cuDNN {torch.backends.cudnn.version() or 'not found'}"


def _describe_attention() -> str:
    """Return, in one line of text, which values of transformers' `attn_implementation` can be used here.

    For "sdpa" the text lists the kernels that PyTorch may choose from.
    """
    import torch
    from transformers.utils import is_flash_attn_2_available, is_torch_flex_attn_available

    switches = {
        "flash": torch.backends.cuda.flash_sdp_enabled(),
        "memory-efficient": torch.backends.cuda.mem_efficient_sdp_enabled(),
        "cuDNN": torch.backends.cuda.cudnn_sdp_enabled(),
    }
    enabled = [name for name, is_on in switches.items() if is_on and torch.cuda.is_available()]
    return ", ".join(
        [
            f"sdpa ({', '.join([*enabled, 'math'])})",
            f"flash_attention_2 ({'yes' if is_flash_attn_2_available() else 'no'})",
            f"flex_attention ({'yes' if is_torch_flex_attn_available() else 'no'})",
        ]
    )


def _describe_x86_kernels() -> str:
    """Return, in one line of text, whether janus_hf's C++ kernels suit the processor and whether they can be built."""
    import torch

    from janus_hf.generation.kernels.x86 import kernels_fit

    fit = "fit this processor" if kernels_fit(torch.device("cpu")) else "need a processor with AVX2 or AVX-512"
    reason = _why_no_cpp()
    return f"{fit}; {f'cannot be built: {reason}' if reason else 'can be built'}"


def _why_not_compilable(device: "torch.device") -> str | None:
    """Return the reason why `torch.compile` would fail on `device`, as "no: ...", or None if it should work.

    Nothing is compiled. `torch.compile` checks the platform when it is called, and compiles only when the function
    that it returns is called. The compilers that its back ends need are only searched for.
    """
    import torch

    try:
        torch.compile(_identity)
    except RuntimeError as error:
        return f"no: {str(error).splitlines()[0]}"
    if device.type == "cuda":
        if _version("triton") == "not installed" and _version("pytorch-triton-rocm") == "not installed":
            return "no: triton is not installed"
        if torch.cuda.get_device_capability(device) < (7, 0):
            return "no: triton needs a GPU of capability 7.0 or higher"
    reason = _why_no_cpp()
    return f"no: {reason}" if reason else None


def _identity(value: "torch.Tensor") -> "torch.Tensor":
    return value


def _why_no_cpp() -> str | None:
    """Return what is missing here to compile C++ extensions for PyTorch, or None if nothing is missing."""
    import shutil
    import sysconfig

    # PyTorch's inductor looks for these names, unless the environment variable CXX names another compiler.
    compiler = os.environ.get("CXX") or {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")
    if shutil.which(compiler) is None:
        return f"the C++ compiler {os.path.basename(compiler)} is not installed"
    if not os.path.isfile(os.path.join(sysconfig.get_path("include"), "Python.h")):
        return "Python's C headers are not installed"
    return None


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.1f} GiB"


__all__ = ["OTHER_PACKAGES", "describe_environment"]
