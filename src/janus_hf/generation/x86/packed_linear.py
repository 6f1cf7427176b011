"""Linear layers for the few rows of a generation step, on x86 processors.

The matrix kernels of PyTorch and of its compiler are made for many rows. On processors without instructions for
bfloat16 they read the weights of two bfloat16 rows at a third of the memory's speed, and multiply sixteen rows at half
of the processor's speed. The compiler's kernels are fast with such instructions, but take constants as weights: with
them compiling takes three times as long and twice the memory.

In shapes, `M` is the number of rows, `K` the number of inputs and `N` the number of outputs of a layer.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from .cpu_kernels import block_size, in_large_pages, multiplies_bfloat16, packed_linear


class PackedLinears:
    """Packed versions of a model's linear layers, which replace these layers only inside the context `in_place`.

    A packed layer has its weight reordered for the kernel. Outside the context the model keeps its own layers, so it
    can be trained, saved and given adapters as if there were no packed layers.

    Args:
        parts: Modules whose linear layers are packed, if their weights are float32, bfloat16 or torchao's int8.

    Attributes:
        complete: Whether there are linear layers, and the compiler need not pack any of them: all are packed here, or
            are int4 weights, which torchao has packed for a kernel of PyTorch.
    """

    def __init__(self, parts: Iterable[nn.Module]) -> None:
        linears = [
            (parent, name, child)
            for part in parts
            for parent in part.modules()
            for name, child in parent.named_children()
            if isinstance(child, nn.Linear)
        ]
        fitting = [layer for layer in linears if _is_plain(layer[2]) and _fits(layer[2].weight)]
        packed_already = [layer for layer in linears if type(layer[2].weight).__name__ == "Int4OpaqueTensor"]
        self.complete = bool(linears) and len(fitting) + len(packed_already) == len(linears)
        self._layers = [(parent, name, linear, PackedLinear(linear)) for parent, name, linear in fitting]

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Replace the model's linear layers by the packed layers inside the context."""
        # `setattr` is the public way and checks every name: 2.3 microseconds for replacing a layer and back, against
        # 0.1, for each of some 170 layers at every step.
        try:
            for parent, name, _, packed in self._layers:
                parent._modules[name] = packed
            yield
        finally:
            try:
                self._put_back()
            except KeyboardInterrupt:
                self._put_back()
                raise

    def _put_back(self) -> None:
        """Give the model its own layers back."""
        for parent, name, linear, _ in self._layers:
            parent._modules[name] = linear

    def is_current(self) -> bool:
        """Return whether the model still has the same layer objects that were packed, without hooks added since."""
        return all(
            parent._modules.get(name) is linear and _is_plain(linear) for parent, name, linear, _ in self._layers
        )

    def pack_again(self) -> None:
        """Pack all weights again; the caller calls this after weights were changed in place."""
        for *_, packed in self._layers:
            packed.pack()


class PackedLinear(nn.Module):
    """A linear layer with a packed weight (reordered for the kernel), for inputs of any floating dtype.

    It sums in float32, in an order that does not depend on the number of rows, and rounds once to the input's dtype.
    Inputs of a bfloat16 weight are multiplied as bfloat16 where the processor has instructions for that, and all other
    inputs as float32.

    Args:
        linear: The layer to replace. Its weight is kept, to be packed again and because callers read its dtype.
    """

    scale: torch.Tensor | None
    packed: torch.Tensor
    input_dtype: torch.dtype

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias, self.outputs = linear.weight, linear.bias, linear.out_features
        self.pack()

    def pack(self) -> None:
        """Pack the present values of the weight."""
        values, self.scale = _values_and_scale(self.weight)
        in_pairs = values.dtype == torch.bfloat16 and values.shape[1] % 2 == 0 and multiplies_bfloat16()
        self.input_dtype = torch.bfloat16 if in_pairs else torch.float32
        self.packed = (pack_pairs if in_pairs else pack_weight)(values, block_size())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute the layer for inputs `(..., K)` and return `(..., N)` in the input's dtype."""
        y_MN = packed_linear(x.reshape(-1, x.shape[-1]).to(self.input_dtype), self.packed)
        y_MN = y_MN[:, : self.outputs]  # without the outputs that fill up the last block
        if self.scale is not None:
            y_MN = y_MN * self.scale
        if self.bias is not None:
            y_MN = y_MN + self.bias.float()
        return y_MN.to(x.dtype).reshape(*x.shape[:-1], self.outputs)


def pack_weight(values_NK: torch.Tensor, block: int) -> torch.Tensor:
    """Reorder a weight for the kernel: `(N, K)` -> `(ceil(N / block), K, block)`.

    `N` is the number of outputs and `K` the number of inputs. Zeros fill up the last block of outputs. In bfloat16 the
    two halves of a block are interleaved, because the kernel separates even and odd entries.
    """
    padded = nn.functional.pad(values_NK, (0, 0, 0, -len(values_NK) % block))
    halves = padded.unflatten(0, (-1, 2, block // 2)).permute(0, 3, 1, 2)  # (N / block, K, 2, block / 2)
    if values_NK.dtype == torch.bfloat16:
        halves = halves.transpose(2, 3)
    return in_large_pages(halves).flatten(2)


def pack_pairs(values_NK: torch.Tensor, block: int) -> torch.Tensor:
    """Reorder a bfloat16 weight for instructions that multiply pairs: `(N, K)` -> `(ceil(N / block), K, block)`.

    `N` is the number of outputs and `K` the number of inputs, which is even. Zeros fill up the last block of outputs.
    Each block of the result holds, for each pair of inputs in turn, the two weights of each of its outputs.
    """
    padded = nn.functional.pad(values_NK, (0, 0, 0, -len(values_NK) % block)).contiguous()
    pairs = padded.view(torch.int32).unflatten(0, (-1, block))  # (N / block, block, K / 2)
    return in_large_pages(pairs.transpose(1, 2)).view(torch.bfloat16).view(len(pairs), -1, block)


def _is_plain(linear: nn.Linear) -> bool:
    """Return whether a layer is an `nn.Linear` without hooks and without a replaced `forward`.

    A packed layer would not call these.
    """
    # torch has functions that add hooks but none that list them.
    extras = linear._forward_hooks or linear._forward_pre_hooks or "forward" in vars(linear)
    return type(linear) is nn.Linear and not extras


def _fits(weight: Any) -> bool:  # Any: a tensor, or torchao's Int8Tensor, which is optional
    """Return whether the kernel supports a weight: float32, bfloat16, or torchao's int8 with one scale per output."""
    # torchao is optional, so its class is recognised by name.
    if type(weight).__name__ == "Int8Tensor":
        scale_per_output = list(weight.block_size) == [1, weight.shape[1]]
        symmetric = weight.zero_point is None or not bool(weight.zero_point.any())
        unchanged_inputs = weight.act_quant_kwargs is None and weight.act_pre_scale is None
        return scale_per_output and symmetric and unchanged_inputs
    return type(weight.data) is torch.Tensor and weight.dtype in (torch.float32, torch.bfloat16)


def _values_and_scale(weight: Any) -> tuple[torch.Tensor, torch.Tensor | None]:  # Any: as in `_fits`
    """Return the values `(N, K)` of a weight, and for int8 the scales of its `N` outputs `(N,)` float32, else None."""
    if type(weight).__name__ == "Int8Tensor":
        return weight.qdata, weight.scale.float().flatten()
    return weight.detach(), None


__all__ = ["PackedLinear", "PackedLinears", "pack_pairs", "pack_weight"]
