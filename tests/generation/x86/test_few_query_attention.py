"""The kernel for few queries computes what PyTorch's attention computes."""

from types import SimpleNamespace

import pytest
import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from janus_hf.generation.kernels.x86 import few_query_attention as attention
from janus_hf.generation.kernels.x86.cpu_kernels import kernels_fit, masked_attention
from janus_hf.generation.kernels.x86.few_query_attention import few_queries_attention


pytestmark = pytest.mark.skipif(
    not kernels_fit(torch.device("cpu")), reason="the kernel is for processors with AVX2 or AVX-512"
)


def make_inputs(rows, heads, groups, queries, length, width):
    """Return random query, key, value and mask; every query may attend somewhere."""
    torch.manual_seed(0)
    query = torch.randn(rows, queries, heads, width).transpose(1, 2)  # with the strides that a model's query has
    key, value = torch.randn(rows, groups, length, width), torch.randn(rows, groups, length, width)
    mask = torch.rand(rows, 1, queries, length) > 0.4
    mask[..., :2] = False  # padding
    mask[..., length // 2] = True  # every query may attend here
    mask[..., length // 2 + 3 :] = False  # not written yet
    return query, key, value, mask


@pytest.mark.parametrize("groups", [4, 2, 1], ids=lambda groups: f"{groups} heads of keys")
@pytest.mark.parametrize("queries", [1, 3, 8])
@pytest.mark.parametrize(("length", "width"), [(20, 32), (67, 96), (300, 128), (16, 256)])
def test_the_kernel_equals_pytorchs(groups, queries, length, width, monkeypatch):
    query, key, value, mask = make_inputs(3, 4, groups, queries, length, width)
    module = SimpleNamespace(num_key_value_groups=4 // groups, is_causal=True)
    expected, _ = sdpa_attention_forward(module, query, key, value, mask, scaling=0.3)
    monkeypatch.setattr(attention, "sdpa_attention_forward", None)
    found, weights = few_queries_attention(module, query, key, value, mask, scaling=0.3)
    assert weights is None
    # Scores are sums of up to 256 float32 products and may reach 20, where neighbouring float32 values differ by 2e-6.
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_the_scale_is_one_over_the_root_of_the_width_unless_given():
    query, key, value, mask = make_inputs(2, 2, 2, 1, 20, 32)
    default, _ = few_queries_attention(None, query, key, value, mask)
    assert torch.equal(default, few_queries_attention(None, query, key, value, mask, scaling=32**-0.5)[0])


def test_half_precision_is_summed_in_float32():
    query, key, value, mask = make_inputs(2, 4, 4, 1, 50, 64)
    halves = [tensor.bfloat16() for tensor in (query, key, value)]
    exact, _ = few_queries_attention(None, *(tensor.float() for tensor in halves), mask)
    found, _ = few_queries_attention(None, *halves, mask)
    assert found.dtype == torch.bfloat16
    # The result is rounded once, at the end. Both are sums of the same 50 numbers, in another order.
    torch.testing.assert_close(found.float(), exact, rtol=2**-8, atol=1e-5)


def test_a_row_does_not_depend_on_its_batch():
    query, key, value, mask = make_inputs(5, 4, 4, 2, 50, 64)
    together, _ = few_queries_attention(None, query, key, value, mask)
    alone, _ = few_queries_attention(None, query[3:4], key[3:4], value[3:4], mask[3:4])
    assert torch.equal(alone, together[3:4])
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert torch.equal(few_queries_attention(None, query, key, value, mask)[0], together)
    finally:
        torch.set_num_threads(threads)


def test_one_mask_for_all_rows():
    query, key, value, mask = make_inputs(3, 4, 4, 2, 50, 64)
    each, _ = few_queries_attention(None, query, key, value, mask[:1].repeat(3, 1, 1, 1))
    assert torch.equal(few_queries_attention(None, query, key, value, mask[:1])[0], each)


def test_hidden_positions_are_not_read():
    """Unwritten positions of a cache may hold NaN, which even a weight of 0 would carry into the result."""
    query, key, value, mask = make_inputs(2, 4, 4, 1, 50, 64)
    expected, _ = few_queries_attention(None, query, key, value, mask)
    for tensor in (key, value):
        tensor[:, :, 28:] = torch.nan
        tensor[:, :, :2] = torch.nan
    assert torch.equal(few_queries_attention(None, query, key, value, mask)[0], expected)


def test_a_query_without_visible_positions_gives_zeros():
    query, key, value, mask = make_inputs(2, 4, 4, 1, 50, 64)
    mask[1] = False
    found, _ = few_queries_attention(None, query, key, value, mask)
    assert found[0].any()
    assert not found[1].any()


def test_tensors_that_do_not_fit_are_refused():
    query, key, value, mask = make_inputs(2, 4, 4, 1, 50, 64)
    for wrong in (
        (query.bfloat16(), key, value, mask[:, 0]),
        (query, key[:, :, 1:], value, mask[:, 0]),
        (query, key, value.bfloat16(), mask[:, 0]),
        (query, key, value, mask[:, 0].float()),
        (query, key, value, mask[:, 0, :, 1:]),
    ):
        with pytest.raises(ValueError, match="must fit each other and the kernel.*got torch.*float"):
            masked_attention(*wrong, 1.0)


@pytest.mark.parametrize(
    ("change", "queries", "width"),
    [(lambda x: x.half(), 1, 32), (lambda x: x.float(), 9, 32), (lambda x: x.float(), 1, 20)],
    ids=["another dtype", "many queries", "an odd width"],
)
def test_other_inputs_use_pytorchs_kernel(change, queries, width):
    query, key, value, mask = make_inputs(2, 4, 4, queries, 40, width)
    tensors = [change(tensor) for tensor in (query, key, value)]
    module = SimpleNamespace(num_key_value_groups=1, is_causal=True)
    expected, _ = sdpa_attention_forward(module, *tensors, mask)
    assert torch.equal(few_queries_attention(module, *tensors, mask)[0], expected)
    unmasked, _ = sdpa_attention_forward(module, *tensors, None)
    assert torch.equal(few_queries_attention(module, *tensors, None)[0], unmasked)
