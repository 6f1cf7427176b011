"""Cross-entropy that never holds the logits of a whole sequence."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint


# 1024 rows of 102400 float32 logits are 0.4 GB (a 4096-token sequence at once would be 1.6 GB, its gradient as much
# again).
CHUNK_SIZE = 1024


def chunked_cross_entropy(
    head: Callable[[torch.Tensor], torch.Tensor],
    hidden_states: torch.Tensor,
    labels: torch.Tensor,
    *,
    chunk_size: int = CHUNK_SIZE,
) -> torch.Tensor:
    """Sum of the cross-entropies of `head(hidden_states)` against `labels`, in float32.

    Each chunk's logits are computed, reduced and dropped; the backward pass computes them again. `head` is called as a
    module, never read for its weight, so that wrappers around it (LoRA, FSDP, quantisation) take part.

    Args:
        head: `(N, D)` -> `(N, classes)`.
        hidden_states: `(N, D)`. `N` may be 0: the head then sees one row with weight zero, so that every rank of a
            distributed run touches every parameter.
        labels: `(N,)` int64 in `[0, classes)`.
        chunk_size: Rows per chunk.

    Returns:
        A float32 scalar.
    """
    if len(labels) == 0:
        return head(hidden_states.new_zeros(1, hidden_states.shape[-1])).float().sum() * 0.0

    def chunk_loss(chunk: torch.Tensor, chunk_labels: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(head(chunk).float(), chunk_labels, reduction="sum")

    total = hidden_states.new_zeros((), dtype=torch.float32)
    for chunk, chunk_labels in zip(hidden_states.split(chunk_size), labels.split(chunk_size), strict=True):
        if torch.is_grad_enabled():
            total = total + checkpoint(chunk_loss, chunk, chunk_labels, use_reentrant=False)
        else:
            total = total + chunk_loss(chunk, chunk_labels)
    return total
