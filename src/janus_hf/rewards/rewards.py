"""How good a drawn picture is, as a number: scorers for evaluation and rewards for training.

Each is a callable `reward(images, prompts, **columns) -> list[float]`: a number per picture, the more the better.
`columns` are further columns of the data set, a value per picture; a reward takes what it needs and ignores the rest.
Every one has a `__name__`, under which trainers log it.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from PIL import Image


Images = Sequence[Image.Image]


class Reward(Protocol):
    """What every class of this module is."""

    __name__: str

    def __call__(self, images: Images, prompts: Sequence[str], **columns: Any) -> list[float]:
        """A number per picture.

        Args:
            images: PIL pictures.
            prompts: What each was drawn from.
            columns: Further columns, a value per picture.

        Raises:
            ValueError: If a column is missing or of another length than `images`.
        """
        ...


def read_column(
    reward: Any, columns: Mapping[str, Any], name: str, images: Images, prompts: Sequence[str]
) -> Sequence[Any]:
    check_lengths(reward, images, prompts)
    if name not in columns:
        raise ValueError(
            f"{type(reward).__name__} needs the column {name!r}, a value per picture; got {sorted(columns) or 'none'}."
        )
    if len(columns[name]) != len(images):
        raise ValueError(f"The column {name!r} has {len(columns[name])} values for {len(images)} pictures.")
    return columns[name]


def check_lengths(reward: Any, images: Images, prompts: Sequence[str]) -> None:
    if len(images) != len(prompts):
        raise ValueError(f"{type(reward).__name__} got {len(images)} pictures but {len(prompts)} prompts.")


__all__ = ["Images", "Reward", "check_lengths", "read_column"]
