"""The class `JoinedLinear`: several linear layers that read the same input, multiplied as one matrix."""

from collections.abc import Sequence
from typing import TypeGuard

import torch
from torch import nn
from torch.nn import functional as F

from ...kernels.few_rows import few_row_layer


class JoinedLinear:
    """Several linear layers that read the same input, whose outputs are returned one after the other.

    The joined matrix is a copy. The layers keep their own weights, because parameters that share memory could not be
    saved as safetensors. If a weight is changed in place, the copy becomes stale until `refresh` updates it.

    Args:
        linears: The layers. If one of them has an adapter, is quantised or has hooks, all are called one by one,
            quantised ones with the kernel in `kernels/few_rows/` if that is faster.
        joined: Whether to make the joined matrix if the layers allow it; False calls the layers one by one.
    """

    def __init__(self, linears: Sequence[nn.Module], *, joined: bool) -> None:
        self._linears = list(linears)
        self._callables = [few_row_layer(linear) or linear for linear in linears]
        self._weight: torch.Tensor | None = None
        self._bias: torch.Tensor | None = None
        plain = [linear for linear in linears if is_plain(linear)]
        if joined and len(plain) == len(self._linears) and _are_alike(plain):
            self._weight = torch.cat([linear.weight.detach() for linear in plain])
            if plain[0].bias is not None:
                self._bias = torch.cat([linear.bias.detach() for linear in plain])

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Compute all layers for inputs `(..., inputs)` and return `(..., outputs of all layers)`."""
        if self._weight is None:
            return torch.cat([layer(x) for layer in self._callables], dim=-1)
        return F.linear(x, self._weight, self._bias)

    def fits(self) -> bool:
        """Return whether the weights still have the dtype, device and sizes of the joined matrix; True without one."""
        if self._weight is None:
            return True
        plain = [linear for linear in self._linears if is_plain(linear)]
        return (
            len(plain) == len(self._linears)
            and _are_alike(plain)
            and (plain[0].bias is None) is (self._bias is None)
            and plain[0].weight.dtype == self._weight.dtype
            and plain[0].weight.device == self._weight.device
            and sum(len(linear.weight) for linear in plain) == len(self._weight)
        )

    def refresh(self) -> None:
        """Copy the present weights into the joined matrix, in place."""
        plain = [linear for linear in self._linears if is_plain(linear)]
        if self._weight is not None:
            torch.cat([linear.weight.detach() for linear in plain], out=self._weight)
        if self._bias is not None:
            torch.cat([linear.bias.detach() for linear in plain], out=self._bias)


def is_plain(linear: nn.Module) -> TypeGuard[nn.Linear]:
    """Return whether a layer multiplies by its weight and adds its bias, and does nothing else.

    Layers of adapters, quantised layers, sharded weights, hooks and a replaced `forward` do more.
    """
    return type(linear) is nn.Linear and type(linear.weight.data) is torch.Tensor and is_called_plainly(linear)


def is_called_plainly(module: nn.Module) -> bool:
    """Return whether calling a module runs the `forward` of its class and nothing else: no hooks, no compilation.

    The hooks that transformers leaves in place after `output_hidden_states=True` do nothing in a step.
    """
    # torch has functions that add hooks, but none that list them.
    hooks = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
    return (
        "forward" not in vars(module)
        and module._compiled_call_impl is None
        and all(getattr(hook, "__module__", None) == "transformers.utils.output_capturing" for hook in hooks)
    )


def _are_alike(linears: Sequence[nn.Linear]) -> bool:
    """Return whether all layers have the same dtype and device, and either all or none of them have a bias."""
    kinds = {(linear.weight.dtype, linear.weight.device, linear.bias is None) for linear in linears}
    return len(kinds) == 1


__all__ = ["JoinedLinear", "is_called_plainly", "is_plain"]
