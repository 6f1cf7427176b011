"""Cross-entropy of both heads, without ever holding the logits of a whole sequence.

`B` batch, `T` sequence, `N` positions, `D` width, `V` text vocabulary.
"""

from collections.abc import Callable

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint
from transformers.integrations import is_deepspeed_zero3_enabled


Head = Callable[[torch.Tensor], torch.Tensor]

# 1024 rows of 102400 float32 logits are 0.4 GB (a 4096-token sequence at once would be 1.6 GB, its gradient as much
# again).
CHUNK_SIZE = 1024


def chunked_cross_entropy(
    head: Head,
    hidden_states: torch.Tensor,
    labels: torch.Tensor,
    *,
    chunk_size: int = CHUNK_SIZE,
) -> torch.Tensor:
    """Return the sum of the cross-entropies of `head(hidden_states)` against `labels`, in float32.

    The logits are computed, reduced and dropped chunk by chunk; the backward pass computes them again. `head` is
    called as a module and its weight is never read, so that wrappers around it (LoRA, FSDP, quantisation) take part.

    Args:
        head: Maps hidden states `(N, D)` to logits `(N, classes)`.
        hidden_states: `(N, D)`. If `N` is 0, the head is called with one row of weight zero, so that every rank of a
            distributed run uses every parameter, in the forward and in the backward pass.
        labels: `(N,)` int64 in `[0, classes)`.
        chunk_size: Number of rows per chunk.

    Returns:
        A float32 scalar.
    """

    def chunk_loss(chunk: torch.Tensor, chunk_labels: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(head(chunk).float(), chunk_labels, reduction="sum")

    chunks = list(zip(hidden_states.split(chunk_size), labels.split(chunk_size), strict=True)) if len(labels) else []
    # A row of zeros that is computed from the hidden states: gradients (of zero) flow back through it as through any
    # other row.
    idle = (hidden_states[:0].sum(dim=0, keepdim=True), labels.new_zeros(1))
    idle_calls = num_head_calls(len(chunks), labels.device) - len(chunks)

    total = hidden_states.new_zeros((), dtype=torch.float32)
    for weight, (chunk, chunk_labels) in [*((1.0, chunk) for chunk in chunks), *[(0.0, idle)] * idle_calls]:
        if torch.is_grad_enabled():
            total = total + weight * checkpoint(chunk_loss, chunk, chunk_labels, use_reentrant=False)
        else:
            total = total + weight * chunk_loss(chunk, chunk_labels)
    return total


def num_head_calls(num_chunks: int, device: torch.device) -> int:
    """Return how often this rank must call its head: at least once, and once per chunk.

    Under ZeRO-3 every rank calls it as often as the rank with most chunks, because ZeRO-3 gathers the head's weight at
    every call, in which all ranks must take part.
    """
    if not (is_deepspeed_zero3_enabled() and dist.is_initialized()):
        return max(num_chunks, 1)
    most = torch.tensor(max(num_chunks, 1), device=device)
    dist.all_reduce(most, dist.ReduceOp.MAX)
    return int(most)


def joint_loss(
    text_head: Head,
    image_head: Head,
    hidden_states: torch.Tensor,
    labels: torch.Tensor,
    *,
    num_text: int,
    num_items: torch.Tensor | int | None = None,
) -> dict[str, torch.Tensor]:
    """Return the next-token losses of a batch, each label scored by the head that its id belongs to.

    Args:
        text_head: Maps hidden states `(N, D)` to logits `(N, V)`.
        image_head: Maps hidden states `(N, D)` to logits over the codec's codebook.
        hidden_states: `(B, T, D)`.
        labels: `(B, T)` int64. Ids below `num_text` are text tokens, the others image tokens; -100 is not trained.
        num_text: `V`.
        num_items: Number that divides the summed loss; by default this batch's number of labels.

    Returns:
        The fields `loss`, `text_loss`, `image_loss`, `num_text_labels` and `num_image_labels` of
        `JanusProCausalLMOutput`.
    """
    hidden_ND = hidden_states[:, :-1].flatten(0, 1)
    labels_N = labels[:, 1:].flatten().to(hidden_ND.device)
    is_text, is_image = (labels_N >= 0) & (labels_N < num_text), labels_N >= num_text
    # Both heads run in every batch, even without labels for one of them: all ranks must use the same parameters.
    text_sum = chunked_cross_entropy(text_head, hidden_ND[is_text], labels_N[is_text])
    image_sum = chunked_cross_entropy(image_head, hidden_ND[is_image], labels_N[is_image] - num_text)
    text_count, image_count = is_text.sum(), is_image.sum()
    if num_items is None:
        num_items = (text_count + image_count).clamp(min=1)
    elif isinstance(num_items, torch.Tensor):
        num_items = num_items.to(text_sum.device)
    return {
        "loss": (text_sum + image_sum) / num_items,
        "text_loss": text_sum.detach() / text_count.clamp(min=1),
        "image_loss": image_sum.detach() / image_count.clamp(min=1),
        "num_text_labels": text_count,
        "num_image_labels": image_count,
    }


__all__ = ["CHUNK_SIZE", "chunked_cross_entropy", "joint_loss", "num_head_calls"]
