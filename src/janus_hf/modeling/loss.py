"""Cross-entropy that never holds the logits of a whole sequence."""

from collections.abc import Callable

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint
from transformers.integrations import is_deepspeed_zero3_enabled


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
            distributed run touches every parameter, in the forward and in the backward pass.
        labels: `(N,)` int64 in `[0, classes)`.
        chunk_size: Rows per chunk.

    Returns:
        A float32 scalar.
    """

    def chunk_loss(chunk: torch.Tensor, chunk_labels: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(head(chunk).float(), chunk_labels, reduction="sum")

    chunks = list(zip(hidden_states.split(chunk_size), labels.split(chunk_size), strict=True)) if len(labels) else []
    # A zero row that comes of the hidden states: gradients (of zero) flow back through it as through any other row.
    idle = (hidden_states[:0].sum(dim=0, keepdim=True), labels.new_zeros(1))
    idle_calls = _num_calls(len(chunks), labels.device) - len(chunks)

    total = hidden_states.new_zeros((), dtype=torch.float32)
    for weight, (chunk, chunk_labels) in [*((1.0, chunk) for chunk in chunks), *[(0.0, idle)] * idle_calls]:
        if torch.is_grad_enabled():
            total = total + weight * checkpoint(chunk_loss, chunk, chunk_labels, use_reentrant=False)
        else:
            total = total + weight * chunk_loss(chunk, chunk_labels)
    return total


def _num_calls(num_chunks: int, device: torch.device) -> int:
    """How often the head is called: at least once. ZeRO-3 gathers its weight at every call, which takes all ranks."""
    if not (is_deepspeed_zero3_enabled() and dist.is_initialized()):
        return max(num_chunks, 1)
    most = torch.tensor(max(num_chunks, 1), device=device)
    dist.all_reduce(most, dist.ReduceOp.MAX)
    return int(most)
