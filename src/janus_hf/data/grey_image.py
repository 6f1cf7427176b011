"""`grey_document`, which makes the untrained example with a grey image for batches that have no image."""

from collections.abc import Sequence
from typing import Any

from PIL import Image

from .documents import IGNORE


def grey_document(
    image_token_id: int, num_image_tokens: int, *, before: Sequence[int] = (), after: Sequence[int] = ()
) -> dict[str, Any]:
    """Return a document (a tokenized example, as a dict) that has one grey image and on which nothing is trained.

    Every batch of a distributed run must pass through the vision tower, because ranks wait for each other's gradients.
    A batch without images gets this document, whose gradients are zero.

    Args:
        image_token_id: Id of the image placeholder, which the model replaces by the image's features.
        num_image_tokens: Number of placeholders per image.
        before: Ids in front of the placeholders, such as begin-of-image.
        after: Ids behind the placeholders, such as end-of-image.

    Returns:
        A dict that the collator accepts as a document: `input_ids`, `labels` (all -100, which is ignored), `task`
        ("understanding"), `images` (one grey image of 1x1 pixels) and `prompt_end` (-1, because there is no prompt to
        drop).
    """
    ids = [*before, *[image_token_id] * num_image_tokens, *after]
    return {
        "input_ids": ids,
        "labels": [IGNORE] * len(ids),
        "task": "understanding",
        "images": [Image.new("RGB", (1, 1), "grey")],
        "prompt_end": -1,
    }


__all__ = ["grey_document"]
