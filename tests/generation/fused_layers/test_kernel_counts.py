"""The number of kernels that a step launches on a GPU, counted on a CPU."""

import pytest
import torch
from image_prompts import K
from kernel_counts import KernelCount
from transformers.cache_utils import StaticCache

from janus_hf.generation.cache import PreallocatedCache
from janus_hf.generation.decoders import decode_step
from janus_hf.generation.decoders.fused_layers import FusedModel
from janus_hf.generation.sampling import Draw, NoiseAhead, Sampling


WIDTH, LENGTH, PROMPT = 64, 64, 7
CPU = torch.device("cpu")


@torch.no_grad()
def count_kernels(model, cache, *, padded=True, fed=1, fused=True, joined=True):
    """Count the kernels of a step in bfloat16 with guidance, by operator."""
    text = model.config.text_config
    heads = torch.zeros(2, text.num_key_value_heads, PROMPT, WIDTH // text.num_attention_heads, dtype=torch.bfloat16)
    for layer in range(text.num_hidden_layers):
        cache.update(heads, heads, layer)
    mask = torch.ones(2, cache.get_mask_sizes(fed, 0)[0], dtype=torch.long) if padded else None
    keys = torch.zeros(1, 2, dtype=torch.long)
    noise = NoiseAhead(keys, K).at(1, fed) if fused else None
    draw = Draw(keys, torch.tensor(5.0), Sampling.make(True, 1.0, None, None, CPU), noise)
    step = (torch.zeros(1, fed, dtype=torch.long), mask, torch.full((2, 1), PROMPT), torch.arange(1, 1 + fed), draw)
    step_model = FusedModel(model, joined=joined) if fused else model
    with KernelCount() as count:
        decode_step(step_model, cache, *step)
    assert "aten::_local_scalar_dense" not in count.by_operator, "the step waits for the device"
    return count.total


@pytest.fixture(scope="module")
def models(make_model, tiny_config):
    """Models of Janus-Pro's kind with two and three layers, in bfloat16."""
    return [
        make_model(
            tiny_config(
                text={"hidden_size": WIDTH, "num_key_value_heads": 4, "num_hidden_layers": layers},
                vision={"projection_dim": WIDTH},
                vq={"projection_dim": WIDTH, "num_hidden_layers": 2},
            )
        )
        .bfloat16()
        .model
        for layers in (2, 3)
    ]


@pytest.mark.parametrize(
    ("cache", "settings", "per_layer", "around"),
    [
        # as captured in a graph
        (StaticCache, {"fused": False}, 46, 92),
        (StaticCache, {}, 14, 27),
        (StaticCache, {"joined": False}, 19, 27),
        (StaticCache, {"fed": 4}, 14, 29),
        # as plain steps
        (PreallocatedCache, {"fused": False, "padded": False}, 41, 80),
        (PreallocatedCache, {"padded": False}, 15, 20),
        (PreallocatedCache, {}, 14, 25),
        (PreallocatedCache, {"fed": 4}, 14, 30),
    ],
)
def test_kernels_of_a_step(models, cache, settings, per_layer, around):
    """The documented numbers (docs/speed.md). Those of other versions of torch and transformers may differ."""
    two, three = (count_kernels(model, cache(model.config.text_config, LENGTH), **settings) for model in models)
    assert three - two == per_layer
    assert two - 2 * per_layer == around


def test_noise_ahead_takes_no_kernels_in_most_steps():
    noise = NoiseAhead(torch.zeros(1, 2, dtype=torch.long), K)
    with KernelCount() as count:
        noise.at(0, 1)
    assert count.total > 30
    with KernelCount() as count:
        for position in range(1, 100):
            noise.at(position, 1)
    assert count.total == 0
