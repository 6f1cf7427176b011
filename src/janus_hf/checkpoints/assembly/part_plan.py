"""`PartPlan`, which states for every weight of a part where in the model it goes, before any value is read.

A plan is complete or refused: every weight of the files is used or known to have no place in Janus, every weight of
the part is filled, and every shape fits.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ...errors import CheckpointError
from ...layouts.part_layouts import PREFIXES
from ...modeling.checkpoint import convert_original
from .part_files import PartFiles


# Numbers that a checkpoint may be stored in. Others, such as those of int8 weights, are codes and no values.
_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@dataclass(frozen=True)
class PartPlan:
    """The weights of a part by their names in the files, and their names in `JanusProForConditionalGeneration`.

    Args:
        files: The part's files.
        original: Name in the files -> name in the original layout of Janus, for the weights that are used.
        targets: Name in the files -> names in the model; three for a fused qkv projection, two for a tied embedding.
        ignored: Names in the files that are known and have no place in Janus.
        unknown: Names in the files that are in no row of the table.
    """

    files: PartFiles
    original: Mapping[str, str]
    targets: Mapping[str, tuple[str, ...]]
    ignored: tuple[str, ...]
    unknown: tuple[str, ...]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the weights by their names in the model, as far as the files alone tell them."""
        return {
            target: _shape_of_one(self.files.weights[name].shape, len(targets) == 3)
            for name, targets in self.targets.items()
            for target in targets
        }

    def check(self, expected: Mapping[str, tuple[int, ...]]) -> None:
        """Raise a `CheckpointError` unless the plan fills exactly the weights of the part.

        Args:
            expected: Shapes of the weights of the whole model by name.
        """
        part = self.files.part
        wanted = {name: shape for name, shape in expected.items() if name.startswith(PREFIXES[part])}
        filled = {target for targets in self.targets.values() for target in targets}
        unexpected = {name for name, targets in self.targets.items() if not wanted.keys() >= set(targets)}
        mismatched = []
        for name, targets in self.targets.items():
            found = self.files.weights[name].shape
            if name not in unexpected and found != (
                fits := _stored_shape(wanted[targets[0]], found, len(targets) == 3)
            ):
                mismatched.append((name, found, fits))
        missing = wanted.keys() - filled
        if self.unknown or unexpected or missing or mismatched:
            raise CheckpointError(
                f"The weights of {self.files.label} must be exactly those of the part that its files describe, so "
                "nothing was written: name the checkpoint that holds this part, or complete its files and correct "
                "its config.json.",
                missing=missing,
                unexpected={*self.unknown, *unexpected},
                mismatched=mismatched,
            )

    def read(self, name: str, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """Read one weight and return it by its name, or names, in the model.

        Args:
            name: Name of the weight in the files.
            dtype: Dtype of the result.

        Raises:
            CheckpointError: If the values are codes of a quantised model, or not finite.
        """
        tensor = self.files.weights[name].read()
        if tensor.dtype not in _DTYPES:
            raise CheckpointError(
                f"{name!r} of {self.files.label} must hold floating-point values, got {tensor.dtype}: name a "
                "checkpoint that is not quantised."
            )
        tensor = tensor.to(dtype)
        if not torch.isfinite(tensor).all():
            raise CheckpointError(
                f"{name!r} of {self.files.label} must hold finite values in {dtype}, got infinity or NaN: download "
                "the file again."
            )
        converted = convert_original(self.original[name], tensor)
        return converted | {target: tensor.clone() for target in self.targets[name] if target not in converted}


def make_plan(files: PartFiles, *, tied_head: bool = False) -> PartPlan:
    """Return the plan of a part. It may be incomplete; `PartPlan.check` refuses it then.

    Args:
        files: The part's files.
        tied_head: Whether the part is a language model whose head is its input embedding. Janus has two tables, so
            the embedding becomes both.
    """
    original: dict[str, str] = {}
    targets: dict[str, tuple[str, ...]] = {}
    ignored, unknown = [], []
    dummy = torch.empty(3, device="meta")  # only the names are used; a fused qkv is split in three
    for name in files.weights:
        try:
            new = files.layout.rename(name)
        except KeyError:
            unknown.append(name)
            continue
        if new is None:
            ignored.append(name)
            continue
        original[name], targets[name] = new, tuple(convert_original(new, dummy))
    if tied_head and ("lm_head.weight",) not in targets.values():
        embedding = ("model.language_model.embed_tokens.weight",)
        targets |= {name: (*embedding, "lm_head.weight") for name, found in targets.items() if found == embedding}
    return PartPlan(files, original, targets, tuple(ignored), tuple(unknown))


def _shape_of_one(stored: tuple[int, ...], is_fused: bool) -> tuple[int, ...]:
    """Return the shape of a weight in the model for its shape in the files; a fused qkv is three weights."""
    if is_fused:
        return (stored[0] // 3, *stored[1:]) if stored else stored
    return stored


def _stored_shape(shape: tuple[int, ...], stored: tuple[int, ...], is_fused: bool) -> tuple[int, ...]:
    """Return the shape that a weight must have in the files, for its shape in the model.

    Args:
        shape: Shape in the model.
        stored: Shape in the files. The position embedding of timm has a leading axis of size 1.
        is_fused: Whether the weight is a fused qkv projection.
    """
    if is_fused:
        shape = (3 * shape[0], *shape[1:])
    return (1,) * (len(stored) == 3 and len(shape) == 2) + shape


__all__ = ["PartPlan", "make_plan"]
