"""The function `values_and_scale`, which reads what torchao's quantised weights consist of."""

from typing import Any

import torch


def values_and_scale(weight: Any) -> tuple[torch.Tensor, torch.Tensor] | None:  # Any: torchao is optional
    """Return the stored values and the scales of a weight of torchao with one scale per output, otherwise None.

    The weight is `values * scale`, and inputs of the layer are not quantised.

    Args:
        weight: Weight of a linear layer with `N` outputs and `K` inputs.

    Returns:
        Values `(N, K)` in int8 or float8_e4m3fn, and scales `(N,)` float32, which both share the weight's memory. None
        for every other kind of weight.
    """
    # torchao's classes are recognised by name, so that it need not be imported.
    kind = type(weight).__name__
    if kind == "Int8Tensor":
        fits = weight.zero_point is None or not bool(weight.zero_point.any())
        fits = fits and weight.act_quant_kwargs is None and weight.act_pre_scale is None
    elif kind == "Float8Tensor":
        fits = weight.act_quant_kwargs is None and weight.qdata.dtype == torch.float8_e4m3fn
    else:
        return None
    fits = fits and weight.qdata.ndim == 2 and weight.scale.dtype == torch.float32
    if not fits or list(weight.block_size) != [1, weight.qdata.shape[1]]:
        return None
    return weight.qdata, weight.scale.flatten()


__all__ = ["values_and_scale"]
