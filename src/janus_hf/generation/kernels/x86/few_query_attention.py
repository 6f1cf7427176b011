"""Attention for the few queries of a generation step on an x86 CPU, as an attention function of transformers.

PyTorch's kernel attends to a static cache over its whole length, most of which is empty while most of an image is
generated. For bfloat16 it also multiplies matrices of one row, which no processor does fast.

In shapes, `R` is the number of rows (sequences), `H` of query heads, `G` of key and value heads, `n` of queries per
row, `L` of positions, and `D` the width of a head.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from .cpu_kernels import block_size, masked_attention


NAME = "janus_few_queries"
# Largest number of queries for this package's kernel. With 16 queries, PyTorch's kernel, which multiplies matrices,
# takes up to a quarter less time.
_FEW = 8


def few_queries_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **kwargs: object,
) -> tuple[torch.Tensor, None]:
    """Compute attention with this package's kernel if it supports the inputs, and with PyTorch's kernel otherwise.

    PyTorch's kernel is used for more than 8 queries, without a mask, for dtypes other than float32 and bfloat16, and
    for widths of a head that are no multiple of `block_size()`. transformers calls this function through its attention
    interface. `R` is the number of rows (sequences), `H` of query heads, `G` of key and value heads, `n` of queries
    per row, `L` of positions, and `D` the width of a head.

    Args:
        module: The attention layer.
        query: `(R, H, n, D)`.
        key: `(R, G, L, D)`.
        value: `(R, G, L, D)`.
        attention_mask: `(R, 1, n, L)` or `(1, 1, n, L)` bool, True where a query may attend; or None.
        scaling: Factor by which scores are multiplied; None is `D ** -0.5`.
        kwargs: Further arguments of PyTorch's kernel.

    Returns:
        Output `(R, n, H, D)` in the query's dtype, and None in place of attention weights.
    """
    queries, width = query.shape[2:]
    fits = key.dtype in (torch.float32, torch.bfloat16) and width % block_size() == 0
    if not fits or queries > _FEW or attention_mask is None:
        output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
        return output, None
    scale = width**-0.5 if scaling is None else scaling
    # The kernel takes the cache's keys and values as they are and converts them while it reads.
    visible = attention_mask.expand(len(query), 1, queries, key.shape[2]).squeeze(1)
    return masked_attention(query.float(), key, value, visible, scale).to(query.dtype), None


AttentionInterface.register(NAME, few_queries_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


@contextmanager
def attending_with_few_queries(language_model: PreTrainedModel) -> Iterator[None]:
    """Make the language model compute attention with `few_queries_attention` inside the context."""
    # The public `set_attn_implementation` has no getter to restore from, and setting and restoring by it takes 71
    # microseconds of every step instead of 21.
    config = language_model.config
    before = config._attn_implementation
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before


__all__ = ["attending_with_few_queries", "few_queries_attention"]
