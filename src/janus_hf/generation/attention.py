"""Attention of a single query to a long cache, for compiled steps on processors without bfloat16 units.

PyTorch's kernel multiplies bfloat16 matrices there, which is slow for a matrix of one row. Written as sums, the
compiler turns it into loops that read the cache once and count in float32.

`R` rows, `H` heads, `G` heads of keys and values, `n` queries, `L` positions, `D` width of a head.
"""

import math
from typing import Any

import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask


NAME = "janus_single_query"


def single_query_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention interface; several queries, or no mask, are left to PyTorch's kernel.

    Args:
        query: `(R, H, n, D)`.
        key, value: `(R, G, L, D)`.
        attention_mask: `(R, 1, n, L)` bool, True where attention may go.

    Returns:
        `(R, n, H, D)` in the query's dtype, and None.
    """
    if query.shape[2] != 1 or attention_mask is None:
        output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
        return output, None
    rows, heads, _, width = query.shape
    groups, length = key.shape[1:3]
    grouped = _computed_once(query.float()).view(rows, groups, heads // groups, 1, width)
    products = grouped * key[:, :, None].float()
    scores = _sum(products, dim=-1, fold=2) * (width**-0.5 if scaling is None else scaling)
    visible = attention_mask.view(rows, 1, 1, length)
    scores = scores.masked_fill(~visible, float("-inf"))
    weights = (scores - scores.amax(dim=-1, keepdim=True)).exp()
    # Divided after the sum: a division for every weight and number of the value costs more than reading the cache.
    output = _sum(weights[..., None] * value[:, :, None].float(), dim=-2, fold=4) / weights.sum(dim=-1, keepdim=True)
    return output.view(rows, 1, heads, width).to(query.dtype), None


def _sum(x: torch.Tensor, dim: int, fold: int) -> torch.Tensor:
    """Sum over a dimension, its loop unrolled by `fold` where that divides: fewer sums wait for each other."""
    fold = math.gcd(x.shape[dim], fold)
    return x.unflatten(dim, (fold, -1) if dim == -1 else (-1, fold)).sum(dim=-2).sum(dim=dim)


def _computed_once(x: torch.Tensor) -> torch.Tensor:
    """The same numbers, in memory. Else the compiler computes the query, sines and cosines of its position included,
    anew for every key; `as_strided` is an operation that it writes its input to memory for.
    """
    x = x.contiguous()
    return x.as_strided(x.shape, x.stride())


AttentionInterface.register(NAME, single_query_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


def attend_singly(language_model: Any) -> None:
    """From now on the language model attends by `single_query_attention`."""
    language_model.config._attn_implementation = NAME


__all__ = ["NAME", "attend_singly", "single_query_attention"]
