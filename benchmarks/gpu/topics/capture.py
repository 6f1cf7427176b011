"""Topic "capture": the time that capturing a step as a CUDA graph takes, and the time of a replay."""

from functools import partial

from ...contenders import draw_ours, make_prompts, run, with_gear
from ...kernels import kernels_per_step
from ...peers import make_ours
from ...recording import compare, record
from ..bench import Bench
from ..images import time_our_image, time_steps
from ..tables import Column, Labels, Part, Topic


SIZES = {"1b": (1, 16), "7b": (1,)}


def capture(bench: Bench, size: str) -> None:
    """Measure the first image after the model is made, then capturing and replaying alone, then plain steps."""
    model = make_ours(bench.size(size), bench.dtype, bench.device)
    for batch_size in SIZES[size]:
        with bench.row(size, str(batch_size)) as row:
            graph = with_gear(model, "graph")
            row["first"], _ = time_our_image(bench, graph, batch_size)
            row["later"], _ = time_our_image(bench, graph, batch_size)
            fresh = with_gear(model, "graph")  # captures again, when all kernels have been loaded
            times: dict[str, float] = {}
            time_steps(bench, partial(draw_ours, fresh), batch_size, times, steps=48)
            row["capture"], row["ms"] = times["ready"], times["ms"]
            ids, count = make_prompts(batch_size, bench.device), bench.pick(48, 6)
            seeds = range(batch_size)
            plain = record(with_gear(model, "plain"), ids, count, seeds)
            found = compare(plain, record(fresh, ids, count, seeds))
            row["equal"], row["by"] = found.equal, found.by
            row["kernels"] = _kernels(bench, fresh, batch_size)
    for batch_size in SIZES[size]:
        with bench.row(size, f"{batch_size}, plain") as row:
            plain_model = with_gear(model, "plain")
            row["kernels"] = _kernels(bench, plain_model, batch_size)
            times = {}
            time_steps(bench, partial(draw_ours, plain_model), batch_size, times, steps=12)
            row["ms"] = times["ms"]


def _kernels(bench: Bench, model: object, batch_size: int) -> int:
    """Return the number of kernels that a step launches."""
    ids = make_prompts(batch_size, bench.device)
    draw = partial(draw_ours, model)  # type: ignore[arg-type]
    run(draw, ids, 4)
    return round(sum(kernels_per_step(lambda count: run(draw, ids, count), bench.device).launches.values()))


def _rows(size: str) -> tuple[Labels, ...]:
    """Return the labels of the rows about a size, in the order in which `capture` measures them."""
    return tuple((size, f"{batch}{kind}") for kind in ("", ", plain") for batch in SIZES[size])


TOPIC = Topic(
    title="Capturing the step as a CUDA graph",
    explanation='`compile_generation(mode="graph")`. The first image after loading includes everything that happens '
    "once: loading kernels, warm-up and capture; image means prompt, tokens and decoding. Capture is the time that a "
    "first call takes longer than later ones, once kernels are loaded. Kernels include sampling, copies and checks; "
    "on a CPU they are operators. Equal tokens and logits are those of plain steps.",
    labels=("model", "images at once"),
    columns=(
        Column("first", "first image after loading, s", ".2f"),
        Column("later", "image, s", ".2f"),
        Column("capture", "warm-up and capture, s", ".2f"),
        Column("ms", "ms per step", ".2f"),
        Column("kernels", "kernels per step", "d"),
        Column("equal", "tokens equal to plain", ".1%"),
        Column("by", "first difference of logits", ".2e"),
    ),
    parts=(
        Part("1b", 14, _rows("1b"), lambda bench: capture(bench, "1b")),
        Part("7b", 14, _rows("7b"), lambda bench: capture(bench, "7b")),
    ),
)
