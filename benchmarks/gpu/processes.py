"""The class `Worker`, a process that runs one part of `benchmarks.gpu` and can be ended at its time limit."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any


ROOT = Path(__file__).parents[2]
_POLL = 0.1  # seconds between two checks of a process


class Worker:
    """A process that imports everything that a part needs, and then waits for the task to run one part.

    It leads a process group of its own, so that `end` also ends the compilers that it has started.

    Args:
        module: Module that the process runs: `benchmarks.gpu.worker`, or one that calls its `main`.
        log: File to which the standard output and error of the process are appended.
        ready: Path of the file that the process creates once it has imported everything.
    """

    def __init__(self, module: str, log: Path, ready: Path) -> None:
        self.log, self.ready = log, ready
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1"}
        environment.setdefault("CUDA_VISIBLE_DEVICES", "0")  # with several GPUs the trainer would use them all
        with log.open("ab") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", module, str(ready)],
                stdin=subprocess.PIPE,
                stdout=file,
                stderr=file,
                cwd=ROOT,
                env=environment,
                start_new_session=True,
            )

    def wait_ready(self, seconds: float) -> str:
        """Wait until the process has imported everything.

        Args:
            seconds: Seconds to wait at most.

        Returns:
            "" if it has, otherwise why the process cannot run a part.
        """
        end = time.monotonic() + seconds
        while not self.ready.exists():
            if self.process.poll() is not None:
                return f"failed: the process ended while importing: {self._last_line(0)}"
            if time.monotonic() > end:
                return f"cut off while importing, after {seconds:.0f} s"
            time.sleep(_POLL)
        return ""

    def run(self, task: dict[str, Any], seconds: float, watch: Callable[[], None]) -> str:
        """Make the process do a task, and end it at the time limit.

        Args:
            task: The task, as `worker.py` reads it.
            seconds: Time limit of the task in seconds.
            watch: Function that is called several times a second while the process runs.

        Returns:
            "" if the task was finished, otherwise why it was not.
        """
        end, start = time.monotonic() + seconds, self.log.stat().st_size
        pipe = self.process.stdin
        assert pipe is not None
        try:
            pipe.write(json.dumps(task).encode() + b"\n")
            pipe.flush()
        except BrokenPipeError:
            return f"failed: the process ended before its task: {self._last_line(0)}"
        while self.process.poll() is None:
            if time.monotonic() > end:
                self.end()
                return f"cut off after {seconds:.0f} s"
            watch()
            time.sleep(_POLL)
        status = self.process.returncode
        self.end()  # processes that it has started may still run
        if status < 0:
            return f"failed: ended by {signal.Signals(-status).name}: {self._last_line(start)}"
        return "" if status == 0 else "failed: the part ended early"

    def _last_line(self, start: int) -> str:
        """Return the last line that was logged after the first `start` bytes, shortened to fit into a cell."""
        with self.log.open("rb") as file:
            file.seek(start)
            lines = file.read().decode(errors="replace").split("\n")
        return next((line.strip()[:160] for line in reversed(lines) if line.strip()), "no message")

    def end(self) -> None:
        """End the process and all processes that it has started."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        if self.process.stdin is not None:
            with suppress(BrokenPipeError):
                self.process.stdin.close()


__all__ = ["ROOT", "Worker"]
