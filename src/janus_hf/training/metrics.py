"""Losses per head and per task, exact over accumulation steps and processes."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..data.schema import TASKS
from ..modeling.outputs import JanusProCausalLMOutput


class LossRecord:
    """Sums of losses and label counts since the last log, kept on the device.

    `text_loss` and `image_loss` are means over all text and image labels of the window. With `task_ids` in the batches
    the losses are told apart by task as well: `loss_text`, `loss_understanding`, `loss_drawing`.
    """

    def __init__(self) -> None:
        self._sums: dict[bool, torch.Tensor | None] = {True: None, False: None}

    def add(self, outputs: JanusProCausalLMOutput, labels: torch.Tensor, *, training: bool) -> None:
        """Count one micro-batch, `labels` `(B, T)`."""
        sums = self._of(labels.device, training)
        text, images = outputs["num_text_labels"].to(sums), outputs["num_image_labels"].to(sums)
        sums[:4] += torch.stack([outputs["text_loss"] * text, text, outputs["image_loss"] * images, images])
        sums[4] += labels.numel()

    def _of(self, device: torch.device, training: bool) -> torch.Tensor:
        """`[text sum, text labels, image sum, image labels, tokens, then sum and labels per task]`, float64."""
        sums = self._sums[training]
        if sums is None:
            dtype = torch.float32 if device.type == "mps" else torch.float64  # which MPS does not have
            sums = self._sums[training] = torch.zeros(5 + 2 * len(TASKS), dtype=dtype, device=device)
        return sums

    @contextmanager
    def watch(
        self, model: Any, labels: torch.Tensor, task_ids: torch.Tensor | None, *, training: bool
    ) -> Iterator[None]:
        """While the model computes its loss, also sum it per task; without `task_ids` do nothing.

        The model's loss comes as one number per head. The heads see the labelled positions in reading order, in
        chunks; listening to them gives every position's loss without a second pass through the model.
        """
        if task_ids is None:
            yield
            return
        sums = self._of(labels.device, training)[5:].view(len(TASKS), 2)
        num_text = model.config.text_config.vocab_size
        labels_N, tasks_N = labels[:, 1:].flatten(), task_ids[:, 1:].flatten()
        is_image = labels_N >= num_text
        handles = [
            _listen(model.lm_head, labels_N, tasks_N, (labels_N >= 0) & ~is_image, 0, sums),
            _listen(model.model.generation_head, labels_N, tasks_N, is_image, num_text, sums),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def reduce(self, accelerator: Any, *, training: bool) -> dict[str, float]:
        """Means over the window and all processes; empties the window. A collective operation unless it is empty."""
        sums, self._sums[training] = self._sums[training], None
        if sums is None:
            return {}
        text_sum, text, image_sum, images, tokens, *tasks = accelerator.reduce(sums, reduction="sum").tolist()
        values = {"tokens": tokens, "text_labels": text, "image_labels": images}
        values |= {"text_loss": text_sum / text} if text else {}
        values |= {"image_loss": image_sum / images} if images else {}
        for task, total, count in zip(TASKS, tasks[::2], tasks[1::2], strict=True):
            values |= {f"loss_{task}": total / count} if count else {}
        return values


def _listen(
    head: nn.Module, labels_N: torch.Tensor, tasks_N: torch.Tensor, chosen_N: torch.Tensor, offset: int, sums: Any
) -> Any:
    """Add the losses of the `chosen_N` labels, as `head` computes their logits, to `sums` `(tasks, 2)`."""
    labels, tasks = labels_N[chosen_N] - offset, tasks_N[chosen_N]
    seen = 0

    def hook(module: nn.Module, args: Any, logits: torch.Tensor) -> None:
        nonlocal seen
        if seen == len(labels):  # the row of weight zero that a head without labels sees
            return
        chunk = slice(seen, seen + len(logits))
        seen += len(logits)
        with torch.no_grad():
            losses = F.cross_entropy(logits.detach().float(), labels[chunk], reduction="none").to(sums)
            sums[:, 0].index_add_(0, tasks[chunk].long(), losses)
            sums[:, 1].index_add_(0, tasks[chunk].long(), torch.ones_like(losses))

    return head.register_forward_hook(hook)


__all__ = ["LossRecord"]
