"""Parts of `benchmarks.gpu` that hang, crash or fail, and the process that runs them, for tests of the command."""

import os
import signal
import sys
import time
import types

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.tables import Column, Part, Topic


def fine(bench: Bench) -> None:
    with bench.row("fine") as row:
        row["seconds"] = 1.5


def hang(bench: Bench) -> None:
    with bench.row("before the hang") as row:
        row["seconds"] = 2.5
    time.sleep(600)


def crash(bench: Bench) -> None:
    sys.stderr.write("about to crash\n")
    os.kill(os.getpid(), signal.SIGSEGV)


def fail(bench: Bench) -> None:
    with bench.row("fails"):
        raise MemoryError("no memory\nand a second line")
    with bench.row("after the failure") as row:
        row["seconds"] = 3.5
    raise RuntimeError("the part fails | outside of a row")


TOPIC = Topic(
    title="Faults",
    explanation="",
    labels=("what",),
    columns=(Column("seconds", "seconds", ".1f"),),
    parts=(
        Part("fine", 20, (("fine",),), fine),
        Part("hang", 4, (("before the hang",), ("after the hang",)), hang),
        Part("crash", 20, (("crashes",),), crash),
        Part("fail", 20, (("fails",), ("after the failure",), ("never reached",)), fail),
    ),
)

if __name__ == "__main__":
    # In place of the real topics, whose imports take seconds.
    module = types.ModuleType("benchmarks.gpu.topics")
    module.TOPICS = {"faults": TOPIC}  # type: ignore[attr-defined]
    sys.modules[module.__name__] = module
    from benchmarks.gpu.worker import main

    main()
