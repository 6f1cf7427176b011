"""Losses per head and per task, exact over accumulation steps and processes."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import nn
from torch.utils.hooks import RemovableHandle

from ..data.schema import TASKS
from ..modeling import JanusProForConditionalGeneration
from ..modeling.outputs import JanusProCausalLMOutput


class LossRecord:
    """Sums of losses and numbers of labels since the last log, kept on the model's device.

    Training and evaluation have separate sums. `text_loss` and `image_loss` are means over all text labels and all
    image labels since the last log. If the batches have `task_ids`, the mean loss of each task is computed as well:
    `loss_text`, `loss_understanding`, `loss_drawing`.
    """

    def __init__(self) -> None:
        self._sums: dict[bool, torch.Tensor | None] = {True: None, False: None}

    def add(self, outputs: JanusProCausalLMOutput, labels: torch.Tensor, *, training: bool) -> None:
        """Add the losses of one micro-batch.

        Args:
            outputs: The model's outputs with the mean loss and the number of labels of each head.
            labels: The batch's labels `(B, T)`; their number is counted as tokens.
            training: Whether the batch belongs to training rather than evaluation.
        """
        sums = self._get_sums(labels.device, training)
        text, images = outputs["num_text_labels"].to(sums), outputs["num_image_labels"].to(sums)
        # The model returns means. Times the numbers of labels they are sums, which can be added over batches.
        sums[:4] += torch.stack([outputs["text_loss"] * text, text, outputs["image_loss"] * images, images])
        sums[4] += labels.numel()

    def _get_sums(self, device: torch.device, training: bool) -> torch.Tensor:
        """Return the current sums, a vector that may be changed in place; start with zeros after a log.

        The entries are: sum of text losses, number of text labels, sum of image losses, number of image labels, number
        of tokens, then sum of losses and number of labels of each task. The dtype is float64, or float32 on MPS.
        """
        sums = self._sums[training]
        if sums is None:
            # float64, so that many losses can be added without rounding errors; MPS does not have it.
            dtype = torch.float32 if device.type == "mps" else torch.float64
            sums = self._sums[training] = torch.zeros(5 + 2 * len(TASKS), dtype=dtype, device=device)
        return sums

    @contextmanager
    def watch(
        self,
        model: JanusProForConditionalGeneration,
        labels: torch.Tensor,
        task_ids: torch.Tensor | None,
        *,
        training: bool,
    ) -> Iterator[None]:
        """Context manager around the model's forward pass that also sums the losses per task.

        The model returns one loss per head. Its heads compute the logits of the labelled positions in reading order,
        in chunks; hooks on the heads give the loss of every position without a second forward pass.

        Args:
            model: The model without PEFT's wrapper.
            labels: Labels `(B, T)`.
            task_ids: Index into `TASKS` of each position, `(B, T)`; None leaves the context without effect.
            training: Whether the batch belongs to training rather than evaluation.
        """
        if task_ids is None:
            yield
            return
        sums = self._get_sums(labels.device, training)[5:].view(len(TASKS), 2)
        num_text = model.config.text_config.vocab_size
        # The label of a position is the token after it, so the first column is the label of no position.
        labels_N, tasks_N = labels[:, 1:].flatten(), task_ids[:, 1:].flatten()
        is_image = labels_N >= num_text
        is_text = (labels_N >= 0) & ~is_image
        handles = [
            _sum_losses(model.lm_head, labels_N[is_text], tasks_N[is_text], sums),
            _sum_losses(model.model.generation_head, labels_N[is_image] - num_text, tasks_N[is_image], sums),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def reduce(self, accelerator: Accelerator, *, training: bool) -> dict[str, float]:
        """Return the means over all processes since the last log, and start anew.

        Every process must call this method, because it communicates, unless no process has added a batch.
        """
        sums, self._sums[training] = self._sums[training], None
        if sums is None:
            return {}
        text_sum, text, image_sum, images, tokens, *tasks = accelerator.reduce(sums, reduction="sum").tolist()
        values = {"tokens": tokens, "text_labels": text, "image_labels": images}
        # A mean over no labels is undefined, so its entry is left out of the log.
        values |= {"text_loss": text_sum / text} if text else {}
        values |= {"image_loss": image_sum / images} if images else {}
        for task, total, count in zip(TASKS, tasks[::2], tasks[1::2], strict=True):
            values |= {f"loss_{task}": total / count} if count else {}
        return values


def _sum_losses(head: nn.Module, labels_N: torch.Tensor, tasks_N: torch.Tensor, sums: torch.Tensor) -> RemovableHandle:
    """Hook a head so that the losses of its next forward pass are added to `sums`.

    Args:
        head: The module that computes the logits of the labels, in order and in chunks.
        labels_N: Class of each labelled position, in the head's own numbering.
        tasks_N: Task of each labelled position.
        sums: Sum of losses and number of labels of each task, `(tasks, 2)`; changed in place.

    Returns:
        The hook's handle.
    """
    seen = 0

    def hook(module: nn.Module, args: Any, logits: torch.Tensor) -> None:
        """Add the losses of one chunk of logits."""
        nonlocal seen
        # After its last label a head may compute rows of weight zero: one if it has no label at all, and under ZeRO-3
        # as many chunks as the rank with the most.
        if seen == len(labels_N):
            return
        chunk = slice(seen, seen + len(logits))
        seen += len(logits)
        with torch.no_grad():
            losses = F.cross_entropy(logits.detach().float(), labels_N[chunk], reduction="none").to(sums)
            sums[:, 0].index_add_(0, tasks_N[chunk].long(), losses)
            sums[:, 1].index_add_(0, tasks_N[chunk].long(), torch.ones_like(losses))

    return head.register_forward_hook(hook)


__all__ = ["LossRecord"]
