"""Attention as sums is PyTorch's attention."""

from types import SimpleNamespace

import pytest
import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from janus_hf.generation.attention import single_query_attention


@pytest.mark.parametrize("groups", [4, 2, 1], ids=lambda groups: f"{groups} heads of keys")
@pytest.mark.parametrize("queries", [1, 3])
def test_it_is_the_kernels(groups, queries):
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 4, queries, 16), torch.randn(3, groups, 20, 16), torch.randn(3, groups, 20, 16)
    mask = torch.rand(3, 1, queries, 20) > 0.4
    mask[..., 0] = True  # somewhere to go for every query
    module = SimpleNamespace(num_key_value_groups=4 // groups, is_causal=True)
    expected, _ = sdpa_attention_forward(module, query, key, value, mask, scaling=0.3)
    found, weights = single_query_attention(module, query, key, value, mask, scaling=0.3)
    assert weights is None
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)  # sums of 20 float32 products in another order


def test_half_precision_counts_in_float32():
    torch.manual_seed(0)
    query, key, value = torch.randn(2, 4, 1, 16), torch.randn(2, 4, 50, 16), torch.randn(2, 4, 50, 16)
    mask = torch.ones(2, 1, 1, 50, dtype=torch.bool)
    halves = [tensor.bfloat16() for tensor in (query, key, value)]
    exact, _ = single_query_attention(None, *(tensor.float() for tensor in halves), mask)
    found, _ = single_query_attention(None, *halves, mask)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, exact.bfloat16())  # rounded once, at the end


@pytest.mark.slow
def test_compiled_the_query_is_computed_once():
    """The cosine of a position in the loop over all keys is what made this attention four times slower."""
    from torch._inductor.utils import run_and_get_code

    def attend(x, position, key, value, mask):
        return single_query_attention(None, x * (position * x).cos(), key, value, mask)[0]

    torch.manual_seed(0)
    x, position = torch.randn(2, 4, 1, 16), torch.randn(2, 1, 1, 16)
    key, value = torch.randn(2, 4, 100, 16).bfloat16(), torch.randn(2, 4, 100, 16).bfloat16()
    mask = torch.ones(2, 1, 1, 100, dtype=torch.bool)
    arguments = (x, position, key, value, mask)
    found, (code,) = run_and_get_code(torch.compile(attend, fullgraph=True, dynamic=False), *arguments)
    torch.testing.assert_close(found, attend(*arguments), rtol=0, atol=1e-5)  # the order of sums
    before, _, loops = code.partition(".cos()")
    assert loops, "the query's cosine is not in the code"
    assert "(100L)" not in before  # no loop over the keys is open around it
    assert "(100L)" in loops
