"""Topic "drawing": generating images with transformers' own Janus, the loop of deepseek-ai/Janus and this package.

The word "gear" stands for the way in which this package runs steps: "plain", or a key of `GEARS` in `contenders.py`.
"""

from functools import partial
from typing import Any

from ...contenders import Draw, draw_ours, make_contenders, make_models, start_at_beginning, with_gear
from ...machine import reading_speed
from ...peers import make_ours
from ...reporting import NotAvailable
from ..bench import Bench
from ..images import time_image, time_our_image, time_steps
from ..tables import Column, Part, Row, Topic, ratios_to


SLOW = {"in_tree": "in-tree", "original": "original's loop", "ours": "plain"}  # contender -> label
SLOW_MANY = 16  # number of images at once for the contenders of `SLOW`
# Size of the model -> numbers of images at once for captured and compiled steps.
MANY = {"1b": (8, 16, 64, 128), "7b": (8, 16, 64)}


def slow(bench: Bench, size: str) -> None:
    """Time the contenders that launch every kernel from Python; time a whole image only if there is time for it."""
    ours = make_ours(bench.size(size), bench.dtype, bench.device)
    models = make_models(list(SLOW), ours)
    draws = make_contenders(models)
    for name, label in SLOW.items():
        with bench.row(size, "1", label) as row:
            time_steps(bench, draws[name], 1, row, steps=12)
    for name, label in SLOW.items():
        with bench.row(size, "1", f"{label}, whole image") as row:
            if name == "ours":
                start_at_beginning(models[name])
            expected = _image_seconds(bench, draws[name])
            if expected > bench.left() - 2:
                raise NotAvailable(f"left out: an image takes about {expected:.0f} s")
            row["image"], row["peak"] = time_image(bench, draws[name], ours.decode_image_ids)
            row["rate"] = 1 / row["image"]


def _image_seconds(bench: Bench, draw: Draw) -> float:
    """Return an estimate, from a few steps, of the seconds that a whole image will take."""
    values: dict[str, Any] = {}
    time_steps(bench, draw, 1, values, steps=2)
    return 1 / values["rate"]


def fast(bench: Bench, size: str, gear: str) -> None:
    """Time the steps and whole images of one image at a time, with captured or compiled steps."""
    model = make_ours(bench.size(size), bench.dtype, bench.device)
    with bench.row(size, "1", gear) as row:
        geared = with_gear(model, gear)
        time_steps(bench, partial(draw_ours, geared), 1, row, steps=48)
        time_our_image(bench, geared)  # the codec's first call chooses its kernels
        row["image"], row["peak"] = time_our_image(bench, geared)
        row["rate"] = 1 / row["image"]
        layers = sum(parameter.nbytes for parameter in model.model.language_model.layers.parameters())
        row["floor"] = layers / reading_speed(bench.device) * 1e3


def many_slow(bench: Bench, size: str) -> None:
    """Time the steps for several images at once of the contenders that launch every kernel from Python."""
    ours = make_ours(bench.size(size), bench.dtype, bench.device)
    draws = make_contenders(make_models(list(SLOW), ours))
    for name, label in SLOW.items():
        with bench.row(size, str(SLOW_MANY), label) as row:
            time_steps(bench, draws[name], bench.pick(SLOW_MANY, 2), row, steps=6)


def many(bench: Bench, size: str, gear: str, batch_sizes: tuple[int, ...]) -> None:
    """Time the steps for several images at once, and whole images if there is time for them."""
    model = make_ours(bench.size(size), bench.dtype, bench.device)
    for batch_size in batch_sizes:
        with bench.row(size, str(batch_size), gear) as row:
            geared = with_gear(model, gear)
            time_steps(bench, partial(draw_ours, geared), bench.pick(batch_size, 2), row, steps=16)
            if batch_size / row["rate"] < bench.left() / 2:
                seconds, row["peak"] = time_our_image(bench, geared, bench.pick(batch_size, 2))
                row["image"], row["rate"] = seconds / batch_size, batch_size / seconds
            del geared  # its caches and graphs are as large as the model


def _base(row: Row) -> tuple[str, ...]:
    """Return the labels of the row of transformers' own Janus with the same number of images at once."""
    return (*row.labels[:2], "in-tree")


def _slow_part(size: str, seconds: float) -> Part:
    """Return the part that runs `slow`."""
    rows = tuple((size, "1", f"{label}{kind}") for kind in ("", ", whole image") for label in SLOW.values())
    return Part(f"{size} slow", seconds, rows, lambda bench: slow(bench, size))


def _fast_part(size: str, gear: str, seconds: float) -> Part:
    """Return the part that runs `fast`."""
    return Part(f"{size} {gear}", seconds, ((size, "1", gear),), lambda bench: fast(bench, size, gear))


def _many_part(size: str, gear: str, batch_sizes: tuple[int, ...], seconds: float, *, later: bool = False) -> Part:
    """Return the part that runs `many`."""
    rows = tuple((size, str(batch_size), gear) for batch_size in batch_sizes)
    return Part(f"{size} many {gear}", seconds, rows, lambda bench: many(bench, size, gear, batch_sizes), later)


TOPIC = Topic(
    title="Drawing",
    explanation="Random weights, guidance 5, prompts of 20 tokens, steps from the middle of an image where that makes "
    "a difference. ms per step: median, the clock waits for the device after every token. s per image: a whole image, "
    "with prompt and decoding, nothing waits in between. images/s: from whole images where there is an s per image, "
    "else from the steps. The floor is the time to read the layers' weights once at the bandwidth measured here.",
    labels=("model", "images at once", "contender"),
    columns=(
        Column("ms", "ms per step", ".2f"),
        Column("image", "s per image", ".2f"),
        Column("rate", "images/s", ".2f"),
        Column("ratio", "in-tree step / this", ".2f"),
        Column("first", "first token, s", ".2f"),
        Column("ready", "compiling or capturing, s", ".1f"),
        Column("peak", "peak memory, GB", ".1f"),
        Column("floor", "floor, ms per step", ".2f"),
    ),
    parts=(
        _slow_part("1b", 16),
        _fast_part("1b", "graph", 10),
        _fast_part("1b", "compiled", 16),
        _slow_part("7b", 16),
        _fast_part("7b", "graph", 12),
        _fast_part("7b", "compiled", 50),
        _many_part("1b", "graph", MANY["1b"], 18),
        _many_part("7b", "graph", MANY["7b"], 16),
        Part(
            "1b many slow",
            14,
            tuple(("1b", str(SLOW_MANY), label) for label in SLOW.values()),
            lambda bench: many_slow(bench, "1b"),
            later=True,
        ),
        _many_part("1b", "compiled", (16,), 40, later=True),
    ),
    derive=ratios_to(_base, "ms", "ratio"),
)
