"""`JanusProSFTTrainer`: supervised fine-tuning on the model's own loss."""

from typing import Any

import torch
from torch import nn
from trl import SFTTrainer

from .base import JanusProTrainerMixin


class JanusProSFTTrainer(JanusProTrainerMixin, SFTTrainer):
    """Train one stage of Janus-Pro by supervised fine-tuning, on text and images in the same batches.

    The arguments, and what a batch must contain, are described at `JanusProTrainerMixin`.
    """

    _tag_names = ["janus_hf", "trl", "sft"]

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Return the model's own loss on a micro-batch: cross-entropy of the text head and of the image head.

        Args:
            model: The trained model, wrapped as the run requires.
            inputs: A batch of the collator.
            return_outputs: Return the model's outputs as well.
            num_items_in_batch: Number of trained labels of the accumulated batch over all processes, by which the
                model divides its sum of losses.

        Returns:
            The scalar loss, or the tuple of loss and outputs.

        Raises:
            FloatingPointError: If the loss is not finite.
            ValueError: If no label of the accumulated batch is trained.
        """
        training = self.model.training
        inputs, task_ids = self.prepare_batch(inputs)
        with self.loss_record.watch(self.base_model, inputs["labels"], task_ids, training=training):
            # `Trainer.compute_loss`, past TRL's own, which computes a loss of a single head.
            loss, outputs = super(SFTTrainer, self).compute_loss(
                model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch
            )
        self.check_loss(loss, num_items_in_batch)
        self.loss_record.add(outputs, inputs["labels"], training=training)
        return (loss, outputs) if return_outputs else loss


__all__ = ["JanusProSFTTrainer"]
