"""Topic "parity": whether images equal those of a CPU, equal each other in repeated calls, and equal those in batches.

The word "gear" stands for the way in which this package runs steps: "plain", or a key of `GEARS` in `contenders.py`.
"""

import copy
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from janus_hf import JanusProForConditionalGeneration

from ...contenders import make_prompts, with_gear
from ...peers import make_ours
from ...recording import Comparison, Recording, compare, record
from ..bench import Bench
from ..tables import Column, Part, Topic


CALLS = 10
# Name of a kind of repeated calls -> their gear, and the number of tokens that there is time for.
REPEATED = {
    "plain": ("plain", 24),
    "graph": ("graph", 576),
    "compiled": ("compiled", 576),
    "plain, math attention": ("plain", 24),
    "compiled without CUDA graphs": ("compiled without CUDA graphs", 96),
    "graph, math attention": ("graph", 96),
}
BATCHES = (4, 16)
TOKENS = 24


def against_cpu(bench: Bench, gears: tuple[str, ...]) -> None:
    """Compare float32 tokens of the device with those of plain steps on the CPU."""
    size = bench.size("1b, 2 layers")
    cpu = make_ours(size, torch.float32, "cpu")
    count = bench.pick(96, 16)
    expected = record(with_gear(cpu, "plain"), make_prompts(1, "cpu"), count, [0])
    model = copy.deepcopy(cpu).to(bench.device)
    for gear in gears:
        with bench.row("1b, 2 layers", "float32", gear, "plain on the CPU") as row:
            recording = record(with_gear(model, gear), make_prompts(1, bench.device), count, [0])
            _fill(row, [compare(expected, recording)], count)


def repeat(bench: Bench, name: str) -> None:
    """Compare the results of calls with the same seed, for one kind of repeated calls (a key of `REPEATED`)."""
    gear, count = REPEATED[name]
    count = bench.pick(count, 8)
    model = make_ours(bench.size("1b"), bench.dtype, bench.device)
    with bench.row("1b", "bfloat16", name, f"{CALLS} calls") as row, _attention("math" in name):
        geared = with_gear(model, gear)
        ids = make_prompts(1, bench.device)
        first = record(geared, ids, count, [0])
        found: list[Comparison] = []
        took = 0.0  # seconds of a call
        while len(found) + 1 < CALLS and bench.left() > took:
            start = time.perf_counter()
            found.append(compare(first, record(geared, ids, count, [0])))
            _fill(row, found, count)
            took = time.perf_counter() - start


def batches(bench: Bench, dtype: torch.dtype, gear: str) -> None:
    """Compare an image that is generated alone with the same image in a batch."""
    labels = ("1b", str(dtype).removeprefix("torch."), gear)
    model = make_ours(bench.size("1b"), dtype, bench.device)
    ids, count = make_prompts(max(BATCHES), bench.device), bench.pick(TOKENS, 6)
    alone: list[Recording] = []
    for size in BATCHES:
        with bench.row(*labels, f"the first alone and among {size}") as row:
            geared: JanusProForConditionalGeneration = with_gear(model, gear)
            if not alone:
                alone.append(record(geared, ids[:1], count, [0]))
            among = record(geared, ids[:size], count, range(size))
            _fill(row, [compare(alone[0], Recording(among.tokens[:1], among.logits[:1]))], count)


def _fill(row: dict[str, object], found: list[Comparison], count: int) -> None:
    """Set the values of a row: the largest differences in several comparisons of `count` tokens with one recording."""
    steps = [one.first_step for one in found if one.first_step is not None]
    tokens = [one.first_token for one in found if one.first_token is not None]
    row.update(calls=len(found) + 1, tokens=count, equal=min(one.equal for one in found))
    row.update(step=str(min(steps)) if steps else "none", by=max(one.by for one in found))
    row.update(token=str(min(tokens)) if tokens else "none")


@contextmanager
def _attention(math: bool) -> Iterator[None]:
    """Use PyTorch's attention by plain matrix products inside the context, if `math` is true."""
    if not math:
        yield
        return
    with sdpa_kernel(SDPBackend.MATH):
        yield


def _cpu_part(name: str, gears: tuple[str, ...], seconds: float, *, later: bool = False) -> Part:
    """Return the part that compares with a CPU."""
    rows = tuple(("1b, 2 layers", "float32", gear, "plain on the CPU") for gear in gears)
    return Part(name, seconds, rows, lambda bench: against_cpu(bench, gears), later)


def _repeat_part(name: str, seconds: float, *, later: bool = False) -> Part:
    """Return the part that repeats calls in one way, a key of `REPEATED`."""
    rows = (("1b", "bfloat16", name, f"{CALLS} calls"),)
    return Part(f"repeat {name}", seconds, rows, lambda bench: repeat(bench, name), later)


def _batch_part(dtype: torch.dtype, gear: str, seconds: float, *, later: bool = False) -> Part:
    """Return the part that compares an image that is generated alone with the same image in batches."""
    label = str(dtype).removeprefix("torch.")
    rows = tuple(("1b", label, gear, f"the first alone and among {size}") for size in BATCHES)
    return Part(f"batches {label} {gear}", seconds, rows, lambda bench: batches(bench, dtype, gear), later)


TOPIC = Topic(
    title="Parity and repeatability",
    explanation="Tokens and logits of calls with the same seeds. Step 1 samples the second token; the worst of all "
    "calls is shown. Whole images of captured and compiled steps, the first tokens of slower ones.",
    labels=("model", "dtype", "steps", "compared"),
    columns=(
        Column("calls", "calls", "d"),
        Column("tokens", "tokens per call", "d"),
        Column("equal", "equal tokens", ".1%"),
        Column("token", "first token that differs"),
        Column("step", "first step whose logits differ"),
        Column("by", "by at most", ".2e"),
    ),
    parts=(
        _cpu_part("against the CPU", ("plain", "graph"), 16),
        _repeat_part("graph", 26),
        _repeat_part("plain", 14),
        _batch_part(torch.float32, "plain", 10),
        _batch_part(torch.bfloat16, "graph", 8),
        _repeat_part("compiled", 58),
        _repeat_part("compiled without CUDA graphs", 44, later=True),
        _repeat_part("plain, math attention", 14, later=True),
        _repeat_part("graph, math attention", 12, later=True),
        _batch_part(torch.bfloat16, "plain", 10, later=True),
        _batch_part(torch.float32, "graph", 10, later=True),
        _cpu_part("against the CPU, compiled", ("compiled",), 30, later=True),
    ),
)
