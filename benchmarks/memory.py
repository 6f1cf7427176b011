"""Peak memory of a stretch of code, as the system counts it."""

import threading
from pathlib import Path


class PeakMemory:
    """Samples this process's resident set every 5 ms; `peak` is [anonymous, file] bytes above the state at entry."""

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
