"""Topic "ask": time to the first token of an answer about an image, and tokens per second after it."""

import statistics
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch

from ...contenders import with_gear
from ...kernels import kernels_per_step
from ...machine import now
from ...peers import BOI, BOS, IMAGE, make_ours, make_theirs
from ..bench import Bench
from ..tables import Column, Labels, Part, Row, Topic, ratios_to


BATCHES = (1, 16)
QUESTION = 30  # tokens of the question
_STATIC = {"cache_implementation": "static"}
_NOT_COMPILED = {"cache_implementation": "static", "disable_compile": True}
# Contender -> its keyword arguments of `generate`. This package's own steps need a cache of the model instead.
CONTENDERS: dict[str, dict[str, Any]] = {
    "in-tree, growing cache": {},
    "ours, plain steps": {},
    "ours, captured steps": {},
    "in-tree, static cache": _NOT_COMPILED,
    "ours, static cache": _NOT_COMPILED,
    "ours, static cache, compiled": _STATIC,
}


def ask(bench: Bench, size: str, names: tuple[str, ...]) -> None:
    """Time contenders, one and sixteen questions at a time."""
    ours = make_ours(bench.size(size), bench.dtype, bench.device)
    theirs = make_theirs(ours)
    for name in names:
        for batch_size in BATCHES:
            with bench.row(size, str(batch_size), name) as row:
                gear = "graph" if "captured" in name else "plain"
                model = with_gear(ours, gear) if name.startswith("ours") else theirs
                _measure(bench, name, model, _inputs(bench, ours, batch_size), row)


def _inputs(bench: Bench, model: Any, batch_size: int) -> dict[str, torch.Tensor]:
    """Return the batch of `batch_size` questions about one image each, without padding."""
    vision = model.config.vision_config
    question = torch.randint(10, 90000, (batch_size, QUESTION), generator=torch.Generator().manual_seed(0))
    start = torch.tensor([[BOS, BOI]]).repeat(batch_size, 1)
    image = torch.full((batch_size, vision.num_image_tokens), IMAGE)
    ids = torch.cat([start, image, question], dim=1).to(bench.device)
    pixels = torch.rand(batch_size, 3, vision.image_size, vision.image_size, device=bench.device).to(bench.dtype)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels * 2 - 1}


def _measure(bench: Bench, name: str, model: Any, inputs: dict[str, torch.Tensor], row: dict[str, Any]) -> None:
    """Set "latency" (seconds until the first token), "rate" (tokens per second after it, of all rows), and "kernels".

    Args:
        bench: Says how often to measure.
        name: A key of `CONTENDERS`.
        model: The contender's model.
        inputs: Arguments of `generate` that hold the questions.
        row: Receives the values.
    """
    rounds, length = bench.pick(3, 1), bench.pick(48, 4)
    generate = partial(_generate, name, model, inputs)
    seconds: dict[int, float] = {}
    for count in (1, length):
        generate(count)  # the first call chooses kernels, captures and compiles
        times = []
        for _ in range(rounds):
            start = now(bench.device)
            generate(count)
            times.append(now(bench.device) - start)
        seconds[count] = statistics.median(times)
        if count == 1:
            row["latency"] = seconds[1]
    per_token = (seconds[length] - seconds[1]) / (length - 1)
    row["ms"], row["rate"] = per_token * 1e3, len(inputs["input_ids"]) / per_token
    row["kernels"] = round(sum(kernels_per_step(generate, bench.device).launches.values()))


def _generate(name: str, model: Any, inputs: dict[str, torch.Tensor], count: int) -> None:
    """Generate exactly `count` tokens for every row, the most likely ones."""
    length = inputs["input_ids"].shape[1] + count
    with model.answer_cache(length) if name.endswith("steps") else nullcontext() as cache:
        own = {} if cache is None else {"past_key_values": cache}
        model.generate(
            **inputs, **own, **CONTENDERS[name], do_sample=False, min_new_tokens=count, max_new_tokens=count
        )


def _rows(size: str, names: tuple[str, ...]) -> tuple[Labels, ...]:
    """Return the labels of the rows about a size and these contenders."""
    return tuple((size, str(batch), name) for name in names for batch in BATCHES)


def _base(row: Row) -> Labels:
    """Return the labels of transformers' own Janus with its default cache."""
    return (*row.labels[:2], "in-tree, growing cache")


def _part(size: str, names: tuple[str, ...], seconds: float, *, later: bool = False) -> Part:
    """Return the part that measures these contenders in one size."""
    rows = _rows(size, names)
    return Part(f"{size}, {', '.join(names)}", seconds, rows, lambda bench: ask(bench, size, names), later)


_FIRST = ("in-tree, growing cache", "ours, plain steps", "ours, captured steps")

TOPIC = Topic(
    title="Answering questions",
    explanation="One image of 576 tokens and a question of 30 tokens per row; the most likely token at every step. "
    "The first token includes the vision tower and the prompt. Tokens per second are those of all rows together. "
    "Kernels per token include those of transformers' loop around the model; on a CPU they are operators.",
    labels=("model", "at once", "contender"),
    columns=(
        Column("latency", "first token, s", ".3f"),
        Column("ms", "ms per token", ".2f"),
        Column("rate", "tokens/s", ".1f"),
        Column("ratio", "in-tree ms / this", ".2f"),
        Column("kernels", "kernels per token", "d"),
    ),
    parts=(
        _part("1b", _FIRST, 24),
        _part("7b", _FIRST, 20),
        _part("1b", ("in-tree, static cache", "ours, static cache"), 12, later=True),
        _part("1b", ("ours, static cache, compiled",), 40, later=True),
    ),
    derive=ratios_to(_base, "ms", "ratio"),
)
