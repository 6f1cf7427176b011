"""`ShortRepr`, which makes the `repr` of an output class state shapes and dtypes instead of the values of tensors."""

from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import numpy as np
import torch


class ShortRepr:
    """Mixin for output dataclasses: printing one, or naming it last in a notebook's cell, fits on a line or two.

    The class must be decorated with `@dataclass(repr=False)`. Fields that are None are left out.
    """

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(self._field_texts())})"

    def _field_texts(self) -> Iterator[str]:
        # Any: mypy does not know that every class with this mixin is a dataclass
        me: Any = self
        for one in fields(me):
            if (value := getattr(self, one.name, None)) is not None:
                yield f"{one.name}={summarise(value)}"


def summarise(value: object) -> str:
    """Return a short text for a field of an output: shape, dtype and device of a tensor, length of a collection."""
    if isinstance(value, torch.Tensor):
        dtype = str(value.dtype).removeprefix("torch.")
        if value.ndim == 0 and value.device.type != "meta":
            return f"{value.item():g} ({dtype})"
        return f"<Tensor {tuple(value.shape)} {dtype} on {value.device}>"
    if isinstance(value, np.ndarray):
        return f"<ndarray {value.shape} {value.dtype}>"
    if isinstance(value, (list, tuple)):
        kinds = sorted({type(item).__name__ for item in value})
        return f"<{len(value)} x {' or '.join(kinds)}>" if kinds else repr(value)
    return repr(value) if isinstance(value, (bool, int, float, str)) else f"<{type(value).__name__}>"


__all__ = ["ShortRepr", "summarise"]
