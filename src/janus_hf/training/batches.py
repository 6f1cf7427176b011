"""Types of the trainers' datasets and collators, and a function that adds a grey image to a batch without images."""

from collections.abc import Callable
from typing import Any, Protocol

import datasets
import torch

from ..configuration import JanusProConfig
from ..data.documents import IGNORE
from ..data.grey_image import grey_document
from ..generation.context import context_length


class MapStyleDataset(Protocol):
    """A dataset whose rows are read by index, such as a `janus_hf.data.PackedDataset` or a list."""

    def __len__(self) -> int:
        """Return the number of rows of the dataset."""
        ...

    def __getitem__(self, index: int, /) -> Any:
        """Return the row at an index. It may be of any type that the run's collator accepts."""
        ...


# The trainers accept datasets that are read by index, and datasets that are streamed.
TrainingRows = MapStyleDataset | datasets.Dataset | datasets.IterableDataset
# A collator is a function from a list of a dataset's rows to a batch of tensors.
Collator = Callable[[list[Any]], dict[str, Any]]


def with_dummy_picture(batch: dict[str, Any], config: JanusProConfig) -> dict[str, Any]:
    """Add a grey image without labels to a batch that has no images, and return the new batch.

    No other token attends to the image, and the losses stay the same. Without an image, the vision tower and its
    aligner would get no gradients. Then ranks whose batches contain images would wait for ranks whose batches contain
    none. Adam would also update the parameters differently, because it skips parameters without a gradient, but keeps
    moving those whose gradient is zero. With the grey image the gradients are zero. The collator of `janus_hf.data`
    adds such an image itself; this function is for other collators.

    Args:
        batch: A batch with `input_ids`, `labels`, `position_ids` and optionally `task_ids`, each `(B, T)`, and without
            `pixel_values`; not modified.
        config: The model's configuration.

    Returns:
        The batch with `P` more columns, where `P` is the number of tokens of an input image, and with `pixel_values`
        `(1, 3, S, S)` of zeros. The new columns contain image placeholders in the first row and padding in all others.

    Raises:
        ValueError: If the batch would exceed the model's context, has an `attention_mask` or no `position_ids`, or
            already has the arguments of variable-length attention (`cu_seq_lens_q`).
    """
    if batch.get("attention_mask") is not None or batch.get("position_ids") is None:
        raise ValueError(
            "A training batch must have position_ids that restart at every document and no attention_mask: with a "
            "mask, transformers lets documents of one row attend to each other. Remove the mask from the collator."
        )
    if "cu_seq_lens_q" in batch:
        raise ValueError(
            "A batch with the arguments of variable-length attention must contain an image, got none: let the "
            "collator add one, because the arguments state where documents start."
        )
    num_image_tokens, size = config.vision_config.num_image_tokens, config.vision_config.image_size
    rows, length = batch["input_ids"].shape
    if length + num_image_tokens > (limit := context_length(config.text_config)):
        raise ValueError(
            f"This batch of {length} tokens has no image, and one of {num_image_tokens} does not fit beside it into "
            f"the model's context of {limit}. Set max_length to {limit - num_image_tokens} or less."
        )

    assert config.image_token_id is not None  # a model without this id cannot read images at all
    document = grey_document(config.image_token_id, num_image_tokens)

    def append(name: str, first: list[int], others: int) -> torch.Tensor:
        """Return the batch's tensor `name` with columns appended: `first` in row 0, and `others` in all other rows."""
        columns = batch[name].new_full((rows, num_image_tokens), others)
        columns[0] = columns.new_tensor(first)
        return torch.cat([batch[name], columns], dim=1)

    # Position ids restart at 0 in every row, so that attention treats the new columns of a row as a sequence of their
    # own.
    positions = torch.arange(num_image_tokens).to(batch["position_ids"]).expand(rows, -1)
    added = {
        "input_ids": append("input_ids", document["input_ids"], 0),
        "labels": append("labels", document["labels"], IGNORE),
        "position_ids": torch.cat([batch["position_ids"], positions], dim=1),
        "pixel_values": torch.zeros(1, 3, size, size, device=batch["input_ids"].device),
    }
    if "task_ids" in batch:
        added["task_ids"] = append("task_ids", [0] * num_image_tokens, 0)
    return {**batch, **added}


__all__ = ["Collator", "MapStyleDataset", "TrainingRows", "with_dummy_picture"]
