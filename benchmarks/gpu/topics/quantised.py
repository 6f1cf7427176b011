"""Topic "quantised": weights of 8 and 4 bits, one image at a time."""

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from unittest.mock import patch

from janus_hf.generation.kernels.few_rows import few_row_layers

from ...contenders import QUANTISED, draw_ours, quantised, with_gear
from ...machine import now
from ...peers import make_ours
from ..bench import Bench
from ..images import time_our_image, time_steps
from ..tables import Column, Part, Row, Topic, ratios_to


SIZE = "7b"
WEIGHTS = ("bfloat16", "int8", "fp8", "int4")


# Added to the label of the way to run steps where the package's own kernel is switched off.
TORCHAOS = ", torchao's layers"


def measure(bench: Bench, weights: str, gear: str) -> None:
    """Quantise the language model; measure the time until it can generate, its speed, and the lines that it prints."""
    model = make_ours(bench.size(SIZE), bench.dtype, bench.device)
    with bench.row(SIZE, weights, gear) as row, count_lines_on_stderr(row), own_kernel(not gear.endswith(TORCHAOS)):
        gear = gear.removesuffix(TORCHAOS)
        start = now(bench.device)
        shifted = with_gear(model if weights not in QUANTISED else quantised(model, weights), gear)
        quantising = now(bench.device) - start
        del model
        time_steps(bench, partial(draw_ours, shifted), 1, row, steps=24)
        row["ready"] += quantising
        row["image"], row["peak"] = time_our_image(bench, shifted)


@contextmanager
def own_kernel(used: bool) -> Iterator[None]:
    """Use the kernel of this package for weights of 8 bits inside the context, or not."""
    if used:
        yield
        return
    with patch.object(few_row_layers, "few_rows_pay", lambda device: False):
        yield


@contextmanager
def count_lines_on_stderr(values: dict[str, object]) -> Iterator[None]:
    """Set "lines" to the number of lines that this process and those that it starts write to standard error.

    The lines are written to standard error at the end of the context.
    """
    sys.stderr.flush()
    original = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(original, 2)
            os.close(original)
            file.seek(0)
            text = file.read().decode(errors="replace")
            values["lines"] = sum(1 for line in text.splitlines() if line.strip())
            sys.stderr.write(text)


def _base(row: Row) -> tuple[str, ...]:
    """Return the labels of the model that is not quantised."""
    return (row.labels[0], "bfloat16", row.labels[2].removesuffix(TORCHAOS))


def _part(weights: str, gear: str, seconds: float, *, later: bool = False) -> Part:
    """Return the part that measures one kind of weights with one way to run steps."""
    rows = ((SIZE, weights, gear),)
    return Part(f"{weights} {gear}", seconds, rows, lambda bench: measure(bench, weights, gear), later)


TOPIC = Topic(
    title="Quantised weights",
    explanation="torchao's weight-only quantisation of the language model's layers, one image at a time. Ready: "
    "quantising, and compiling or capturing. Lines: what the process writes to standard error until the image is "
    "there (warnings, tables of autotuning). int8 and fp8 run with the package's kernel for few rows, or, where it "
    "says so, with torchao's layers. What quantising costs in quality: `python -m benchmarks.quality`.",
    labels=("model", "weights", "steps"),
    columns=(
        Column("ms", "ms per step", ".2f"),
        Column("image", "s per image", ".2f"),
        Column("ratio", "bfloat16 step / this", ".2f"),
        Column("ready", "ready after, s", ".1f"),
        Column("lines", "lines on stderr", "d"),
        Column("peak", "peak memory, GB", ".1f"),
    ),
    parts=(
        *(_part(weights, "graph", 10) for weights in WEIGHTS),
        _part("bfloat16", "compiled", 16),
        _part("int8", "compiled", 46),
        *(_part(weights, f"graph{TORCHAOS}", 10, later=True) for weights in ("int8", "fp8")),
        _part("fp8", "compiled", 46, later=True),
        _part("int4", "compiled", 46, later=True),
    ),
    derive=ratios_to(_base, "ms", "ratio"),
)
