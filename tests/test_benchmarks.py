"""The benchmarks run from beginning to end on tiny models and print complete tables; no time is tested."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]


def table(output: str) -> list[list[str]]:
    """Return the cells of all table rows in a text."""
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in output.splitlines() if line.startswith("|")]


def benchmark(*arguments: str) -> list[list[str]]:
    """Run `python -m arguments` and return the cells of the table rows that it prints."""
    command = [sys.executable, "-m", *arguments]
    return table(subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout)


def test_drawing():
    rows = benchmark("benchmarks.drawing", "--dry-run", "--check", "--contenders", "in_tree", "original", "ours")
    timed = rows[2 : 2 + 6]
    assert [row[:2] for row in timed] == [
        [size, name] for size in ("1", "8") for name in ("in_tree", "original", "ours")
    ]
    assert all(float(row[2]) > 0 for row in timed)
    errors = {row[0]: float(row[1]) for row in rows[-2:]}
    assert set(errors) == {"ours", "in_tree"}
    # bfloat16 has 8 bits. An error of zero would mean that float32 was compared with itself, an error of whole units
    # that another model was.
    assert all(1e-6 < error < 0.1 for error in errors.values())


@pytest.mark.slow
def test_drawing_compiled():
    rows = benchmark("benchmarks.drawing", "--dry-run", "--contenders", "in_tree", "compiled")
    assert [row[1] for row in rows[2:]] == ["in_tree", "compiled"] * 2
    assert all(float(row[6]) > 0 for row in rows[2:] if row[1] == "compiled")


TINY_QUALITY = ("benchmarks.quality", "--prompts-per-tag", "1", "--images-per-prompt", "1", "--questions", "6")


def test_quality(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """The benchmark runs in this process, where its imports are loaded already."""
    monkeypatch.syspath_prepend(ROOT)
    monkeypatch.setattr(sys, "argv", [*TINY_QUALITY, "--contenders", "bfloat16"])
    importlib.import_module("benchmarks.quality").main()
    (row,) = table(capsys.readouterr().out)[2:]
    assert row[0] == "bfloat16"
    assert 0.97 < float(row[1]) <= 1  # 384 codes
    assert 0 < float(row[2]) < 1e-3  # the logits differ, the distributions hardly
    assert all(0.5 < float(score) <= 1 for score in row[3:])


@pytest.mark.slow
def test_quality_of_quantised_weights():
    rows = benchmark(*TINY_QUALITY)[2:]
    assert [row[0] for row in rows] == ["float32", "bfloat16", "int8", "int4", "fp8"]
    assert [float(cell) for cell in rows[0][1:3]] == [1, 0]  # float32 compared with itself
    _, bfloat16, int8, int4, fp8 = (float(row[2]) for row in rows)
    # int8 computes in bfloat16 and is about as far from float32, so either may be ahead.
    assert min(bfloat16, int8) > 0
    assert int4 > 2 * fp8 > 4 * max(bfloat16, int8)
    assert all(float(row[1]) > 0.9 for row in rows)


def test_every_benchmark_is_listed():
    output = subprocess.run(
        [sys.executable, "-m", "benchmarks"], check=True, capture_output=True, text=True, cwd=ROOT
    ).stdout
    folder = ROOT / "benchmarks"
    runnable = {path.stem for path in folder.glob("*.py") if "__main__" in path.read_text() and path.stem[0] != "_"}
    runnable |= {path.parent.name for path in folder.glob("*/__main__.py")}
    assert {line.split(".")[-1] for line in output.splitlines() if line.startswith("python")} == runnable
