"""Linear layers for the few rows of a drawing step, on x86 processors without bfloat16 units.

PyTorch's and the compiler's matrix kernels are made for many rows, or for those units: without them two rows of
bfloat16 are read at a third of the memory's speed, and sixteen multiplied at half of the processor's.

`M` rows, `K` inputs and `N` outputs of a layer.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from .cpu_kernels import block_size, packed_linear


class PackedLinears:
    """Packed layers for linear layers of a model, whose places they take when asked to.

    Not for good: the model is trained, saved and given adapters as it was.

    Args:
        parts: Modules whose linear layers are packed if their weights are float32, bfloat16 or torchao's int8.

    Attributes:
        complete: Whether there are linear layers, and all of them are packed.
    """

    def __init__(self, parts: Iterable[nn.Module]) -> None:
        linears = [
            (parent, name, child)
            for part in parts
            for parent in part.modules()
            for name, child in parent.named_children()
            if isinstance(child, nn.Linear)
        ]
        fitting = [place for place in linears if _is_plain(place[2]) and _fits(place[2].weight)]
        self.complete = bool(linears) and len(fitting) == len(linears)
        self._places = [(parent, name, linear, PackedLinear(linear)) for parent, name, linear in fitting]

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within, the model computes with packed layers."""
        try:
            for parent, name, _, packed in self._places:
                parent._modules[name] = packed
            yield
        finally:
            for parent, name, linear, _ in self._places:
                parent._modules[name] = linear

    def is_current(self) -> bool:
        """Whether the layers in these places are still those that were packed, and nothing more."""
        return all(
            parent._modules.get(name) is linear and _is_plain(linear) for parent, name, linear, _ in self._places
        )

    def pack_again(self) -> None:
        """To be called when weights have been written to."""
        for *_, packed in self._places:
            packed.pack()


class PackedLinear(nn.Module):
    """A linear layer whose inputs and outputs may be of any floating dtype; summed in float32, in the same order for
    any number of rows.

    Args:
        linear: The layer to compute. Its weight is kept, to be packed again and for whoever asks for its dtype.
    """

    scale: torch.Tensor | None
    packed: torch.Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias, self.outputs = linear.weight, linear.bias, linear.out_features
        self.pack()

    def pack(self) -> None:
        """Take over what the weight holds now."""
        values, self.scale = _values_and_scale(self.weight)
        self.packed = _pack(values, block_size())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`(..., K)` -> `(..., N)`."""
        y_MN = packed_linear(x.reshape(-1, x.shape[-1]).float(), self.packed)
        y_MN = y_MN[:, : self.outputs]
        if self.scale is not None:
            y_MN = y_MN * self.scale
        if self.bias is not None:
            y_MN = y_MN + self.bias.float()
        return y_MN.to(x.dtype).reshape(*x.shape[:-1], self.outputs)


def _is_plain(linear: nn.Linear) -> bool:
    """Without hooks and the like, which would not be called."""
    extras = linear._forward_hooks or linear._forward_pre_hooks or "forward" in vars(linear)
    return type(linear) is nn.Linear and not extras


def _fits(weight: Any) -> bool:
    if type(weight).__name__ == "Int8Tensor":
        scale_per_output = list(weight.block_size) == [1, weight.shape[1]]
        symmetric = weight.zero_point is None or not bool(weight.zero_point.any())
        inputs_as_they_are = weight.act_quant_kwargs is None and weight.act_pre_scale is None
        return scale_per_output and symmetric and inputs_as_they_are
    return type(weight.data) is torch.Tensor and weight.dtype in (torch.float32, torch.bfloat16)


def _values_and_scale(weight: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
    if type(weight).__name__ == "Int8Tensor":  # torchao's
        return weight.qdata, weight.scale.float().flatten()
    return weight.detach(), None


def _pack(values_NK: torch.Tensor, block: int) -> torch.Tensor:
    """`(N / block, K, block)`, filled up with zeros; in bfloat16 the halves of a block are interleaved, as the kernel
    takes them apart.
    """
    padded = nn.functional.pad(values_NK, (0, 0, 0, -len(values_NK) % block))
    halves = padded.unflatten(0, (-1, 2, block // 2)).permute(0, 3, 1, 2)  # (N / block, K, 2, block / 2)
    if values_NK.dtype == torch.bfloat16:
        halves = halves.transpose(2, 3)
    return halves.flatten(2).contiguous()


__all__ = ["PackedLinear", "PackedLinears"]
