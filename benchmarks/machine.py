"""Describe the machine that a table was measured on, read its clock and measure its memory bandwidth."""

import os
import platform
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
import transformers


def describe_machine(device: str, dtype: torch.dtype, *packages: str) -> str:
    """Return hardware, load, dtype and versions as one line for the head of a table.

    Args:
        device: The device that is measured.
        dtype: The dtype that is measured.
        packages: Further packages whose versions are named if they are installed.
    """
    if device.startswith("cuda"):
        hardware = torch.cuda.get_device_name(device)
    else:
        names = [line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")]
        capability = torch.backends.cpu.get_cpu_capability()
        hardware = f"{names[0] if names else platform.processor()} ({capability}), {torch.get_num_threads()} threads"
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    versions = [f"torch {torch.__version__}", f"transformers {transformers.__version__}"]
    for package in packages:
        try:
            versions.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return f"{hardware}{load}; {str(dtype).removeprefix('torch.')}; {', '.join(versions)}"


def _cpuinfo() -> list[str]:
    """Return the lines of Linux's description of the CPU; on other systems none."""
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def now(device: str) -> float:
    """Return the time in seconds once the device has finished its work; only differences have a meaning."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter()


def reading_speed(device: str) -> float:
    """Return the memory bandwidth of reading a large tensor once, in bytes per second, best of five."""
    data = torch.ones(2**28 if not device.startswith("cuda") else 2**30, device=device)
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        data.sum().item()
        best = min(best, time.perf_counter() - start)
    return data.nbytes / best
