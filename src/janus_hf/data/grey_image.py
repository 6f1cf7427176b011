"""The untrained document with a grey image that stands in where a batch has no image."""

from collections.abc import Sequence
from typing import Any

from PIL import Image

from .documents import IGNORE


def grey_document(
    image_token_id: int, num_image_tokens: int, *, before: Sequence[int] = (), after: Sequence[int] = ()
) -> dict[str, Any]:
    """Return a document that shows one grey image and trains nothing.

    Every batch of a distributed run must pass through the vision tower, because ranks wait for each other's gradients.
    A batch without images gets this document, whose gradients are zero.

    Args:
        image_token_id: Placeholder id that is replaced by the image's features.
        num_image_tokens: Number of placeholders per image.
        before: Ids in front of the placeholders, such as the one that begins an image.
        after: Ids behind the placeholders.

    Returns:
        A document as the collator takes it: `input_ids`, `labels` (all ignored), `task`, `images` (one grey image of
        1x1 pixels), and `prompt_end` -1, because it has no prompt to drop.
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
