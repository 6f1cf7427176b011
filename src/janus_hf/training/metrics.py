"""`LossRecord`, which computes the mean losses of text labels, of image labels and of each task for the training log.

The means are exact over accumulation steps and processes, because sums of losses and numbers of labels are added up
and divided only once.
"""

from collections.abc import Iterator, Sequence
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
    """Sums of losses and numbers of labels since the last log, from which mean losses are computed.

    For every micro-batch, run the model inside `watch` and pass its outputs to `add`. `reduce` returns the means:
    `text_loss` and `image_loss` over all text labels and all image labels, and, if the batches have `task_ids`, also
    `loss_text`, `loss_understanding` and `loss_drawing` over the labels of each task (drawing is image generation).
    Training and evaluation have separate sums. The sums are kept on the model's device.
    """

    def __init__(self) -> None:
        self._sums: dict[bool, torch.Tensor | None] = {True: None, False: None}

    def add(self, outputs: JanusProCausalLMOutput, labels: torch.Tensor, *, training: bool) -> None:
        """Add the text loss and the image loss of one micro-batch to the sums.

        Args:
            outputs: The model's outputs, of which the mean loss and the number of labels of text and of images are
                used.
            labels: The labels of the micro-batch, `(B, T)`. All `B * T` positions are counted as tokens.
            training: True adds to the sums of training, False to those of evaluation.
        """
        sums = self._get_sums(labels.device, training)
        text, images = outputs["num_text_labels"].to(sums), outputs["num_image_labels"].to(sums)
        # The model returns means. Multiplied by the numbers of labels, they become sums, which can be added up.
        sums[:4] += torch.stack([outputs["text_loss"] * text, text, outputs["image_loss"] * images, images])
        sums[4] += labels.numel()

    def _get_sums(self, device: torch.device, training: bool) -> torch.Tensor:
        """Return the vector of the sums since the last log, which callers change in place.

        The entries are: sum of text losses, number of text labels, sum of image losses, number of image labels, number
        of tokens, then sum of losses and number of labels of each task. The dtype is float64, or float32 on MPS.

        Args:
            device: Device on which a vector of zeros is created if nothing was added since the last log.
            training: True returns the sums of training, False those of evaluation.
        """
        sums = self._sums[training]
        if sums is None:
            # float64, so that many losses can be added without rounding errors; MPS does not support float64.
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
        """Add the losses per task of the model's forward pass inside the `with` block to the sums.

        The model itself returns only the mean losses of text and of images. Its text head and its image head compute
        the logits of the labelled positions in reading order, in chunks. Hooks on the two heads compute the loss of
        every position from these logits, so that no second forward pass is needed.

        Args:
            model: The model without PEFT's wrapper.
            labels: The labels of the micro-batch, `(B, T)`.
            task_ids: Index of each position's task in `TASKS`, `(B, T)`; if None, nothing is added.
            training: True adds to the sums of training, False to those of evaluation.
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
        """Return the mean losses since the last log over all processes, and reset the sums to zero.

        Every process must call this method, because it communicates, unless no process has added a batch.

        Args:
            accelerator: The run's accelerator, which adds the sums of all processes.
            training: True reduces the sums of training, False those of evaluation.

        Returns:
            `tokens`, `text_labels` and `image_labels` (numbers), `text_loss`, `image_loss` and `loss_<task>` (means in
            nats per label). A mean over no labels is left out. Without any batch the dict is empty.
        """
        sums = self.take(accelerator, training=training)
        values = {} if sums is None else mean_losses(sums)
        values.pop("loss", None)  # the trainer logs its own
        return values

    def take(self, accelerator: Accelerator, *, training: bool) -> list[float] | None:
        """Return the sums since the last log over all processes, for `mean_losses`, and reset them to zero.

        The arguments are those of `reduce`. None means that no process has added a batch.
        """
        sums, self._sums[training] = self._sums[training], None
        return None if sums is None else accelerator.reduce(sums, reduction="sum").tolist()

    def forget(self, *, training: bool) -> None:
        """Reset the sums of training, or those of evaluation, to zero in this process."""
        self._sums[training] = None


def mean_losses(sums: Sequence[float]) -> dict[str, float]:
    """Return the mean losses of `LossRecord.reduce`, and `loss`, the mean over the labels of both heads.

    Args:
        sums: Sums that `LossRecord.take` returned, or a weighted sum of several of them.
    """
    text_sum, text, image_sum, images, tokens, *tasks = sums
    values = {"tokens": tokens, "text_labels": text, "image_labels": images}
    # A mean over no labels is undefined, so its entry is left out.
    by_task = zip((f"loss_{task}" for task in TASKS), tasks[::2], tasks[1::2], strict=True)
    for name, total, count in (
        ("loss", text_sum + image_sum, text + images),
        ("text_loss", text_sum, text),
        ("image_loss", image_sum, images),
        *by_task,
    ):
        values |= {name: total / count} if count else {}
    return values


def _sum_losses(head: nn.Module, labels_N: torch.Tensor, tasks_N: torch.Tensor, sums: torch.Tensor) -> RemovableHandle:
    """Register a hook on an output head that adds the losses of the model's next forward pass to `sums`, by task.

    Args:
        head: The text head or the image head. The model calls it with the labelled positions in order, in chunks.
        labels_N: Class of each labelled position, as an index into the head's logits, `(N,)`.
        tasks_N: Index of each labelled position's task in `TASKS`, `(N,)`.
        sums: Sum of losses and number of labels of each task, `(tasks, 2)`; changed in place.

    Returns:
        The handle that removes the hook.
    """
    seen = 0

    def hook(module: nn.Module, args: Any, logits: torch.Tensor) -> None:
        """Add the losses of one chunk of the head's logits, `(positions, classes)`, to the sums of their tasks."""
        nonlocal seen
        # After its last label a head may be called again, with losses of weight zero: once if it has no label at all,
        # and under ZeRO-3 until it has computed as many chunks as the rank with the most.
        if seen == len(labels_N):
            return
        chunk = slice(seen, seen + len(logits))
        seen += len(logits)
        with torch.no_grad():
            losses = F.cross_entropy(logits.detach().float(), labels_N[chunk], reduction="none").to(sums)
            sums[:, 0].index_add_(0, tasks_N[chunk].long(), losses)
            sums[:, 1].index_add_(0, tasks_N[chunk].long(), torch.ones_like(losses))

    return head.register_forward_hook(hook)


__all__ = ["LossRecord", "mean_losses"]
