"""Functions that count and time the kernels that a call runs, with torch's profiler."""

from collections import defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from .reporting import NotAvailable


class Kernels(NamedTuple):
    """Kernels of a GPU, or operators of a CPU, that ran.

    Attributes:
        launches: Name -> how many times it ran.
        seconds: Name -> seconds that all these runs took together.
    """

    launches: dict[str, float]
    seconds: dict[str, float]

    def minus(self, other: "Kernels", parts: int) -> "Kernels":
        """Return the difference to another count, divided by `parts`, without names that did not run more often."""
        names = [name for name, count in self.launches.items() if count > other.launches.get(name, 0)]
        return Kernels(
            {name: (self.launches[name] - other.launches.get(name, 0)) / parts for name in names},
            {name: (self.seconds[name] - other.seconds.get(name, 0)) / parts for name in names},
        )


def count_kernels(function: Callable[[], Any], device: str) -> Kernels:
    """Call a function and return the kernels that it ran: of a GPU, or, on a CPU, the operators with their own time.

    Copies and memory fills of a GPU count too.

    Raises:
        NotAvailable: If the profiler does not see the GPU's kernels, because the machine does not allow it.
    """
    cuda = device.startswith("cuda")
    activity = ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU
    with profile(activities=[activity]) as profiler:
        function()
        if cuda:
            torch.cuda.synchronize()
    launches: dict[str, float] = defaultdict(float)
    seconds: dict[str, float] = defaultdict(float)
    for event in profiler.events():
        if cuda and event.device_type == DeviceType.CUDA and not getattr(event, "is_user_annotation", False):
            launches[event.name] += 1
            seconds[event.name] += event.time_range.elapsed_us() / 1e6
        elif not cuda and event.name.startswith("aten::"):
            launches[event.name] += 1
            seconds[event.name] += event.self_cpu_time_total / 1e6
    if not launches:
        raise NotAvailable("the profiler sees no kernels here")
    return Kernels(dict(launches), dict(seconds))


def kernels_per_step(run: Callable[[int], Any], device: str, steps: int = 4) -> Kernels:
    """Return the kernels of one step of a generation: the difference of a longer and a shorter one, per step.

    Args:
        run: Function that generates a number of tokens; it must have run before, so that nothing is compiled now.
        device: Device on which it runs.
        steps: Number of steps by which the longer generation is longer.
    """
    short = count_kernels(lambda: run(4), device)
    return count_kernels(lambda: run(4 + steps), device).minus(short, steps)


__all__ = ["Kernels", "count_kernels", "kernels_per_step"]
