"""Milliseconds per code of a drawing: ours, transformers' own Janus and the original's loop, in one process.

    python -m benchmarks.drawing [--size 1b] [--dtype bfloat16] [--device cpu] [--batch-sizes 1 8] [--steps 6]
        [--contenders in_tree original ours compiled int8 int4] [--rounds 3] [--check] [--output FILE] [--dry-run]

Random weights of full size, shared by all; guidance 5, prompts of 20 tokens, sampling from the full softmax. A drawing
is started as its user would start it and stopped after some codes, contenders by turns. The time of a step is the
median time between two codes, the first left out, over all rounds. In-tree attends to its cache's full length from the
start, as do compiled steps on CUDA; the others, which attend as far as theirs are written, are given the length of the
middle of a picture.

`floor` is reading the language model's weights once at the speed at which this machine reads memory, measured here.
`--check` adds the error of teacher-forced logits of bfloat16 against float32 (one prompt, 16 codes).
`--dry-run` runs exactly this with a tiny model and two codes each, to see that all of it works.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from transformers.cache_utils import DynamicCache, StaticCache

from janus_hf.generation.decoding import Decoder

from .memory import PeakMemory
from .peers import BOI, BOS, PAD, describe_machine, make_ours, make_theirs


CONTENDERS = ("in_tree", "original", "ours", "compiled", "int8", "int4")
GUIDANCE = 5.0
PROMPT = 20


class Enough(Exception):  # noqa: N818  not an error
    """So many codes have been drawn."""


class Clock:
    """Called after every code; notes the times and stops the drawing."""

    def __init__(self, codes: int, device: str) -> None:
        self.codes, self.device = codes, device
        self.times: list[float] = []

    def start(self) -> None:
        self.times = [self._now()]

    def __call__(self, *_: Any) -> None:
        self.times.append(self._now())
        if len(self.times) > self.codes:
            raise Enough

    def _now(self) -> float:
        if self.device.startswith("cuda"):
            torch.cuda.synchronize()
        return time.perf_counter()


def make_prompts(batch_size: int, device: str) -> torch.Tensor:
    """Different prompts of one length."""
    ids = torch.randint(10, 90000, (batch_size, PROMPT), generator=torch.Generator().manual_seed(batch_size))
    ids[:, 0], ids[:, -1] = BOS, BOI
    return ids.to(device)


def draw_in_tree(model: Any) -> Callable[[torch.Tensor, Clock], None]:
    def draw(ids: torch.Tensor, clock: Clock) -> None:
        hook = model.model.generation_head.register_forward_hook(clock)
        try:
            model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                generation_mode="image",
                do_sample=True,
                top_k=0,
                guidance_scale=GUIDANCE,
            )
        finally:
            hook.remove()

    return draw


@torch.inference_mode()
def _draw_original(model: Any, ids: torch.Tensor, clock: Clock) -> None:
    """The loop of deepseek-ai/Janus generation_inference.py: interleaved rows, growing cache, multinomial."""
    parts, config = model.model, model.config
    rows = ids.repeat_interleave(2, dim=0)
    rows[1::2, 1:-1] = PAD
    embeds = parts.get_input_embeddings()(rows)
    cache = DynamicCache(config=config.text_config)
    shape = (len(rows), config.text_config.num_key_value_heads, config.vq_config.num_image_tokens // 2)
    middle = embeds.new_zeros(*shape, config.text_config.head_dim)
    for layer in range(config.text_config.num_hidden_layers):
        cache.update(middle, middle, layer)
    for _ in range(config.vq_config.num_image_tokens):
        hidden = parts.language_model(inputs_embeds=embeds, use_cache=True, past_key_values=cache).last_hidden_state
        logits = parts.generation_head(hidden[:, -1])
        guided = logits[1::2] + GUIDANCE * (logits[0::2] - logits[1::2])
        drawn = torch.multinomial(guided.softmax(dim=-1), num_samples=1)
        embeds = parts.embed_image_ids(drawn.repeat_interleave(2, dim=0))
        clock()


def draw_original(model: Any) -> Callable[[torch.Tensor, Clock], None]:
    return lambda ids, clock: _draw_original(model, ids, clock)


def start_half_way(model: Any) -> None:
    """Give the model's caches the positions that they have in the middle of a picture, with nothing in them."""
    decoder, weight = model._decoder, next(model.model.language_model.parameters())

    def make_cache(implementation: str, text_config: Any, rows: int, length: int) -> Any:
        cache = type(decoder).make_cache(decoder, implementation, text_config, rows, length)
        shape = (rows, text_config.num_key_value_heads, (length - PROMPT) // 2, text_config.head_dim)
        empty = torch.zeros(shape, dtype=weight.dtype, device=weight.device)
        for layer in range(text_config.num_hidden_layers):
            cache.update(empty, empty, layer)
        return cache

    decoder.make_cache = make_cache


def draw_ours(model: Any) -> Callable[[torch.Tensor, Clock], None]:
    return lambda ids, clock: model.generate_images(ids, guidance_scale=GUIDANCE, callback=clock)


def quantised(model: Any, bits: str) -> Any:
    """The same with a language model of fewer bits, by torchao; everything else is shared."""
    from torchao.quantization import quantize_

    from janus_hf.modeling.quantisation import weight_only_config

    other = copy.copy(model)
    other._modules = dict(model._modules)
    other._modules["model"] = copy.copy(model.model)
    other.model._modules = dict(model.model._modules)
    other.model._modules["language_model"] = copy.deepcopy(model.model.language_model)
    quantize_(other.model.language_model, weight_only_config(bits, model.device).get_apply_tensor_subclass())
    return other


def make_models(names: list[str], ours: Any) -> dict[str, Any]:
    """The models that draw, by contender."""
    models: dict[str, Any] = {}
    for name in names:
        if name == "original":
            models[name] = ours
        elif name == "ours":
            models[name] = copy.copy(ours)
            models[name]._decoder = Decoder()
            start_half_way(models[name])
        elif name == "in_tree":
            models[name] = make_theirs(ours)
        else:
            models[name] = copy.copy(ours) if name == "compiled" else quantised(ours, name)
            models[name].compile_generation()
            start_half_way(models[name])
    return models


def run(draw: Callable[[torch.Tensor, Clock], None], ids: torch.Tensor, codes: int) -> tuple[float, list[float]]:
    """Seconds to the first code, and of every code after it."""
    clock = Clock(codes, ids.device.type)
    clock.start()
    with suppress(Enough):
        draw(ids, clock)
    between = [after - before for before, after in zip(clock.times, clock.times[1:], strict=False)]
    return between[0], between[1:]


def reading_speed(device: str) -> float:
    """Bytes per second of reading a large tensor once."""
    data = torch.ones(2**28 if not device.startswith("cuda") else 2**30, device=device)
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        data.sum().item()
        best = min(best, time.perf_counter() - start)
    return data.nbytes / best


@torch.no_grad()
def logit_errors(models: dict[str, Any], codes: int = 16) -> dict[str, tuple[float, float]]:
    """Mean and largest error of the logits after each of some given codes, against the same weights in float32.

    Every model steps as it draws: one code at a time, through its cache.
    """
    ours = next(iter(models.values()))
    ids = make_prompts(1, ours.device.type)
    forced = torch.randint(16384, (1, codes), generator=torch.Generator().manual_seed(1)).to(ids.device)
    exact = copy.deepcopy(ours.model).float()
    embeds = torch.cat([exact.embed_ids(ids), exact.embed_image_ids(forced)], dim=1)
    hidden = exact.language_model(inputs_embeds=embeds, use_cache=False).last_hidden_state
    expected = exact.generation_head(hidden[:, PROMPT - 1 : -1])
    del exact
    errors = {}
    for name, model in models.items():
        if name == "in_tree":
            cache = StaticCache(config=model.config.text_config, max_cache_len=PROMPT + 576)
            embeds, found = model.get_input_embeddings()(ids), []
            for code in forced.T[:, None]:
                hidden = model.model.language_model(inputs_embeds=embeds, past_key_values=cache).last_hidden_state
                found.append(model.model.generation_head(hidden[:, -1:]))
                embeds = model.prepare_embeddings_for_image_generation(code)
            logits = torch.cat(found, dim=1)
        else:
            logits = _forced_logits(model, ids, forced)
        difference = (logits.float() - expected).abs()
        errors[name] = (difference.mean().item(), difference.max().item())
    return errors


def _forced_logits(model: Any, ids: torch.Tensor, forced: torch.Tensor) -> torch.Tensor:
    found: list[torch.Tensor] = []

    def collect(step: int, codes: torch.Tensor) -> torch.Tensor:
        if step == forced.shape[1]:
            raise Enough
        return forced[:, step]

    # The logits of a drawing that is stopped are lost, so they are taken where they arise.
    head = model.model.generation_head
    step = model._decoder.step

    def spy(*arguments: Any) -> Any:
        drawn = step(*arguments)
        found.append(drawn[1].clone())
        return drawn

    def note_first(module: Any, _: Any, output: torch.Tensor) -> None:
        found.append(output.float())
        hook.remove()

    hook = head.register_forward_hook(note_first)
    model._decoder.step = spy
    vars(model._decoder).pop("make_cache", None)  # from the start, not from the middle
    try:
        model.generate_images(ids, guidance_scale=1.0, do_sample=False, callback=collect)
    except Enough:
        pass
    finally:
        hook.remove()
        del model._decoder.step
    return torch.cat(found[: forced.shape[1]], dim=1)


class Peak:
    """Bytes above the state at entry, of the GPU or of this process."""

    def __init__(self, device: str) -> None:
        self.cuda = device.startswith("cuda")

    def __enter__(self) -> "Peak":
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()
        else:
            self.process = PeakMemory().__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        if self.cuda:
            self.bytes = torch.cuda.max_memory_allocated() - self.before
        else:
            self.process.__exit__()
            self.bytes = self.process.peak[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("1b", "7b", "tiny"), default="1b")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--steps", type=int, default=6, help="codes per round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS[:4]))
    parser.add_argument("--output", type=Path, help="write the table here as well")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--dry-run", action="store_true")
    arguments = parser.parse_args()
    if arguments.dry_run:
        arguments.size, arguments.steps, arguments.rounds = "tiny", 2, 1
    dtype = getattr(torch, arguments.dtype)
    ours = make_ours(arguments.size, dtype, arguments.device)
    models = make_models(arguments.contenders, ours)
    drawers = {"in_tree": draw_in_tree, "original": draw_original}
    contenders = {name: drawers.get(name, draw_ours)(model) for name, model in models.items()}
    layers = ours.model.language_model.layers
    weights = sum(parameter.nbytes for parameter in layers.parameters())
    floor = weights / reading_speed(arguments.device)

    lines = [
        f"{arguments.size}, {describe_machine(arguments.device, dtype)}; floor {floor * 1e3:.0f} ms per step",
        "",
        "| pictures at once | contender | ms per step | ms per code and picture | in-tree / this | first code, ms | "
        "compiling, s | peak memory above the weights, GB |",
        "|---:|---|---:|---:|---:|---:|---:|---:|",
    ]
    print("\n".join(lines), flush=True)
    for batch_size in arguments.batch_sizes:
        ids = make_prompts(batch_size, arguments.device)
        steps: dict[str, list[float]] = {name: [] for name in contenders}
        firsts: dict[str, list[float]] = {name: [] for name in contenders}
        compiling, peaks = {}, {}
        for name, draw in contenders.items():  # warm-up: allocations, compiling
            with Peak(arguments.device) as memory:
                start = time.perf_counter()
                run(draw, ids, 2)
                compiling[name] = time.perf_counter() - start
            peaks[name] = memory.bytes
        for _ in range(arguments.rounds):
            for name, draw in contenders.items():
                first, rest = run(draw, ids, arguments.steps)
                firsts[name].append(first)
                steps[name] += rest
        medians = {name: statistics.median(values) for name, values in steps.items()}
        base = medians.get("in_tree")
        for name, median in medians.items():
            first = statistics.median(firsts[name])
            warm = compiling[name] - first - median if name not in ("in_tree", "original", "ours") else None
            row = (
                f"| {batch_size} | {name} | {median * 1e3:.1f} | {median / batch_size * 1e3:.1f} | "
                f"{'' if base is None else f'{base / median:.2f}'} | "
                f"{'' if name in ('original', 'ours') else f'{first * 1e3:.0f}'} | "
                f"{'' if warm is None else f'{warm:.0f}'} | {peaks[name] / 1e9:.2f} |"
            )
            lines.append(row)
            print(row, flush=True)
    if arguments.check:
        lines += ["", "| contender | mean error of logits against float32 | largest |", "|---|---:|---:|"]
        others = {name: model for name, model in models.items() if name not in ("ours", "original")}
        errors = logit_errors({"ours": ours} | others)
        lines += [f"| {name} | {mean:.2e} | {largest:.2e} |" for name, (mean, largest) in errors.items()]
        print("\n".join(lines[-len(errors) - 2 :]))
    if arguments.output:
        arguments.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
