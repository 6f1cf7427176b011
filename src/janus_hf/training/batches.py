"""What the trainer adds to a batch."""

from typing import Any

import torch


def with_dummy_picture(batch: dict[str, Any], config: Any) -> dict[str, Any]:
    """The batch with one more document: a grey picture that nothing attends to and no label is computed from.

    A batch without pictures would leave the tower and its aligner without gradients: ranks that have pictures would
    wait for those that have none, and Adam, which skips parameters without a gradient but keeps moving those whose
    gradient is zero, would take another path than with the same rows in one batch. With the dummy their gradients are
    zero. `janus_hf.data`'s collator adds one itself; this is for other collators.

    Args:
        batch: `input_ids`, `labels`, `position_ids` `(B, T)` and no `pixel_values`; not modified.
        config: The model's.

    Returns:
        The batch with `P` more columns, placeholders in the first row, and `pixel_values (1, 3, S, S)`.

    Raises:
        ValueError: If it would exceed the context, or the batch is not packed by positions alone.
    """
    if batch.get("attention_mask") is not None or batch.get("position_ids") is None:
        raise ValueError(
            "Batches for training have position_ids that restart at every document and no attention_mask: with a "
            "mask, transformers lets documents of one row attend to each other."
        )
    if "cu_seq_lens_q" in batch:
        raise ValueError("A batch with the arguments of variable-length attention must bring a picture itself.")
    num_slots, size = config.vision_config.num_image_tokens, config.vision_config.image_size
    rows, length = batch["input_ids"].shape
    if length + num_slots > (limit := config.text_config.max_position_embeddings):
        raise ValueError(
            f"This batch of {length} tokens has no picture, and one of {num_slots} does not fit beside it into the "
            f"model's context of {limit}. Set max_length to {limit - num_slots} or less."
        )

    def more(name: str, first: Any, others: Any) -> torch.Tensor:
        columns = batch[name].new_full((rows, num_slots), others)
        columns[0] = first
        return torch.cat([batch[name], columns], dim=1)

    slots = torch.arange(num_slots, device=batch["input_ids"].device)
    added = {
        "input_ids": more("input_ids", config.image_token_id, 0),
        "labels": more("labels", -100, -100),
        "position_ids": torch.cat([batch["position_ids"], slots.expand(rows, -1).to(batch["position_ids"])], dim=1),
        "pixel_values": torch.zeros(1, 3, size, size, device=slots.device),
    }
    if "task_ids" in batch:
        added["task_ids"] = more("task_ids", 0, 0)
    return {**batch, **added}


__all__ = ["with_dummy_picture"]
