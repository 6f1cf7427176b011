"""The process in which one part of `benchmarks.gpu` runs: it imports everything, waits for its task, and does it.

`benchmarks.gpu` starts the processes of the next parts while a part is running, so that no part waits for imports.
`python -m benchmarks.gpu.worker FILE` creates FILE once everything is imported, and then reads the task, a line of
JSON, from its standard input. It ends when its standard input is closed, so that it does not outlive `benchmarks.gpu`.
"""

import json
import os
import sys
import threading
import traceback
from pathlib import Path

from ..machine import describe_machine
from .bench import Bench, describe
from .topics import TOPICS


def _end_with_parent() -> None:
    """Wait until the standard input is closed, which happens when `benchmarks.gpu` ends, and then end this process."""
    sys.stdin.read()
    os._exit(1)


def main() -> None:
    """Do the task that comes on the standard input, and write its rows to the file of results."""
    Path(sys.argv[1]).touch()
    line = sys.stdin.readline()
    if not line:
        return
    threading.Thread(target=_end_with_parent, daemon=True).start()
    task = json.loads(line)
    # torch.compile reads these variables when it compiles. Only the processes of one run share compiled code.
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = task["cache"]
    os.environ["TRITON_CACHE_DIR"] = f"{task['cache']}/triton"
    bench = Bench(task["device"], task["dry"], task["seconds"], Path(task["results"]), task["topic"], task["part"])
    (part,) = [part for part in TOPICS[task["topic"]].parts if part.name == task["part"]]
    status = 0
    try:
        packages = ("torchao",) if task["topic"] == "quantised" else ()
        packages = ("trl", "peft") if task["topic"] == "training" else packages
        if task["describe"]:
            bench.emit(machine=describe_machine(bench.device, bench.dtype, *packages))
        part.run(bench)
    except BaseException as error:
        bench.emit(failed=describe(error))
        traceback.print_exc()
        status = 1
    # Compilers and data loaders leave threads and processes behind that can delay or hang a normal exit.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    main()
