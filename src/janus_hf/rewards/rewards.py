"""The interface of rewards: callables that score generated images, for evaluation and for training.

A reward is called as `reward(images, prompts, **columns)` and returns one number per image; higher is better.
`columns` are further columns of the data set, with one value per image; a reward reads those it needs and ignores the
rest. Every reward has a `__name__`, under which trainers log it. The rewards themselves are in `geneval_rewards`
(rules), `clip` (similarity of image and text) and `vqa` (questions about the image).
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from PIL import Image


Images = Sequence[Image.Image]


class Reward(Protocol):
    """Interface of a callable that scores images."""

    __name__: str

    def __call__(self, images: Images, prompts: Sequence[str], **columns: Any) -> list[float]:
        """Score each image.

        Args:
            images: PIL images.
            prompts: The prompt that each image was generated from.
            columns: Further columns of the data set, with one value per image.

        Returns:
            One number per image; higher is better.

        Raises:
            ValueError: If a column that the reward needs is missing, or a length differs from that of `images`.
        """
        ...


def read_column(
    reward: Reward, columns: Mapping[str, Any], name: str, images: Images, prompts: Sequence[str]
) -> Sequence[Any]:
    """Return the column that a reward needs, after checking all lengths.

    Raises:
        ValueError: If the column is missing, or if it or `prompts` differs from `images` in length.
    """
    check_lengths(reward, images, prompts)
    if name not in columns:
        raise ValueError(
            f"{type(reward).__name__} needs the column {name!r} with one value per image, got "
            f"{sorted(columns) or 'no columns'}: pass {name}=[...]."
        )
    if len(columns[name]) != len(images):
        raise ValueError(
            f"`{name}` must have one value per image, got {len(columns[name])} values for {len(images)} images: pass "
            "columns of the same length as the images."
        )
    return columns[name]


def check_lengths(reward: Reward, images: Images, prompts: Sequence[str]) -> None:
    """Check that there is one prompt per image.

    Raises:
        ValueError: If there is not.
    """
    if len(images) != len(prompts):
        raise ValueError(
            f"`prompts` must have one prompt per image, got {len(prompts)} prompts for {len(images)} images: pass "
            f"{type(reward).__name__} the prompt of every image."
        )


__all__ = ["Images", "Reward", "check_lengths", "read_column"]
