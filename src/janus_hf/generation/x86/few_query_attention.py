"""Attention of a drawing step on an x86 CPU.

PyTorch's kernel attends to a static cache over its whole length, most of which is empty for most of a picture, and
multiplies bfloat16 matrices of one row, for which no processor is made.

`R` rows, `H` heads, `G` heads of keys and values, `n` queries, `L` positions, `D` width of a head.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from .cpu_kernels import block_size, masked_attention


NAME = "janus_few_queries"
_FEW = 8  # with 16, PyTorch's kernel, which multiplies matrices, takes up to a quarter less time


def few_queries_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention interface. What the kernel is not made for is left to PyTorch's: many queries, no mask,
    other dtypes, odd widths.

    Args:
        query: `(R, H, n, D)`.
        key, value: `(R, G, L, D)`.
        attention_mask: `(R, 1, n, L)` bool, True where attention may go.

    Returns:
        `(R, n, H, D)` in the query's dtype, and None.
    """
    queries, width = query.shape[2:]
    fits = key.dtype in (torch.float32, torch.bfloat16) and width % block_size() == 0
    if not fits or queries > _FEW or attention_mask is None:
        output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
        return output, None
    scale = width**-0.5 if scaling is None else scaling
    visible = attention_mask.expand(len(query), 1, queries, key.shape[2]).squeeze(1)
    return masked_attention(query.float(), key, value, visible, scale).to(query.dtype), None


AttentionInterface.register(NAME, few_queries_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


@contextmanager
def attending_with_few_queries(language_model: Any) -> Iterator[None]:
    """Within, the language model attends by `few_queries_attention`."""
    config = language_model.config
    before = config._attn_implementation
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before


__all__ = ["attending_with_few_queries", "few_queries_attention"]
