"""Topic "profile": the time that each kernel of a step takes."""

from functools import partial

from ...contenders import draw_ours, make_prompts, quantised, run, with_gear
from ...kernels import kernels_per_step
from ...peers import make_ours
from ..bench import Bench
from ..images import time_steps
from ..tables import Column, Labels, Part, Topic


# Gear (the way in which this package runs steps) -> seconds of the part; all but the first run later. Gears after
# "int8 " run with a quantised language model.
GEARS = {"graph": 10, "int8 graph": 10, "plain": 10, "compiled": 16}
INT8 = "int8 "
SHOWN = 8  # number of kernels in the table


def measure(bench: Bench, gear: str) -> None:
    """Profile the steps of one image, and print the kernels that take longest."""
    model = make_ours(bench.size("1b"), bench.dtype, bench.device)
    rows = _rows(gear)
    with bench.row(*rows[0]) as row:
        if gear.startswith(INT8):
            model = quantised(model, "int8")
        draw = partial(draw_ours, with_gear(model, gear.removeprefix(INT8)))
        times: dict[str, float] = {}
        time_steps(bench, draw, 1, times, steps=12)
        ids = make_prompts(1, bench.device)
        kernels = kernels_per_step(lambda count: run(draw, ids, count), bench.device)
        row.update(launches=sum(kernels.launches.values()), us=sum(kernels.seconds.values()) * 1e6)
        row.update(share=row["us"] / (times["ms"] * 1e3), kernel=f"step of {times['ms']:.2f} ms")
        longest = sorted(kernels.seconds, key=lambda name: -kernels.seconds[name])[:SHOWN]
        for labels, name in zip(rows[1:], longest, strict=False):
            with bench.row(*labels) as line:
                line.update(kernel=name[:80], launches=kernels.launches[name], us=kernels.seconds[name] * 1e6)
                line["share"] = line["us"] / (times["ms"] * 1e3)


def _rows(gear: str) -> tuple[Labels, ...]:
    """Return the labels of the rows about one gear."""
    return tuple(("1b", gear, rank) for rank in ("all", *(str(number + 1) for number in range(SHOWN))))


TOPIC = Topic(
    title="Where the time of a step goes",
    explanation="One image, per step: the kernels that take longest, by torch's profiler (on a CPU: operators). The "
    "share is that of the time of a step without the profiler; what is missing in the row `all` is time between "
    "kernels.",
    labels=("model", "steps", "rank"),
    columns=(
        Column("kernel", "kernel"),
        Column("launches", "launches", ".1f"),
        Column("us", "microseconds", ".1f"),
        Column("share", "share", ".1%"),
    ),
    parts=tuple(
        Part(gear, seconds, _rows(gear), partial(measure, gear=gear), later=gear != "graph")
        for gear, seconds in GEARS.items()
    ),
)
