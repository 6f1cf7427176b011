"""Linear layers with quantised weights of torchao, for the few rows of a generation step on CUDA."""

import torch
from torch import nn

from ....protocols import BareModel
from ..layer_swap import LayerSwap, has_no_extras
from ..quantised_values import values_and_scale
from .few_row_operator import MAX_ROWS, few_row_linear, few_rows_pay


class FewRowLinear(nn.Module):
    """A linear layer that computes up to `MAX_ROWS` rows with the operator `few_row_linear`, others as before.

    Values and scales are those of the layer's weight, not copies.

    Args:
        linear: The layer.
        values_NK: Values `(N, K)` of its weight, int8 or float8_e4m3fn.
        scale_N: Scales `(N,)` of its outputs, float32.
    """

    values: torch.Tensor
    scale: torch.Tensor

    def __init__(self, linear: nn.Linear, values_NK: torch.Tensor, scale_N: torch.Tensor) -> None:
        super().__init__()
        self.linear = linear
        self.weight, self.bias = linear.weight, linear.bias  # callers read the weight's dtype
        self.register_buffer("values", values_NK, persistent=False)
        self.register_buffer("scale", scale_N, persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute the layer for inputs `(..., K)` and return `(..., N)` in the input's dtype."""
        rows = x.reshape(-1, x.shape[-1])
        if len(rows) > MAX_ROWS:
            output: torch.Tensor = self.linear(x)
            return output
        return few_row_linear(rows, self.values, self.scale, self.bias).reshape(*x.shape[:-1], -1)

    def is_current(self) -> bool:
        """Return whether the layer still has the values and scales of which this object was made."""
        parts = [getattr(self.linear.weight, name, None) for name in ("qdata", "scale")]
        return all(
            part is not None and part.data_ptr() == mine.data_ptr()
            for part, mine in zip(parts, (self.values, self.scale), strict=True)
        )


class FewRowLayers(LayerSwap):
    """The quantised layers of a model, replaced by `FewRowLinear` while a compiled step runs.

    Args:
        model: The model without its text head.
    """

    def __init__(self, model: BareModel) -> None:
        super().__init__([model.language_model], few_row_layer)

    def is_current(self) -> bool:
        """Return whether the model still has the same layers with the same values."""
        fast = [layer for *_, layer in self._layers if isinstance(layer, FewRowLinear)]
        return super().is_current() and all(layer.is_current() for layer in fast)


def few_row_layer(linear: nn.Module) -> FewRowLinear | None:
    """Return the version for few rows of a layer that torchao has quantised to 8 bits; None for all other layers.

    Layers with adapters or hooks are among the others, and all layers on devices where it would not be faster.
    """
    if not isinstance(linear, nn.Linear) or not has_no_extras(linear):
        return None
    found = values_and_scale(linear.weight)
    return None if found is None or not few_rows_pay(found[0].device) else FewRowLinear(linear, *found)


__all__ = ["FewRowLayers", "FewRowLinear", "few_row_layer"]
