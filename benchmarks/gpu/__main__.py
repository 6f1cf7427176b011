"""Measure everything that needs a GPU, in order of importance and within a time budget, and print one table per topic.

    python -m benchmarks.gpu [--budget 480] [--output FOLDER] [--topics parity capture ...] [--dry-run]

The topics, in this order: parity and repeatability, capturing CUDA graphs, drawing with the 1B and the 7B, quantised
weights, the image codec, preparing data, answering questions, training, and where the time of a step goes. Models have
the sizes of the released ones and random weights, which are made on the device; nothing is downloaded.

Every part of a topic runs in a process of its own with a time limit. If a part hangs, runs out of memory or crashes,
only its own rows are lost, and their notes say why. A part may use its share of the budget and all time that earlier
parts have left over. The most important parts of all topics run first. The default budget suffices for these; the
other parts run if time is left, and all of them with a budget of about 900 seconds. Compiled code is shared by the
processes of one run only, so the first part that compiles a step takes longest. FOLDER receives `results.jsonl` (a
line per row, written when it is measured), `tables.md` (all tables, rewritten with every row) and `log.txt` (what the
parts print), so that a run that is cut off leaves everything measured so far.

`--dry-run` takes tiny models on a CPU and prints the same rows, to test the benchmark itself.
"""

import json
import os
import signal
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from ..reporting import make_parser
from .budget import Budget
from .processes import Worker
from .tables import Labels, Part, Row, Topic, render
from .topics import TOPICS


LEAST = 3.0  # seconds; a part that has less time left is not started
GRACE = 2.0  # seconds between the time at which a part should stop by itself and that at which its process is ended
# Number of processes that are started before their parts begin, so that they import meanwhile on cores that are free.
AHEAD = max(1, min(3, (os.cpu_count() or 1) // 4))
IMPORTS = 90.0  # seconds that a process may take to import everything


class Results:
    """The rows measured so far, which are read from the file to which the parts append them, and rendered as tables.

    Args:
        folder: Folder of the files `results.jsonl` and `tables.md`.
        topics: The topics of this run by name.
        heading: First lines of `tables.md`.
    """

    def __init__(self, folder: Path, topics: dict[str, Topic], heading: str) -> None:
        self.lines, self.tables = folder / "results.jsonl", folder / "tables.md"
        self.topics, self.heading = topics, heading
        self.rows: dict[str, dict[Labels, Row]] = {name: {} for name in topics}
        self.machines = dict.fromkeys(topics, "")
        self.failures: dict[tuple[str, str], str] = {}
        self._read = 0
        self.lines.touch()

    def update(self) -> None:
        """Read the lines that were appended since the last call, and rewrite the tables if there are any."""
        with self.lines.open("rb") as file:
            file.seek(self._read)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]  # a line may be half written
        if not whole:
            return
        self._read += len(whole)
        for line in whole.splitlines():
            self._add(json.loads(line))
        self.save()

    def _add(self, record: dict[str, Any]) -> None:
        """Store one record of the file: a row, the failure of a part, or the description of the machine."""
        topic = record["topic"]
        if "machine" in record:
            self.machines[topic] = self.machines[topic] or record["machine"]
        elif "failed" in record:
            self.failures[topic, record["part"]] = record["failed"]
        else:
            labels = tuple(record["row"])
            self.rows[topic][labels] = Row(labels, record["values"], record["note"])

    def fill(self, topic: str, part: Part, reason: str) -> None:
        """Write an empty row with a note for every promised row of a part that was not measured.

        Args:
            topic: Name of the topic.
            part: The part, which has ended.
            reason: Why the part did not finish, for the note; "" if it did.
        """
        self.update()
        notes = [row.note for labels, row in self.rows[topic].items() if labels in part.rows and row.note]
        reason = next(filter(None, [self.failures.get((topic, part.name)), reason, *notes]), "not measured")
        with self.lines.open("a", encoding="utf-8") as file:
            for labels in part.rows:
                if labels not in self.rows[topic]:
                    record = {"topic": topic, "part": part.name, "row": labels, "values": {}, "note": reason}
                    file.write(json.dumps(record) + "\n")
        self.update()

    def render(self, topic: str, parts: Sequence[Part] | None = None) -> str:
        """Return the Markdown section of a topic, with the rows of all parts or only of some."""
        return render(self.topics[topic], self.rows[topic], self.machines[topic], parts)

    def save(self) -> None:
        """Write all tables to the file of tables."""
        text = "\n\n".join([self.heading, *(self.render(name) for name in self.topics)]) + "\n"
        new = self.tables.with_suffix(".new")
        new.write_text(text, encoding="utf-8")
        new.replace(self.tables)

    def count(self) -> tuple[int, int]:
        """Return the number of rows without a note, and the number of all promised rows."""
        rows = [row for found in self.rows.values() for row in found.values()]
        return sum(not row.note for row in rows), sum(len(part.rows) for t in self.topics.values() for part in t.parts)


Queue = list[tuple[str, Part]]
"""Parts in the order in which they run, with the names of their topics."""


def make_queue(topics: dict[str, Topic]) -> Queue:
    """Return the parts of all topics in the order in which they run: those with `later=True` come last."""
    parts = [(name, part) for name, topic in topics.items() for part in topic.parts]
    return sorted(parts, key=lambda entry: entry[1].later)


def run(
    queue: Queue,
    budget: Budget,
    results: Results,
    folder: Path,
    settings: dict[str, Any],
    module: str = "benchmarks.gpu.worker",
) -> None:
    """Run all parts, each in a process of its own, and print a topic's table when the last of its parts has ended.

    The parts of a topic that run later get a table of their own.

    Args:
        queue: The parts in the order in which they run.
        budget: The time budget, with one share per part.
        results: The results.
        folder: Folder of the log.
        settings: Entries `device` and `dry` of every task, as `worker.py` reads it.
        module: Module that the processes of the parts run.
    """
    with tempfile.TemporaryDirectory() as scratch, _worker_starter(module, folder / "log.txt", Path(scratch)) as start:
        waiting: deque[Worker] = deque()
        cache = Path(scratch) / "compiled"
        for index, (name, part) in enumerate(queue):
            worker = waiting.popleft() if waiting else start()
            reason = worker.wait_ready(max(LEAST, min(IMPORTS, budget.left())))
            limit = budget.limit(index)
            # A part is not started with less than a quarter of the seconds that it wants.
            if not reason and limit < max(LEAST, part.seconds / 4):
                reason = "no time left"
                waiting.appendleft(worker)
            elif not reason:
                waiting.extend(start() for _ in range(min(AHEAD, len(queue) - index - 1) - len(waiting)))
                settings |= {"cache": str(cache), "describe": not results.machines[name]}
                task = {"topic": name, "part": part.name, "results": str(results.lines), "seconds": limit - GRACE}
                reason = worker.run(task | settings, limit, results.update)
                if reason:
                    # The process may have been ended while it wrote compiled code, so later parts use a new folder.
                    cache = Path(scratch) / f"compiled{index}"
            results.fill(name, part, reason)
            print(f"{name}, {part.name}: {reason or 'done'}; {budget.left():.0f} s left", file=sys.stderr, flush=True)
            following = queue[index + 1] if index + 1 < len(queue) else None
            if following is None or following[0] != name or following[1].later != part.later:
                same = [other for topic, other in queue if topic == name and other.later == part.later]
                print(f"\n{results.render(name, same)}\n", flush=True)


@contextmanager
def _worker_starter(module: str, log: Path, scratch: Path) -> Iterator[Callable[[], Worker]]:
    """Yield a function that starts a worker, and end all workers that it has started when the context is left.

    Args:
        module: Module that the workers run.
        log: File to which they print.
        scratch: Folder for the files with which they report that they are ready.
    """
    started: list[Worker] = []

    def start() -> Worker:
        started.append(Worker(module, log, scratch / str(len(started))))
        return started[-1]

    try:
        yield start
    finally:
        for worker in started:
            worker.end()


def _stop(number: int, frame: FrameType | None) -> None:
    """Raise SystemExit when the program receives a signal, so that it ends its processes and saves the tables."""
    raise SystemExit(128 + number)


def main() -> None:
    """Run the topics that the command line names, by default all of them."""
    parser = make_parser(__doc__)
    parser.add_argument("--budget", type=float, default=480, help="seconds of the whole run (default: 480)")
    parser.add_argument("--output", type=Path, help="new or empty folder for results, tables and log")
    parser.add_argument("--topics", nargs="+", choices=tuple(TOPICS), default=list(TOPICS), metavar="TOPIC",
                        help=f"any of {', '.join(TOPICS)}")  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="tiny models, to test the benchmark itself")
    parser.add_argument("--device", choices=("cuda", "cpu"), help="default: cuda, or cpu in a dry run")
    arguments = parser.parse_args()
    device = arguments.device or ("cpu" if arguments.dry_run else "cuda")
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            parser.error("the device must be a CUDA GPU, got none: try --dry-run on a CPU")
    elif not arguments.dry_run:
        parser.error("the device must be a CUDA GPU without --dry-run, got cpu: models of full size take hours there")
    folder = arguments.output or Path(tempfile.mkdtemp(prefix="janus-hf-gpu-"))
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        parser.error(f"--output must be a new or empty folder, got {folder} with files in it")

    signal.signal(signal.SIGTERM, _stop)
    topics = {name: topic for name, topic in TOPICS.items() if name in arguments.topics}
    queue = make_queue(topics)
    first = sum(not part.later for _, part in queue)
    budget = Budget(arguments.budget, [part.seconds for _, part in queue], first)
    heading = f"# Measured on {'a GPU' if device == 'cuda' else 'a CPU'}, budget {arguments.budget:.0f} s"
    if arguments.dry_run:
        heading += "\n\nDry run: the models are tiny, so the numbers say nothing about a GPU."
    results = Results(folder, topics, heading)
    print(heading, flush=True)
    try:
        run(queue, budget, results, folder, {"device": device, "dry": arguments.dry_run})
    finally:
        results.update()
        results.save()
        measured, promised = results.count()
        print(f"{measured} of {promised} rows without a note; all files are in {folder}", flush=True)


if __name__ == "__main__":
    main()
