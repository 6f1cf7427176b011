"""Models that `benchmarks.drawing` compares (the contenders), and the function with which each generates images."""

import copy
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from itertools import chain
from typing import Any

import torch
from transformers import JanusForConditionalGeneration
from transformers.cache_utils import Cache, DynamicCache

from janus_hf import JanusProForConditionalGeneration
from janus_hf.generation.decoders import CompiledDecoder, PlainDecoder

from .machine import now
from .peers import BOI, BOS, PAD, make_theirs
from .reporting import NotAvailable


# In this order: transformers' own Janus; the loop of deepseek-ai/Janus; this package without compilation, compiled,
# compiled with a language model quantised to int8, int4 and fp8, and with steps captured as CUDA graphs.
NAMES = ("in_tree", "original", "ours", "compiled", "int8", "int4", "fp8", "graph")
QUANTISED = ("int8", "int4", "fp8")
# Ways in which this package runs a step -> the argument `mode` of `compile_generation`.
GEARS = {"graph": "graph", "compiled": None, "compiled without CUDA graphs": "default"}
GUIDANCE = 5.0
PROMPT = 20  # number of tokens of a prompt

Draw = Callable[[torch.Tensor, "Clock"], None]
"""Generates images of prompts `(B, PROMPT)` and calls the clock after every image token."""


class Enough(Exception):  # noqa: N818  not an error
    """Exception that a callback raises to stop generation once enough image tokens are generated."""


class Clock:
    """Callback that records the time of every image token, and raises `Enough` to stop generation after some tokens.

    Attribute `times` holds times in seconds: the first is that of the clock's creation, then one per image token.

    Args:
        tokens: Number of tokens per image after which generation stops.
        device: Device of the model, which must finish its work before a time is read.
    """

    def __init__(self, tokens: int, device: str) -> None:
        self.tokens, self.device = tokens, device
        self.times = [now(device)]

    def __call__(self, *_: Any) -> None:
        self.times.append(now(self.device))
        if len(self.times) > self.tokens:
            raise Enough


def make_prompts(batch_size: int, device: str) -> torch.Tensor:
    """Return the token ids `(batch_size, PROMPT)` of random prompts, all of which have `PROMPT` tokens."""
    ids = torch.randint(10, 90000, (batch_size, PROMPT), generator=torch.Generator().manual_seed(batch_size))
    ids[:, 0], ids[:, -1] = BOS, BOI
    return ids.to(device)


def run(draw: Draw, ids: torch.Tensor, tokens: int) -> tuple[float, list[float]]:
    """Generate `tokens` image tokens for each of the prompts `ids` with the function `draw`.

    Returns:
        The seconds until the first token, and a list of the seconds that each further token took.
    """
    clock = Clock(tokens, ids.device.type)
    with suppress(Enough):
        draw(ids, clock)
    between = [after - before for before, after in zip(clock.times, clock.times[1:], strict=False)]
    return between[0], between[1:]


def draw_in_tree(model: JanusForConditionalGeneration, ids: torch.Tensor, clock: Clock) -> None:
    """Generate images of the prompts `ids` with transformers' own Janus, and call `clock` after every image token.

    Its `generate` takes no callback, so a hook on the layer that computes image logits calls the clock.
    """
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


@torch.inference_mode()
def draw_original(model: JanusProForConditionalGeneration, ids: torch.Tensor, clock: Clock) -> None:
    """Generate images of the prompts `ids` with the loop of deepseek-ai/Janus (generation_inference.py).

    The loop runs this package's layers. It interleaves conditional and unconditional rows, lets the key-value cache
    grow with every token, samples tokens with `torch.multinomial` and calls `clock` after each. The cache starts as
    long as in the middle of an image, filled with zeros.
    """
    parts, config = model.model, model.config
    rows = ids.repeat_interleave(2, dim=0)
    rows[1::2, 1:-1] = PAD
    embeds = parts.get_input_embeddings()(rows)
    cache = DynamicCache(config=config.text_config)
    _fill(cache, model, len(rows), config.vq_config.num_image_tokens // 2)
    for _ in range(config.vq_config.num_image_tokens):
        hidden = parts.language_model(inputs_embeds=embeds, use_cache=True, past_key_values=cache).last_hidden_state
        logits = parts.generation_head(hidden[:, -1])
        guided = logits[1::2] + GUIDANCE * (logits[0::2] - logits[1::2])
        drawn = torch.multinomial(guided.softmax(dim=-1), num_samples=1)
        embeds = parts.embed_image_ids(drawn.repeat_interleave(2, dim=0))
        clock()


def draw_ours(model: JanusProForConditionalGeneration, ids: torch.Tensor, clock: Clock) -> None:
    """Generate images of the prompts `ids` with this package, and call `clock` after every image token."""
    model.generate_images(ids, guidance_scale=GUIDANCE, callback=clock)


def _fill(cache: Cache, model: JanusProForConditionalGeneration, rows: int, length: int) -> None:
    """Append zeros for `length` positions to an empty key-value cache of a batch of `rows` sequences.

    Attention then takes as long as with real content.
    """
    config, weight = model.config.text_config, next(model.model.language_model.parameters())
    shape = (rows, config.num_key_value_heads, length, config.head_dim)
    zeros = torch.zeros(shape, dtype=weight.dtype, device=weight.device)
    for layer in range(config.num_hidden_layers):
        cache.update(zeros, zeros, layer)


def start_half_way(model: JanusProForConditionalGeneration) -> None:
    """Change the model so that its key-value caches start as long as in the middle of an image, filled with zeros."""
    decoder = model._decoder

    def make_cache(implementation: str, text_config: Any, rows: int, length: int) -> Cache:
        cache = type(decoder).make_cache(decoder, implementation, text_config, rows, length)
        _fill(cache, model, rows, (length - PROMPT) // 2)
        return cache

    decoder.make_cache = make_cache


def start_at_beginning(model: JanusProForConditionalGeneration) -> None:
    """Undo `start_half_way`."""
    vars(model._decoder).pop("make_cache", None)


def with_gear(model: JanusProForConditionalGeneration, gear: str) -> JanusProForConditionalGeneration:
    """Return a copy of the model that shares its weights and runs its steps in another way.

    Args:
        model: The model, which stays as it is.
        gear: "plain", or a key of `GEARS`.

    Raises:
        NotAvailable: If this machine or this version of the package cannot run steps in this way.
    """
    other = copy.copy(model)
    if gear == "plain":
        other._decoder = PlainDecoder()
        return other
    if gear == "graph" and model.device.type != "cuda":
        raise NotAvailable("needs CUDA")
    if not other.compile_generation(mode=GEARS[gear]):
        raise NotAvailable("compiling or capturing does not work here: the log says why")
    if gear == "graph" and type(other._decoder) is CompiledDecoder:
        raise NotAvailable('this version has no compile_generation(mode="graph")')
    return other


def quantised(model: JanusProForConditionalGeneration, bits: str) -> JanusProForConditionalGeneration:
    """Return a copy of the model whose language model torchao has quantised; all other weights are shared.

    Args:
        model: The model, which stays as it is.
        bits: "int8", "int4" or "fp8".

    Raises:
        NotAvailable: If this version of the package, the device or torchao cannot quantise to these bits.
    """
    from janus_hf.modeling.quantisation.weight_only import weight_only_config

    try:
        config = weight_only_config(bits, model.device)
    except (ImportError, ValueError) as error:
        raise NotAvailable(f"not available: {error}") from error
    language_model = {id(tensor) for tensor in _tensors(model.model.language_model)}
    shared = {id(tensor): tensor for tensor in _tensors(model) if id(tensor) not in language_model}
    other = copy.deepcopy(model, shared)
    from torchao.quantization import quantize_

    quantize_(other.model.language_model, config.get_apply_tensor_subclass())
    return other


def _tensors(module: torch.nn.Module) -> chain[torch.Tensor]:
    """Return an iterator over all parameters and buffers of a module."""
    return chain(module.parameters(), module.buffers())


def make_models(names: list[str], ours: JanusProForConditionalGeneration) -> dict[str, Any]:
    """Return the models of the contenders `names` by name; as far as possible they share the weights of `ours`."""
    models: dict[str, Any] = {}
    for name in names:
        if name == "original":
            models[name] = ours
        elif name == "in_tree":
            models[name] = make_theirs(ours)
        else:
            # Each of these models gets its own decoder, because `start_half_way` changes it.
            gear = {"ours": "plain", "graph": "graph"}.get(name, "compiled")
            models[name] = with_gear(quantised(ours, name) if name in QUANTISED else ours, gear)
            start_half_way(models[name])
    return models


def make_contenders(models: dict[str, Any]) -> dict[str, Draw]:
    """Return, by name, the function with which each contender generates images; `models` come from `make_models`."""
    functions: dict[str, Callable[..., None]] = {"in_tree": draw_in_tree, "original": draw_original}
    return {name: partial(functions.get(name, draw_ours), model) for name, model in models.items()}
