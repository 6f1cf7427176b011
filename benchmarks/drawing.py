"""Measure the time per image token of this package, of transformers' own Janus and of the loop of deepseek-ai/Janus.

    python -m benchmarks.drawing [--size 1b] [--dtype bfloat16] [--device cpu] [--batch-sizes 1 8] [--steps 6]
        [--contenders in_tree original ours compiled int8 int4 fp8 graph] [--rounds 3] [--check] [--output FILE]
        [--dry-run]

The contenders are transformers' own Janus (`in_tree`), the loop of deepseek-ai/Janus around this package's layers
(`original`), and this package without compilation (`ours`), compiled (`compiled`), compiled with a language model
quantised by torchao (`int8`, `int4`, `fp8`), and with steps captured as CUDA graphs (`graph`). All share random
weights of full size. They generate with guidance scale 5 from prompts of 20 tokens and sample from the full softmax.
Each generation is started as its user would start it and stopped after some image tokens; the contenders take turns.
The time of a step is the median time between two tokens over all rounds, without the first token. `in_tree` attends to
the full length of its key-value cache from the start, as do compiled and captured steps on CUDA. The others attend
only to the part of the cache that is written, so their caches start with as many positions as in the middle of an
image.

The printed floor is the time to read the language model's weights once at the memory bandwidth of this machine, which
the benchmark measures. `--check` adds the error of teacher-forced logits of bfloat16 against float32 (one prompt, 16
tokens). `--dry-run` runs the same steps with a tiny model and two tokens each, to test the benchmark itself.
"""

import statistics
import time
from typing import NamedTuple

import torch

from .contenders import NAMES, Draw, make_contenders, make_models, make_prompts, run
from .logit_errors import logit_errors
from .machine import describe_machine, reading_speed
from .memory import PeakDeviceMemory
from .peers import make_ours
from .reporting import Report, add_device, add_output, make_parser


# The first steps compile; on CUDA, graphs are recorded at the second and captured ones checked.
WARM_UP = 4  # tokens


class Timing(NamedTuple):
    """Times of a contender in seconds, and its memory.

    Attributes:
        step: Median time of a step, without the first.
        first: Median time until the first token.
        warm: Time that the first call of all took longer than later ones, for compiling or capturing.
        peak: Peak memory of the first call above the memory before it, in bytes.
    """

    step: float
    first: float
    warm: float
    peak: int


def measure(contenders: dict[str, Draw], batch_size: int, steps: int, rounds: int, device: str) -> dict[str, Timing]:
    """Time all contenders at one batch size, in turn, and return their times by name.

    Args:
        contenders: The functions that generate images, by the names of the contenders.
        batch_size: Number of images that are generated at once.
        steps: Number of image tokens per image and round.
        rounds: Number of rounds after a warm-up of `WARM_UP` tokens, which includes compilation.
        device: Device on which the models run, whose memory is measured.
    """
    ids = make_prompts(batch_size, device)
    times: dict[str, list[float]] = {name: [] for name in contenders}
    firsts: dict[str, list[float]] = {name: [] for name in contenders}
    compiling, peaks = {}, {}
    for name, draw in contenders.items():
        with PeakDeviceMemory(device) as memory:
            start = time.perf_counter()
            run(draw, ids, WARM_UP)
            compiling[name] = time.perf_counter() - start
        peaks[name] = memory.bytes
    for _ in range(rounds):
        for name, draw in contenders.items():
            first, rest = run(draw, ids, steps)
            firsts[name].append(first)
            times[name] += rest
    found = {}
    for name in contenders:
        step, first = statistics.median(times[name]), statistics.median(firsts[name])
        # The warm-up compiles, and generates tokens whose time is subtracted.
        warm = compiling[name] - first - (WARM_UP - 1) * step
        found[name] = Timing(step, first, warm, peaks[name])
    return found


def table_rows(timings: dict[str, Timing], batch_size: int) -> list[str]:
    """Return the rows of the Markdown table for the contenders' times at one batch size."""
    base = timings.get("in_tree")
    return [
        f"| {batch_size} | {name} | {timing.step * 1e3:.1f} | {timing.step / batch_size * 1e3:.1f} | "
        f"{'' if base is None else f'{base.step / timing.step:.2f}'} | "
        f"{'' if name in ('original', 'ours') else f'{timing.first * 1e3:.0f}'} | "
        f"{'' if name in ('in_tree', 'original', 'ours') else f'{timing.warm:.0f}'} | {timing.peak / 1e9:.2f} |"
        for name, timing in timings.items()
    ]


def main() -> None:
    """Print the table of times and, with `--check`, the table of the errors of logits."""
    parser = make_parser(__doc__)
    parser.add_argument("--size", choices=("1b", "7b", "tiny"), default="1b")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    add_device(parser)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--steps", type=int, default=6, help="image tokens per round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--contenders", nargs="+", choices=NAMES, default=list(NAMES[:4]))
    add_output(parser)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--dry-run", action="store_true")
    arguments = parser.parse_args()
    if arguments.dry_run:
        arguments.size, arguments.steps, arguments.rounds = "tiny", 2, 1
    dtype = getattr(torch, arguments.dtype)
    ours = make_ours(arguments.size, dtype, arguments.device)
    models = make_models(arguments.contenders, ours)
    contenders = make_contenders(models)
    weights = sum(parameter.nbytes for parameter in ours.model.language_model.layers.parameters())
    floor = weights / reading_speed(arguments.device)

    report = Report()
    report.add(
        f"{arguments.size}, {describe_machine(arguments.device, dtype)}; floor {floor * 1e3:.0f} ms per step",
        "",
        "| pictures at once | contender | ms per step | ms per code and picture | in-tree / this | first code, ms | "
        "compiling, s | peak memory above the weights, GB |",
        "|---:|---|---:|---:|---:|---:|---:|---:|",
    )
    for batch_size in arguments.batch_sizes:
        timings = measure(contenders, batch_size, arguments.steps, arguments.rounds, arguments.device)
        report.add(*table_rows(timings, batch_size))
    if arguments.check:
        report.add("", "| contender | mean error of logits against float32 | largest |", "|---|---:|---:|")
        others = {name: model for name, model in models.items() if name not in ("ours", "original")}
        errors = logit_errors({"ours": ours} | others)
        report.add(*[f"| {name} | {mean:.2e} | {largest:.2e} |" for name, (mean, largest) in errors.items()])
    report.save(arguments.output)


if __name__ == "__main__":
    main()
