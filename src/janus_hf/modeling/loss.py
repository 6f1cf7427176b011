"""Cross-entropy of the text head and the image head, without ever holding the logits of a whole sequence.

The text head predicts text tokens and the image head predicts image codes. `B` batch, `T` sequence, `N` positions, `D`
width, `V` text vocabulary.
"""

from collections.abc import Callable

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint
from transformers.integrations import is_deepspeed_zero3_enabled


# Module or function that maps hidden states `(N, D)` to logits `(N, classes)`.
Head = Callable[[torch.Tensor], torch.Tensor]

# Rows per chunk. 1024 rows of 102400 float32 logits are 0.4 GB (a whole sequence of 4096 tokens would be 1.6 GB, and
# its gradient as much again).
CHUNK_SIZE = 1024


def chunked_cross_entropy(
    head: Head,
    hidden_states: torch.Tensor,
    labels: torch.Tensor,
    *,
    chunk_size: int = CHUNK_SIZE,
) -> torch.Tensor:
    """Return the sum of the cross-entropies of `head(hidden_states)` against `labels`, in float32.

    The logits are computed, reduced to a loss and freed in chunks of `chunk_size` rows; the backward pass computes
    them again. `head` is called as a module and its weight is never read directly, so that wrappers around it (LoRA,
    FSDP, quantisation) have their effect.

    Args:
        head: Module that maps hidden states `(N, D)` to logits `(N, classes)`.
        hidden_states: `(N, D)`. If `N` is 0, the head is called with one row of zeros whose loss is multiplied by
            zero, so that every rank of a distributed run uses every parameter, in the forward and in the backward
            pass.
        labels: `(N,)` int64 in `[0, classes)`.
        chunk_size: Number of rows per chunk.

    Returns:
        A float32 scalar.
    """

    def chunk_loss(chunk: torch.Tensor, chunk_labels: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(head(chunk).float(), chunk_labels, reduction="sum")

    chunks = list(zip(hidden_states.split(chunk_size), labels.split(chunk_size), strict=True)) if len(labels) else []
    # This row of zeros is computed from the hidden states, so that gradients (of zero) flow back through it as through
    # any other row.
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
    """Return how often this rank must call an output head: once per chunk, and at least once.

    Under DeepSpeed ZeRO-3 it is the number of the rank with the most chunks. ZeRO-3 gathers the head's weight from all
    ranks at every call, so all ranks must make the same number of calls.

    Args:
        num_chunks: Number of chunks that this rank splits its positions into.
        device: Device on which the ranks exchange their numbers.
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
    are_shifted: bool = False,
) -> dict[str, torch.Tensor]:
    """Return the next-token losses of a batch. Each label is scored by the head for its kind of token.

    Labels that are text tokens are scored by `text_head`, labels that are image tokens by `image_head`.

    Args:
        text_head: Module that maps hidden states `(N, D)` to logits `(N, V)` over the text vocabulary.
        image_head: Module that maps hidden states `(N, D)` to logits over the image codec's codebook.
        hidden_states: `(B, T, D)`, the language model's outputs.
        labels: `(B, T)` int64. Ids below `num_text` are text tokens, and id `num_text + c` is image code `c`. Labels
            of -100 are ignored. The label at position `t` is predicted from position `t - 1`.
        num_text: Size of the text vocabulary (`V`).
        num_items: Number by which the sum of all losses is divided for `loss`; by default the number of labels in
            this batch.
        are_shifted: Whether the label at position `t` is predicted from position `t` itself.

    Returns:
        Scalar tensors with the keys `loss`, `text_loss`, `image_loss`, `num_text_labels` and `num_image_labels`, which
        are fields of `JanusProCausalLMOutput`. `text_loss` and `image_loss` are means over the text labels and over
        the image labels of this batch, whatever `num_items` is.
    """
    if labels.shape != hidden_states.shape[:2]:
        raise ValueError(
            f"`labels` must be of the shape of the sequence, {tuple(hidden_states.shape[:2])}, got "
            f"{tuple(labels.shape)}: give every position a label, and -100 where nothing is trained."
        )
    if not are_shifted:
        hidden_states, labels = hidden_states[:, :-1], labels[:, 1:]
    hidden_ND = hidden_states.flatten(0, 1)
    labels_N = labels.flatten().to(hidden_ND.device)
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
