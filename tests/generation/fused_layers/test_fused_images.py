"""Steps with few kernels generate the images of the plain loop."""

import copy
import pickle

import pytest
import torch
from image_prompts import LONG, OTHER, K, P, left_padded, seeds
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers.cache_utils import StaticCache

from janus_hf.generation import draw_reference
from janus_hf.generation.decoders import decode_step
from janus_hf.generation.decoders.fused_layers import FusedModel, fuse
from janus_hf.generation.sampling import Draw, Sampling, draw_keys


CPU = torch.device("cpu")
ROUNDING = {"rtol": 1e-5, "atol": 1e-4}  # guidance multiplies the rounding errors of logits by nine


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"guidance_scale": 1.0},
        {"speculative_window": 4},
        {"speculative_window": 3, "guidance_scale": 1.0},
        {"cache_implementation": "dynamic"},
        {"cache_implementation": "dynamic", "speculative_window": 4},
        {"top_k": 5, "top_p": 0.9, "temperature": 0.7},
        {"do_sample": False},
    ],
    ids=str,
)
@pytest.mark.parametrize("padded", [True, False], ids=["padded", "not padded"])
def test_images_are_the_plain_ones(tiny_model, mixed, images_of, settings, padded):
    prompts = mixed if padded else (torch.tensor([LONG, OTHER, LONG]), None)
    plain, fused = (
        images_of(tiny_model, *prompts, fused=fused, generator=seeds(1, 2, 3), **settings) for fused in (False, True)
    )
    assert torch.equal(fused, plain)


def test_images_equal_the_reference(tiny_model, prompts, images_of):
    generated = images_of(tiny_model, prompts, generator=seeds(4, 5))
    assert torch.equal(generated, draw_reference(tiny_model, prompts, keys=draw_keys(2, seeds(4, 5), CPU)))


@pytest.mark.parametrize("window", [1, 4])
def test_given_tokens_and_replaced_tokens(tiny_model, mixed, images_of, window):
    given = torch.randint(K, (3, 3), generator=torch.Generator().manual_seed(0))

    def replace(position, tokens):
        return (tokens[:, -1] + 1) % K if position in (5, 6, 11) else None

    settings = {"image_ids": given, "callback": replace, "speculative_window": window}
    plain, fused = (
        images_of(tiny_model, *mixed, fused=fused, generator=seeds(1, 2, 3), **settings) for fused in (False, True)
    )
    assert torch.equal(fused, plain)


ROPE = [
    {"rope_type": "linear", "factor": 2.0},
    {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    | {"original_max_position_embeddings": 32},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
    {"rope_type": "dynamic", "factor": 2.0},
    {"rope_type": "longrope", "factor": 4.0, "original_max_position_embeddings": 12}
    | {"short_factor": [1.0] * 6, "long_factor": [1.5] * 6},
]


@pytest.mark.parametrize(
    "text",
    [
        {"num_key_value_heads": 4},
        {"num_key_value_heads": 1},
        {"head_dim": 8},
        {"head_dim": 32, "num_key_value_heads": 1},
        {"attention_bias": True},
        {"mlp_bias": True},
        {"hidden_act": "gelu"},
        {"num_hidden_layers": 5},
        {"rms_norm_eps": 0.1},
        {"max_position_embeddings": 23},  # prompt and image fill the context
        *({"rope_parameters": {"rope_theta": 100.0, **rope}} for rope in ROPE),
    ],
    ids=str,
)
@pytest.mark.parametrize("window", [1, 3])
def test_every_kind_of_llama(make_model, tiny_config, mixed, images_of, text, window):
    model = make_model(tiny_config(text=text))
    with torch.no_grad():
        for name, weight in model.model.language_model.named_parameters():
            if name.endswith((".bias", "norm.weight")):  # zeros and ones would hide mistakes
                weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(len(name))) / 3)
    plain, fused = (
        images_of(model, *mixed, fused=fused, generator=seeds(1, 2, 3), speculative_window=window)
        for fused in (False, True)
    )
    assert torch.equal(fused, plain)
    assert len(plain.unique()) > 2


def make_step(model, tokens, four_dimensional, seed=0):
    """A static cache with seven positions of two prompts, the first padded by two, and the arguments of a step."""
    text, generator = model.config.text_config, torch.Generator().manual_seed(seed)
    cache, dtype = StaticCache(config=text, max_cache_len=20), model.language_model.dtype
    width = text.hidden_size // text.num_attention_heads
    for layer in range(text.num_hidden_layers):
        prompt = torch.randn(2, 2, text.num_key_value_heads, 7, width, generator=generator).to(dtype)
        cache.update(*prompt, layer)
    mask = torch.ones(2, 20, dtype=torch.long)
    mask[0, :2] = 0
    if four_dimensional:
        fed = 7 + torch.arange(tokens)
        mask = mask.bool()[:, None, None] & (torch.arange(20) <= fed[:, None])
    draw = Draw(draw_keys(1, seeds(1), CPU), torch.tensor(5.0), Sampling.make(True, 1.0, None, None, CPU))
    ids = torch.randint(K, (1, tokens), generator=generator)
    return cache, (ids, mask, torch.tensor([[5], [7]]), torch.arange(1, 1 + tokens), draw)


@torch.no_grad()
@pytest.mark.parametrize("four_dimensional", [False, True], ids=["mask", "visible positions"])
@pytest.mark.parametrize("tokens", [1, 3])
@pytest.mark.parametrize("joined", [True, False])
def test_steps_on_a_static_cache(tiny_model, four_dimensional, tokens, joined):
    """Three steps leave the same keys, values and length in the cache."""
    found = []
    for model in (tiny_model.model, FusedModel(tiny_model.model, joined=joined)):
        cache, step = make_step(tiny_model.model, tokens, four_dimensional)
        outputs = []
        for _ in range(1 if four_dimensional else 3):
            outputs.append(decode_step(model, cache, *step))
        written = int(cache.get_seq_length())
        found.append((outputs, [(layer.keys, layer.values) for layer in cache.layers], written))
        assert [int(layer.cumulative_length) for layer in cache.layers] == [written] * len(cache.layers)
    (plain, stored, written), (fused, also_stored, also_written) = found
    assert written == also_written == 7 + tokens * len(plain)
    for one, other in zip(plain, fused, strict=True):
        assert torch.equal(one.tokens, other.tokens)
        torch.testing.assert_close(one.logits, other.logits, **ROUNDING)
    torch.testing.assert_close(also_stored, stored)


class Tape(TorchDispatchMode):
    """Records operators, and runs them again on the same tensors as a CUDA graph does: without Python."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        self.calls.append((function, args, kwargs or {}, output))
        return output

    def replay(self):
        for function, args, kwargs, output in self.calls:
            for old, new in zip(tree_leaves(output), tree_leaves(function(*args, **kwargs)), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


@torch.no_grad()
@pytest.mark.parametrize("tokens", [1, 3])
def test_a_replayed_step_is_the_step(make_model, tokens):
    """With other tokens, lengths and positions, and after weights were written to and copied again."""
    model = make_model().model
    fused = fuse(model)
    cache, static = make_step(model, tokens, False)
    tape = Tape()
    with tape:
        output = decode_step(fused, cache, *static)
    for seed in (1, 2, 3):
        plain_cache, step = make_step(model, tokens, False, seed=seed)
        for target, source in zip(cache.layers, plain_cache.layers, strict=True):
            target.keys.copy_(source.keys)
            target.values.copy_(source.values)
            target.cumulative_length.copy_(source.cumulative_length)
        for _ in range(2):
            for target, source in zip(static[:4], step[:4], strict=True):
                target.copy_(source)
            tape.replay()
            expected = decode_step(model, plain_cache, *step)
            assert torch.equal(output.tokens, expected.tokens)
            torch.testing.assert_close(output.logits, expected.logits, **ROUNDING)
            step[3].add_(tokens)
        model.language_model.layers[0].self_attn.q_proj.weight.mul_(-1)
        model.language_model.layers[1].mlp.down_proj.weight.add_(0.1)
        assert fuse(model, fused) is fused


def test_weights_that_are_inference_tensors(make_model, mixed, images_of):
    with torch.inference_mode():
        model = make_model()
    expected = images_of(model, *mixed, fused=False, generator=seeds(1, 2, 3))
    assert torch.equal(images_of(model, *mixed, generator=seeds(1, 2, 3)), expected)


@torch.no_grad()
def test_another_dtype_of_the_embeddings_runs_the_layers_of_transformers(make_model):
    model = make_model().model
    model.generation_aligner.to(torch.float64)
    model.generation_embeddings.to(torch.float64)
    model.language_model.layers.to(torch.float64)
    model.generation_head.to(torch.float64)
    outputs = []
    for one in (model, FusedModel(model, joined=True)):
        cache, step = make_step(model, 1, False)
        for layer in cache.layers:
            layer.keys, layer.values = layer.keys.double(), layer.values.double()
        outputs.append(decode_step(one, cache, *step))
    assert torch.equal(outputs[0].logits, outputs[1].logits)


@torch.no_grad()
def test_half_precision_is_no_further_from_float32_than_plain_steps(make_model, mixed, images_of):
    exact = make_model()
    half = copy.deepcopy(exact).bfloat16()
    exact.load_state_dict(half.state_dict())
    forced = torch.randint(K, (P, 3), generator=torch.Generator().manual_seed(0))

    def logits(model, fused):
        output = images_of(
            model,
            *mixed,
            fused=fused,
            callback=lambda step, tokens: forced[step],
            output_logits=True,
            return_dict_in_generate=True,
        )
        return output.logits

    expected = logits(exact, False)
    plain, fused = ((logits(half, fused) - expected).abs().mean().item() for fused in (False, True))
    assert 0 < fused <= plain


def test_a_model_that_has_generated_can_be_copied_and_pickled(make_model, mixed, images_of):
    model = make_model()
    model.compile_generation(False)  # gives the model a decoder of its own
    expected = images_of(model, *mixed, generator=seeds(1, 2, 3))
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(images_of(other, *mixed, generator=seeds(1, 2, 3)), expected)


def test_batches_of_other_sizes_may_alternate(tiny_model, mixed, images_of):
    """A callback that generates images itself has a batch of its own."""
    small = left_padded(OTHER)

    def nested(position, tokens):
        if position == 3:
            inner.append(tiny_model.generate_images(*small, generator=seeds(9)))

    inner: list[torch.Tensor] = []
    plain = images_of(tiny_model, *mixed, fused=False, generator=seeds(1, 2, 3), callback=nested)
    fuse_once = FusedModel(tiny_model.model, joined=True)
    assert fuse(tiny_model.model, fuse_once) is fuse_once
    inner_plain = inner.pop()
    assert torch.equal(images_of(tiny_model, *mixed, generator=seeds(1, 2, 3)), plain)
    assert torch.equal(images_of(tiny_model, *small, generator=seeds(9)), inner_plain)
