"""The models that `benchmarks.drawing` compares, and how each of them generates image tokens."""

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
from janus_hf.generation.decoders import PlainDecoder

from .machine import now
from .peers import BOI, BOS, PAD, make_theirs


NAMES = ("in_tree", "original", "ours", "compiled", "int8", "int4")
GUIDANCE = 5.0
PROMPT = 20  # tokens of a prompt

Draw = Callable[[torch.Tensor, "Clock"], None]
"""Generates images of prompts `(B, PROMPT)` and calls the clock after every image token."""


class Enough(Exception):  # noqa: N818  not an error
    """Raised by a callback to stop generation after enough image tokens."""


class Clock:
    """A callback that notes the time of every image token, and stops generation after `tokens` of them."""

    def __init__(self, tokens: int, device: str) -> None:
        self.tokens, self.device = tokens, device
        self.times = [now(device)]

    def __call__(self, *_: Any) -> None:
        self.times.append(now(self.device))
        if len(self.times) > self.tokens:
            raise Enough


def make_prompts(batch_size: int, device: str) -> torch.Tensor:
    """Return different random prompts of one length, `(B, PROMPT)`."""
    ids = torch.randint(10, 90000, (batch_size, PROMPT), generator=torch.Generator().manual_seed(batch_size))
    ids[:, 0], ids[:, -1] = BOS, BOI
    return ids.to(device)


def run(draw: Draw, ids: torch.Tensor, tokens: int) -> tuple[float, list[float]]:
    """Generate `tokens` image tokens; return the seconds to the first and those of every further one."""
    clock = Clock(tokens, ids.device.type)
    with suppress(Enough):
        draw(ids, clock)
    between = [after - before for before, after in zip(clock.times, clock.times[1:], strict=False)]
    return between[0], between[1:]


def draw_in_tree(model: JanusForConditionalGeneration, ids: torch.Tensor, clock: Clock) -> None:
    """Generate with transformers' own Janus, which takes no callback: a hook on the image head calls the clock."""
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
    """Generate with the loop of deepseek-ai/Janus generation_inference.py, around our layers.

    Conditional and unconditional rows are interleaved, the cache grows, and tokens are sampled with multinomial.
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
    """Generate with `generate_images`."""
    model.generate_images(ids, guidance_scale=GUIDANCE, callback=clock)


def _fill(cache: Cache, model: JanusProForConditionalGeneration, rows: int, length: int) -> None:
    """Put zeros into the first `length` positions of a cache, so that attention takes as long as with real content."""
    config, weight = model.config.text_config, next(model.model.language_model.parameters())
    shape = (rows, config.num_key_value_heads, length, config.head_dim)
    zeros = torch.zeros(shape, dtype=weight.dtype, device=weight.device)
    for layer in range(config.num_hidden_layers):
        cache.update(zeros, zeros, layer)


def start_half_way(model: JanusProForConditionalGeneration) -> None:
    """Make the model's caches start with as many positions as they have in the middle of an image, all zeros."""
    decoder = model._decoder

    def make_cache(implementation: str, text_config: Any, rows: int, length: int) -> Cache:
        cache = type(decoder).make_cache(decoder, implementation, text_config, rows, length)
        _fill(cache, model, rows, (length - PROMPT) // 2)
        return cache

    decoder.make_cache = make_cache


def quantised(model: JanusProForConditionalGeneration, bits: str) -> JanusProForConditionalGeneration:
    """Return a model with a language model of fewer bits, by torchao, that shares all other weights."""
    from torchao.quantization import quantize_

    from janus_hf.modeling.quantisation import weight_only_config

    language_model = {id(tensor) for tensor in _tensors(model.model.language_model)}
    shared = {id(tensor): tensor for tensor in _tensors(model) if id(tensor) not in language_model}
    other = copy.deepcopy(model, shared)
    quantize_(other.model.language_model, weight_only_config(bits, model.device).get_apply_tensor_subclass())
    return other


def _tensors(module: torch.nn.Module) -> chain[torch.Tensor]:
    """Return all parameters and buffers."""
    return chain(module.parameters(), module.buffers())


def make_models(names: list[str], ours: JanusProForConditionalGeneration) -> dict[str, Any]:
    """Return the model of every contender; as far as possible they share the weights of `ours`."""
    models: dict[str, Any] = {}
    for name in names:
        if name == "original":
            models[name] = ours
        elif name == "in_tree":
            models[name] = make_theirs(ours)
        else:
            models[name] = quantised(ours, name) if name in ("int8", "int4") else copy.copy(ours)
            # A decoder of its own, because `start_half_way` changes it.
            if name == "ours":
                models[name]._decoder = PlainDecoder()
            else:
                models[name].compile_generation()
            start_half_way(models[name])
    return models


def make_contenders(models: dict[str, Any]) -> dict[str, Draw]:
    """Return the function with which every contender generates."""
    functions: dict[str, Callable[..., None]] = {"in_tree": draw_in_tree, "original": draw_original}
    return {name: partial(functions.get(name, draw_ours), model) for name, model in models.items()}
