"""Linear layers for the few rows of a generation step, on x86 processors.

The matrix kernels of PyTorch and of its compiler are made for many rows. On processors without instructions for
bfloat16 they read the weights of two bfloat16 rows at a third of the memory's speed, and multiply sixteen rows at half
of the processor's speed. The compiler's kernels are fast with such instructions, but take constants as weights: with
them compiling takes three times as long and twice the memory.

In shapes, `M` is the number of rows, `K` the number of inputs and `N` the number of outputs of a layer.
"""

from collections.abc import Iterable

import torch
from torch import nn

from ..layer_swap import LayerSwap
from ..quantised_values import values_and_scale
from .cpu_kernels import block_size, in_large_pages, multiplies_pairs, packed_linear


class PackedLinears(LayerSwap):
    """Packed versions of a model's linear layers, which replace these layers only inside the context `in_place`.

    A packed layer has its weight reordered for the kernel.

    Args:
        parts: Modules whose linear layers are packed, if their weights are float32, bfloat16, or quantised by torchao
            to 8 bits.

    Attributes:
        complete: Whether there are linear layers, and the compiler need not pack any of them: all are packed here, or
            are int4 weights, which torchao has packed for a kernel of PyTorch.
    """

    def __init__(self, parts: Iterable[nn.Module]) -> None:
        super().__init__(parts, lambda linear: PackedLinear(linear) if _fits(linear.weight) else None)
        packed_already = all(type(linear.weight).__name__ == "Int4OpaqueTensor" for linear in self.kept)
        self.complete = bool(self._layers or self.kept) and packed_already

    def pack_again(self) -> None:
        """Pack all weights again; the caller calls this after weights were changed in place."""
        for *_, packed in self._layers:
            assert isinstance(packed, PackedLinear)
            packed.pack()


class PackedLinear(nn.Module):
    """A linear layer with a packed weight (reordered for the kernel), for inputs of any floating dtype.

    It sums in float32, in an order that does not depend on the number of rows, and rounds once to the input's dtype.
    Inputs of a weight that is bfloat16, or was before it was quantised, are multiplied as bfloat16 where the processor
    has instructions for that, and all other inputs as float32.

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
        # A quantised weight has the dtype in which its layer computes.
        pairs = self.weight.dtype == torch.bfloat16 and values.shape[1] % 2 == 0 and multiplies_pairs(values.dtype)
        self.input_dtype = torch.bfloat16 if pairs else torch.float32
        pack = pack_weight
        if pairs:
            pack = pack_int8_pairs if values.dtype == torch.int8 else pack_pairs
        self.packed = pack(values, block_size())

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
    pairs = _blocks_of_pairs(values_NK, block, torch.int32)
    return in_large_pages(pairs.transpose(1, 2)).view(torch.bfloat16).view(len(pairs), -1, block)


def pack_int8_pairs(values_NK: torch.Tensor, block: int) -> torch.Tensor:
    """Reorder an int8 weight for the same instructions, in the shape of `pack_pairs`.

    The kernel puts every second group of four outputs into a second register, so these groups lie behind the others.
    Negative values `w` become `~w` with the sign bit set, as the kernel's table needs them.
    """
    codes = torch.where(values_NK < 0, values_NK ^ 0x7F, values_NK)
    pairs = _blocks_of_pairs(codes, block, torch.int16)
    groups = pairs.unflatten(1, (2, -1, 4)).permute(0, 4, 2, 1, 3)  # (N / block, K / 2, block / 8, 2, 4)
    return in_large_pages(groups).view(torch.int8).view(len(pairs), -1, block)


def _blocks_of_pairs(values_NK: torch.Tensor, block: int, pair: torch.dtype) -> torch.Tensor:
    """Return a weight `(N, K)` as pairs of inputs `(ceil(N / block), block, K / 2)`; `pair` is an integer dtype."""
    padded = nn.functional.pad(values_NK, (0, 0, 0, -len(values_NK) % block)).contiguous()
    return padded.view(pair).unflatten(0, (-1, block))


def _fits(weight: torch.Tensor) -> bool:
    """Return whether the kernel supports a weight: float32, bfloat16, or torchao's 8 bits with a scale per output."""
    if values_and_scale(weight) is not None:
        return True
    return type(weight.data) is torch.Tensor and weight.dtype in (torch.float32, torch.bfloat16)


def _values_and_scale(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the values `(N, K)` of a weight, and the scales `(N,)` float32 of its outputs if it is quantised.

    Values in float8 are returned in bfloat16, which the kernel multiplies and which holds them exactly.
    """
    quantised = values_and_scale(weight)
    if quantised is None:
        return weight.detach(), None
    values, scale = quantised
    return values.to(torch.bfloat16) if values.dtype == torch.float8_e4m3fn else values, scale


__all__ = ["PackedLinear", "PackedLinears", "pack_int8_pairs", "pack_pairs", "pack_weight"]
