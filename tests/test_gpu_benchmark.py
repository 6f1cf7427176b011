"""`python -m benchmarks.gpu`: time limits, failures as rows, and complete tables in a dry run on the CPU."""

import json
import logging
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.contenders import with_gear
from benchmarks.gpu import __main__ as command
from benchmarks.gpu.bench import Bench
from benchmarks.gpu.budget import Budget
from benchmarks.gpu.tables import Column, Part, Row, Topic, render
from benchmarks.gpu.topics import TOPICS, capture, drawing, parity, profile, quantised

import faulty_gpu_parts


ROOT = Path(__file__).parents[1]


def rows_of(text: str) -> dict[tuple[str, ...], dict[str, str]]:
    """Return the cells of all tables of a text by heading: (title of the table, first cells of the row) -> cells."""
    found: dict[tuple[str, ...], dict[str, str]] = {}
    title, headings = "", []
    for line in text.splitlines():
        if line.startswith("## "):
            title, headings = line[3:], []
        elif line.startswith("| "):
            cells = [cell.strip() for cell in line.strip("|").split(" | ")]
            if not headings:
                headings = cells
            elif set(cells[0]) != {"-"}:
                labels = next(topic.labels for topic in topics_with_faults() if topic.title == title)
                found[title, *cells[: len(labels)]] = dict(zip(headings, cells, strict=True))
    return found


def topics_with_faults() -> list[Topic]:
    return [*TOPICS.values(), faulty_gpu_parts.TOPIC]


def promised(*names: str) -> set[tuple[str, ...]]:
    """Return the labels of every row that the topics promise, with the titles of their tables."""
    topics = [TOPICS[name] for name in names]
    return {(topic.title, *labels) for topic in topics for part in topic.parts for labels in part.rows}


@pytest.mark.parametrize(
    ("seconds", "now", "part", "expected"),
    [
        (90, 0, 0, 30),  # the budget is what all parts want: every part has its share
        (180, 0, 0, 60),  # twice the time, twice the shares
        (90, 10, 1, 50),  # 20 seconds that the first part has left over
        (90, 60, 2, 30),
        (60, 0, 0, 30),  # the two first parts have what they want, the last has nothing
        (60, 60, 2, 0),
        (60, 20, 2, 40),
        (30, 0, 0, 15),  # too short even for the first parts
        (75, 0, 2, 75),
        (75, 0, 1, 60),  # the last part has the 15 seconds that the first two do not want
        (60, 70, 2, -10),
    ],
)
def test_a_part_has_its_share_and_what_is_left_over(seconds: float, now: float, part: int, expected: float):
    times = iter([0.0, now])
    budget = Budget(seconds, [30, 30, 30], 2, clock=lambda: next(times))
    assert budget.limit(part) == pytest.approx(expected)


def test_a_budget_needs_time():
    with pytest.raises(ValueError, match=r"`seconds` must be positive, got 0: give"):
        Budget(0, [1], 1)


def test_a_table_has_every_promised_row():
    def add_ratio(rows: Sequence[Row]) -> None:
        for row in rows:
            row.values |= {"ratio": 2} if row.values else {}

    topic = Topic(
        "Title",
        "Words.",
        ("name",),
        (Column("ms", "ms", ".2f"), Column("ratio", "a / this", ".1f"), Column("kernel", "kernel")),
        (Part("one", 1, (("a",), ("b",)), lambda bench: None), Part("two", 1, (("c",),), lambda bench: None)),
        derive=add_ratio,
    )
    rows = {("c",): Row(("c",), {"ms": 1.234, "kernel": "x|y"}), ("a",): Row(("a",), note="needs CUDA")}
    assert render(topic, rows, "A machine").splitlines() == [
        "## Title",
        "",
        "Words.",
        "",
        "A machine",
        "",
        "| name | ms | a / this | kernel | note |",
        "| --- | ---: | ---: | --- | --- |",
        "| a |  |  |  | needs CUDA |",
        "| b |  |  |  | not measured |",
        "| c | 1.23 | 2.0 | x/y |  |",
    ]


@pytest.mark.parametrize("name", TOPICS)
def test_labels_name_one_row(name: str):
    topic = TOPICS[name]
    labels = [row for part in topic.parts for row in part.rows]
    assert len(set(labels)) == len(labels)
    assert {len(row) for row in labels} == {len(topic.labels)}
    assert len({part.name for part in topic.parts}) == len(topic.parts)


def test_the_most_important_parts_fit_into_the_default_budget():
    """Nearly: their limits are generous, and a part may use what others have left over."""
    queue = command.make_queue(dict(TOPICS))
    assert [part.later for _, part in queue] == sorted(part.later for _, part in queue)
    assert {name for name, part in queue if not part.later} == set(TOPICS)
    first = [name for name, part in queue if not part.later]
    assert list(dict.fromkeys(first)) == list(TOPICS)
    assert sum(part.seconds for _, part in queue if not part.later) < 1.2 * 480


@pytest.mark.slow
def test_faults_cost_only_their_own_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Parts hang, crash and fail in processes of their own; the file of results has all rows of all parts."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    monkeypatch.setattr(command, "AHEAD", 2)
    (tmp_path / "scratch").mkdir()
    topics = {"faults": faulty_gpu_parts.TOPIC}
    queue = command.make_queue(topics)
    results = command.Results(tmp_path, topics, "# Faults")
    wanted = [part.seconds for _, part in queue]
    budget = Budget(sum(wanted), wanted, len(queue))
    settings = {"device": "cpu", "dry": True}
    command.run(queue, budget, results, tmp_path, settings, "tests.faulty_gpu_parts")
    found = rows_of((tmp_path / "tables.md").read_text(encoding="utf-8"))
    cells = {labels[1]: (row["seconds"], row["note"]) for labels, row in found.items()}
    assert cells["fine"] == ("1.5", "")
    assert cells["before the hang"] == ("2.5", "")
    assert cells["after the hang"][1].startswith("cut off after ")
    assert cells["crashes"][1] == "failed: ended by SIGSEGV: about to crash"
    assert cells["fails"][1] == "failed: MemoryError: no memory"
    assert cells["after the failure"] == ("3.5", "")
    assert cells["never reached"][1] == "failed: RuntimeError: the part fails / outside of a row"
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text(encoding="utf-8").splitlines()]
    assert sum("row" in line for line in lines) == 7
    assert results.count() == (3, 7)
    assert not commands_with("faulty_gpu_parts", str(tmp_path))


def in_this_process(tmp_path: Path, topic: str, part: str, run: Callable[[Bench], None]) -> dict[tuple[str, ...], Row]:
    """Run a part in this process and return its rows."""
    results = command.Results(tmp_path, {topic: TOPICS[topic]}, "")
    run(Bench("cpu", True, 100, results.lines, topic, part))
    results.update()
    return results.rows[topic]


@pytest.mark.parametrize(
    ("topic", "module", "run"),
    [
        ("parity", parity, lambda bench: parity.repeat(bench, "graph")),
        ("parity", parity, lambda bench: parity.batches(bench, torch.float32, "graph")),
        ("capture", capture, lambda bench: capture.capture(bench, "7b")),
        pytest.param("drawing", drawing, lambda bench: drawing.fast(bench, "1b", "graph"), marks=pytest.mark.slow),
        ("drawing", drawing, lambda bench: drawing.many(bench, "7b", "graph", (8, 16))),
        pytest.param(
            "quantised",
            quantised,
            lambda bench: quantised.measure(bench, "int8", "graph"),
            marks=pytest.mark.slow,  # the fast tests run without torchao
        ),
        pytest.param(
            "quantised",
            quantised,
            lambda bench: quantised.measure(bench, "fp8", f"graph{quantised.TORCHAOS}"),
            marks=pytest.mark.slow,
        ),
        pytest.param("profile", profile, lambda bench: profile.measure(bench, "graph"), marks=pytest.mark.slow),
        pytest.param("profile", profile, lambda bench: profile.measure(bench, "int8 graph"), marks=pytest.mark.slow),
    ],
    ids=["repeat", "batches", "capture", "one image", "many", "int8", "fp8", "profile", "profile of int8"],
)
def test_rows_of_captured_steps_are_complete(
    topic: str, module: Any, run: Callable[[Bench], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Plain steps stand in for captured ones, which need CUDA: every row of the part gets all its values."""
    monkeypatch.setattr(module, "with_gear", lambda model, gear: with_gear(model, gear.replace("graph", "plain")))
    rows = in_this_process(tmp_path, topic, "a part", run)
    assert rows
    assert not [row for row in rows.values() if row.note or not row.values]


def test_a_row_says_when_it_measured_plain_steps(tmp_path: Path):
    def run(bench: Bench) -> None:
        logger = logging.getLogger("janus_hf.generation.decoders.captured")
        with bench.row("prepare", "4") as row:
            row["rate"] = 1.0
            logger.warning("Generation runs plain steps instead of captured ones: hooks.")
            logger.warning("Another warning about plain steps.")
        with bench.row("prepare", "16") as row:
            row["rate"] = 1.0
            logger.warning("Compiled in 3 s.")

    rows = in_this_process(tmp_path, "prepare", "a part", run)
    assert rows["prepare", "4"].note == "Generation runs plain steps instead of captured ones: hooks."
    assert rows["prepare", "16"].note == ""


@pytest.mark.slow
def test_a_run_that_is_terminated_leaves_its_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "scratch").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "scratch"))
    folder = tmp_path / "out"
    arguments = ["--dry-run", "--topics", "prepare", "codec", "--output", str(folder)]
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.gpu", *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    results = folder / "results.jsonl"
    while not results.exists() or b'"row"' not in results.read_bytes():
        assert process.poll() is None
        time.sleep(0.05)
    process.terminate()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert "51 rows without a note" in output
    found = rows_of((folder / "tables.md").read_text(encoding="utf-8"))
    assert set(found) == promised("prepare", "codec")
    assert {row["note"] for row in found.values()} == {"", "not measured"}
    assert not commands_with("benchmarks.gpu.worker", str(tmp_path))


def commands_with(*words: str) -> list[bytes]:
    """Return the command lines of running processes in which all words stand."""
    commands = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # the process has ended
            commands.append(path.read_bytes())
    return [command for command in commands if all(word.encode() in command for word in words)]


def test_a_topic_runs(tmp_path: Path):
    """One topic as a whole, from the command line to the files."""
    folder = tmp_path / "out"
    arguments = ["--dry-run", "--topics", "prepare", "--budget", "100", "--output", str(folder)]
    output = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", *arguments], check=True, capture_output=True, text=True, cwd=ROOT
    ).stdout
    found = rows_of(output)
    assert set(found) == promised("prepare")
    assert all(float(row["images/s"]) > 0 and not row["note"] for row in found.values())
    assert {row["slower stage"] for labels, row in found.items() if labels[1] == "prepare"} <= {
        "read, decode, resize", "encode",
    }  # fmt: skip
    assert "torch 2." in output
    assert rows_of((folder / "tables.md").read_text(encoding="utf-8")) == found
    assert len((folder / "results.jsonl").read_text(encoding="utf-8").splitlines()) == len(found) + 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "cpu"], "the device must be a CUDA GPU without --dry-run, got cpu"),
        (["--dry-run", "--output", "."], "--output must be a new or empty folder"),
        (["--dry-run", "--topics", "colour"], "invalid choice: 'colour'"),
    ],
)
def test_wrong_arguments_are_refused(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(sys, "argv", ["gpu", *arguments])
    with pytest.raises(SystemExit):
        command.main()
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_the_dry_run_prints_every_row(tmp_path: Path):
    """All topics within ten minutes; what needs CUDA says so."""
    arguments = ["--dry-run", "--budget", "590", "--output", str(tmp_path / "out")]
    output = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", *arguments], check=True, capture_output=True, text=True, cwd=ROOT
    ).stdout
    found = rows_of(output)
    assert set(found) == promised(*TOPICS)
    notes = {labels: row["note"] for labels, row in found.items() if row["note"]}
    names = {labels: " ".join(labels) for labels in notes if labels[0] != capture.TOPIC.title}
    assert all("graph" in name or "captured" in name for name in names.values()), names
    assert set(notes.values()) == {"needs CUDA"}
