"""Context managers that measure the peak memory of a block of code, as the operating system or CUDA counts it."""

import threading
from pathlib import Path

import torch


class PeakMemory:
    """Context manager that measures this process's peak memory by sampling its resident set every 5 ms.

    Attribute `peak` is the list [anonymous, file] of peaks in bytes above the values at entry: memory pages that the
    process owns, and pages of files that it has mapped.
    """

    def __enter__(self) -> "PeakMemory":
        self.start = self._read()
        self.peak = [0, 0]
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.thread.join()
        self._sample()

    def _watch(self) -> None:
        while not self.done.wait(0.005):
            self._sample()

    def _sample(self) -> None:
        now = self._read()
        self.peak = [max(peak, value - start) for peak, value, start in zip(self.peak, now, self.start, strict=True)]

    @staticmethod
    def _read() -> list[int]:
        status = Path("/proc/self/status").read_text().splitlines()
        fields = {line.split(":")[0]: line.split()[1] for line in status if line.startswith("Rss")}
        return [int(fields["RssAnon"]) * 1024, int(fields["RssFile"]) * 1024]


class PeakDeviceMemory:
    """Context manager that measures the peak memory of a device.

    Attribute `bytes`, which is set on exit, is the peak above the value at entry: of CUDA's allocator if the device is
    a GPU, else of the memory pages that this process owns.
    """

    def __init__(self, device: str) -> None:
        self.cuda = device.startswith("cuda")

    def __enter__(self) -> "PeakDeviceMemory":
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()
        else:
            self.process = PeakMemory().__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        if self.cuda:
            self.bytes = torch.cuda.max_memory_allocated() - self.before
        else:
            self.process.__exit__()
            self.bytes = self.process.peak[0]
