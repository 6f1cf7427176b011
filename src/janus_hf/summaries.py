"""`ShortRepr`, which makes the `repr` of an output class state shapes and dtypes instead of the values of tensors."""

from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import numpy as np
import torch


class ShortRepr:
    """Mixin for output dataclasses whose `repr`, which notebooks show too, must fit on a line or two.

    Decorate the class with `@dataclass(repr=False)`, so that it keeps this `repr`. Fields that are None are left out.
    """

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(self._field_texts())})"

    def _field_texts(self) -> Iterator[str]:
        """Yield one text `name=summary` for each field that is not None."""
        # Any: mypy does not know that every class with this mixin is a dataclass
        output: Any = self
        for one in fields(output):
            if (value := getattr(self, one.name, None)) is not None:
                yield f"{one.name}={summarise(value)}"


def summarise(value: object) -> str:
    """Return a short text for the value of an output's field.

    A tensor gives its shape, dtype and device (or if it is a scalar, its value and dtype), an array its shape and
    dtype, and a list or tuple its length and the types in it. Numbers and strings are kept; other objects give their
    type.
    """
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
