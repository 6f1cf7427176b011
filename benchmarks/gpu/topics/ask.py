"""Topic "ask": time to the first token of an answer about an image, and tokens per second after it."""

import statistics
from typing import Any

import torch

from ...machine import now
from ...peers import BOI, BOS, IMAGE, make_ours, make_theirs
from ..bench import Bench
from ..tables import Column, Labels, Part, Row, Topic, ratios_to


BATCHES = (1, 16)
QUESTION = 30  # tokens of the question
# Label -> keyword arguments of `generate`.
CACHES: dict[str, dict[str, Any]] = {
    "growing cache": {},
    "static cache": {"cache_implementation": "static", "disable_compile": True},
    "static cache, compiled": {"cache_implementation": "static"},
}


def ask(bench: Bench, size: str, cache: str) -> None:
    """Time both models with one kind of cache, one and sixteen questions at a time."""
    ours = make_ours(bench.size(size), bench.dtype, bench.device)
    models = {"in-tree": make_theirs(ours), "ours": ours}
    if cache == "static cache, compiled":
        models = {"ours": ours}
    for batch_size in BATCHES:
        inputs = _inputs(bench, ours, batch_size)
        for name, model in models.items():
            with bench.row(size, str(batch_size), f"{name}, {cache}") as row:
                _measure(bench, model, inputs, CACHES[cache], row)


def _inputs(bench: Bench, model: Any, batch_size: int) -> dict[str, torch.Tensor]:
    """Return the batch of `batch_size` questions about one image each, without padding."""
    vision = model.config.vision_config
    question = torch.randint(10, 90000, (batch_size, QUESTION), generator=torch.Generator().manual_seed(0))
    start = torch.tensor([[BOS, BOI]]).repeat(batch_size, 1)
    image = torch.full((batch_size, vision.num_image_tokens), IMAGE)
    ids = torch.cat([start, image, question], dim=1).to(bench.device)
    pixels = torch.rand(batch_size, 3, vision.image_size, vision.image_size, device=bench.device).to(bench.dtype)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels * 2 - 1}


def _measure(
    bench: Bench, model: Any, inputs: dict[str, torch.Tensor], cache: dict[str, Any], row: dict[str, Any]
) -> None:
    """Set "latency" (seconds to the first token), "ms" per further token and "rate" (tokens per second, all rows)."""
    rounds, length = bench.pick(3, 1), bench.pick(48, 4)
    seconds: dict[int, float] = {}
    for count in (1, length):
        _generate(model, inputs, cache, count)  # the first call chooses kernels, and compiles
        times = []
        for _ in range(rounds):
            start = now(bench.device)
            _generate(model, inputs, cache, count)
            times.append(now(bench.device) - start)
        seconds[count] = statistics.median(times)
        if count == 1:
            row["latency"] = seconds[1]
    per_token = (seconds[length] - seconds[1]) / (length - 1)
    row["ms"], row["rate"] = per_token * 1e3, len(inputs["input_ids"]) / per_token


def _generate(model: Any, inputs: dict[str, torch.Tensor], cache: dict[str, Any], count: int) -> None:
    """Generate exactly `count` tokens for every row, the most likely ones."""
    model.generate(**inputs, **cache, do_sample=False, min_new_tokens=count, max_new_tokens=count)


def _rows(size: str, cache: str) -> tuple[Labels, ...]:
    """Return the labels of the rows about a size and a kind of cache."""
    names = ("ours",) if cache == "static cache, compiled" else ("in-tree", "ours")
    return tuple((size, str(batch), f"{name}, {cache}") for batch in BATCHES for name in names)


def _base(row: Row) -> Labels:
    """Return the labels of transformers' own Janus with its default cache."""
    return (*row.labels[:2], "in-tree, growing cache")


def _part(size: str, cache: str, seconds: float, *, later: bool = False) -> Part:
    """Return the part that measures a size with a kind of cache."""
    return Part(f"{size}, {cache}", seconds, _rows(size, cache), lambda bench: ask(bench, size, cache), later)


TOPIC = Topic(
    title="Answering questions",
    explanation="One image of 576 tokens and a question of 30 tokens per row; the most likely token at every step. "
    "The first token includes the vision tower and the prompt. Tokens per second are those of all rows together.",
    labels=("model", "at once", "contender"),
    columns=(
        Column("latency", "first token, s", ".3f"),
        Column("ms", "ms per token", ".2f"),
        Column("rate", "tokens/s", ".1f"),
        Column("ratio", "in-tree ms / this", ".2f"),
    ),
    parts=(
        _part("1b", "growing cache", 14),
        _part("7b", "growing cache", 12),
        _part("1b", "static cache", 12, later=True),
        _part("1b", "static cache, compiled", 40, later=True),
    ),
    derive=ratios_to(_base, "ms", "ratio"),
)
