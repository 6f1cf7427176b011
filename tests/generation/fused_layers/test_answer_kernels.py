"""The number of kernels that an answer launches on a GPU, against transformers' own Janus, counted on a CPU."""

from contextlib import nullcontext

import pytest
import torch
from benchmarks import peers
from kernel_counts import KernelCount

from graph_emulator import EmulatedGraph
from janus_hf.generation.decoders import CapturedDecoder, plain
from janus_hf.generation.text import answer_steps


LONG = 13  # tokens of the longest answer; all lengths share one graph


def count_tokens(model, inputs, tokens, *, steps):
    """Count the kernels of an answer with this number of tokens."""
    length = inputs["input_ids"].shape[1] + LONG
    with model.answer_cache(length) if steps else nullcontext() as cache, KernelCount() as count:
        own = {"past_key_values": cache} if steps else {}
        model.generate(**inputs, **own, do_sample=False, min_new_tokens=tokens, max_new_tokens=tokens)
    return count.total


def count_kernels(model, inputs, *, steps):
    """Return the kernels until the first token, and those of every later token."""
    first, short, long = (count_tokens(model, inputs, tokens, steps=steps) for tokens in (1, LONG - 8, LONG))
    assert (long - short) % 8 == 0
    return first, (long - short) // 8


@pytest.fixture(scope="module")
def counts():
    """Contender -> kernels until the first token and of every later token, for two and three layers."""
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        for layers in (2, 3):
            patch.setitem(peers.SIZES, "dry", peers.SIZES["dry"] | {"num_hidden_layers": layers})
            ours = peers.make_ours("dry", torch.bfloat16, "cpu")
            vision = ours.config.vision_config
            image = [peers.IMAGE] * vision.num_image_tokens
            ids = torch.tensor([[peers.BOS, peers.BOI, *image, 10, 11, 12]])
            pixels = torch.zeros(1, 3, vision.image_size, vision.image_size)
            inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}
            found["in-tree", layers] = count_kernels(peers.make_theirs(ours), inputs, steps=False)
            for module in (plain, answer_steps):
                patch.setattr(module, "few_kernels_pay", lambda device: True)
            found["plain", layers] = count_kernels(ours, inputs, steps=True)
            ours._decoder = CapturedDecoder(graph_class=EmulatedGraph)
            count_tokens(ours, inputs, LONG, steps=True)  # captures the graph and checks its first replay
            with patch.context() as without:
                without.setattr(EmulatedGraph, "replay", lambda graph: None)
                found["captured", layers] = count_kernels(ours, inputs, steps=True)
    return found


@pytest.mark.parametrize(
    ("contender", "per_layer", "around"), [("in-tree", 41, 53), ("plain", 15, 42), ("captured", 0, 38)]
)
def test_kernels_of_a_token(counts, contender, per_layer, around):
    """The documented numbers (docs/speed.md). Those of other versions of torch and transformers may differ."""
    two, three = (counts[contender, layers][1] for layers in (2, 3))
    assert three - two == per_layer
    assert two - 2 * per_layer == around


def test_no_more_kernels_until_the_first_token(counts):
    for layers in (2, 3):
        theirs = counts["in-tree", layers][0]
        assert counts["plain", layers][0] == counts["captured", layers][0] <= theirs
