"""Functions that describe the machine of a measurement, read its clock and measure its memory bandwidth."""

import os
import platform
import subprocess
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
import transformers


def describe_machine(device: str, dtype: torch.dtype, *packages: str) -> str:
    """Return hardware, system load, dtype and library versions as one line of text, to print above a table.

    Args:
        device: The device on which the table is measured.
        dtype: The dtype in which it is measured.
        packages: Packages besides torch and transformers whose versions are included if they are installed.
    """
    if device.startswith("cuda"):
        hardware = f"{torch.cuda.get_device_name(device)}, driver {_driver_version()}, CUDA {torch.version.cuda}"
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


def _driver_version() -> str:
    """Return the version of the GPU's driver, or "unknown" if the command `nvidia-smi` does not tell it."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        output = subprocess.run(command, check=True, capture_output=True, text=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return next(iter(output.split()), "unknown")


def _cpuinfo() -> list[str]:
    """Return the lines of /proc/cpuinfo, Linux's description of the CPU, or no lines on other systems."""
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def now(device: str) -> float:
    """Wait until the device has finished its work and return the time in seconds; only differences have a meaning."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter()


def reading_speed(device: str) -> float:
    """Return the memory bandwidth of a device in bytes per second: the fastest of five sums over a large tensor."""
    data = torch.ones(2**28 if not device.startswith("cuda") else 2**30, device=device)
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        data.sum().item()
        best = min(best, time.perf_counter() - start)
    return data.nbytes / best
