"""Interface `Reward` of the callables that score generated images, and functions that check their arguments.

Rewards are for evaluation and for training. A reward is called as `reward(images, prompts, **columns)` and returns one
number per image; higher is better. `columns` are further columns of the data set, with one value per image; a reward
reads those that it needs and ignores the rest. Every reward has a `__name__`, under which trainers log it. The rewards
themselves are in `geneval_rewards` (rules for detected objects), `clip` (similarity of image and text) and `vqa`
(questions about the image).
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from PIL import Image


Images = Sequence[Image.Image]


class Reward(Protocol):
    """Interface of rewards: callables that score generated images."""

    __name__: str

    def __call__(self, images: Images, prompts: Sequence[str], **columns: Any) -> list[float]:
        """Return a score for each image.

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
    """Return the data set's column `name`, which a reward needs, and check that it has one value per image.

    Args:
        reward: The reward, which error messages name.
        columns: All columns that the reward was called with, by name.
        name: Name of the column to return.
        images: The images to score.
        prompts: The prompts of the images.

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
    """Check that a reward was called with one prompt per image.

    Raises:
        ValueError: If the numbers of images and prompts differ. The message names the class of the reward.
    """
    if len(images) != len(prompts):
        raise ValueError(
            f"`prompts` must have one prompt per image, got {len(prompts)} prompts for {len(images)} images: pass "
            f"{type(reward).__name__} the prompt of every image."
        )


__all__ = ["Images", "Reward", "check_lengths", "read_column"]
