"""Functions that return the devices of a `device_map`, the dtypes in which a device computes, and its free memory."""

from collections.abc import Mapping
from pathlib import Path

import torch


# Values of the argument `device_map` of `from_pretrained`.
DeviceMap = str | int | torch.device | Mapping[str, str | int | torch.device] | None

# Values of `device_map` that name a strategy for distributing modules instead of a device.
STRATEGIES = ("auto", "balanced", "balanced_low_0", "sequential")


def devices_of(device_map: DeviceMap) -> list[torch.device]:
    """Return the devices that a `device_map` puts modules on, without repetitions.

    A strategy such as "auto" stands for all devices of the accelerator, or for the CPU if there is none. None stands
    for torch's default device, and an integer for the accelerator of this index. Modules that are offloaded to the
    disk add no device.
    """
    values = device_map.values() if isinstance(device_map, Mapping) else [device_map]
    devices: list[torch.device] = []
    for value in values:
        if value is None:
            devices.append(torch.get_default_device())
        elif value in STRATEGIES:
            kind = torch.accelerator.current_accelerator(check_available=True)
            count = 0 if kind is None else torch.accelerator.device_count()
            devices += [torch.device("cpu")] if kind is None else [torch.device(kind.type, i) for i in range(count)]
        elif isinstance(value, int):
            kind = torch.accelerator.current_accelerator()
            devices.append(torch.device("cuda" if kind is None else kind.type, value))
        elif value != "disk":
            devices.append(torch.device(value))
    return list(dict.fromkeys(devices))


def has_bfloat16(device: torch.device) -> bool:
    """Return whether a device has instructions for bfloat16; NVIDIA's GPUs before Ampere (T4, V100, RTX 20) have none.

    On these GPUs PyTorch computes in bfloat16 by conversions to float32, which is slow. For CPUs and for GPUs of other
    makers the result is always True, because their support is not checked.
    """
    if device.type != "cuda" or torch.version.hip is not None or not torch.cuda.is_available():
        return True
    return torch.cuda.get_device_capability(device) >= (8, 0)


def has_float8(device: torch.device) -> bool:
    """Return whether a device has instructions for float8; NVIDIA's GPUs before Ada (A100, RTX 30) have none.

    For all other devices the result is True: their support is not looked up.
    """
    if device.type != "cuda" or torch.version.hip is not None or not torch.cuda.is_available():
        return True
    return torch.cuda.get_device_capability(device) >= (8, 9)


def free_memory(device: torch.device) -> int | None:
    """Return the number of bytes that can be allocated on a device now, or None if it is unknown.

    Memory that PyTorch has reserved and does not use counts as free.
    """
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    if device.type == "xpu":
        unused = torch.xpu.memory_reserved(device) - torch.xpu.memory_allocated(device)
        return torch.xpu.mem_get_info(device)[0] + unused
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    return _free_host_memory() if device.type == "cpu" else None


def _free_host_memory() -> int | None:
    """Return the number of bytes of memory that are free on this machine, or None if the system is not Linux.

    In a container the result is at most what the container's own limit (cgroup v2) leaves free.
    """
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            free = next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return None
    try:
        folder = Path("/sys/fs/cgroup")
        free = min(free, int((folder / "memory.max").read_text()) - int((folder / "memory.current").read_text()))
    except (OSError, ValueError):  # no such file, or the word "max", which is no limit
        pass
    return max(free, 0)


__all__ = ["STRATEGIES", "DeviceMap", "devices_of", "free_memory", "has_bfloat16", "has_float8"]
