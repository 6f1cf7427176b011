"""`JanusProSFTTrainer`, the trainer for supervised fine-tuning with the loss that the model itself computes."""

from typing import Any

import torch
from torch import nn

from .base import JanusProTrainer


class JanusProSFTTrainer(JanusProTrainer):
    """Trainer for the supervised fine-tuning of Janus-Pro, on text and images in the same batches.

    `JanusProTrainer` describes the arguments, and what a batch must contain.
    """

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Return the loss that the model computes on a micro-batch: the cross-entropy of its text and image labels.

        Args:
            model: The trained model, wrapped as the run requires (by PEFT, DDP, FSDP or DeepSpeed).
            inputs: A batch of the collator.
            return_outputs: Whether to return the model's outputs as well.
            num_items_in_batch: Number of trained labels in all micro-batches of the step, over all processes. The
                model divides the sum of its losses by this number.

        Returns:
            The scalar loss, or the tuple of the loss and the model's outputs.

        Raises:
            FloatingPointError: If the loss is infinite or NaN.
            ValueError: If the loss is not finite because the step has no trained label.
        """
        training = self.model.training
        inputs, task_ids = self.prepare_batch(inputs)
        inputs["skip_logits"] = training or self.compute_metrics is None  # those of an evaluation set are large
        with self.loss_record.watch(self.base_model, inputs["labels"], task_ids, training=training):
            loss, outputs = super().compute_loss(
                model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch
            )
        self.check_loss(loss, num_items_in_batch)
        self.loss_record.add(outputs, inputs["labels"], training=training)
        if training:
            self.throughput.add(inputs, outputs)
        return (loss, outputs) if return_outputs else loss


__all__ = ["JanusProSFTTrainer"]
