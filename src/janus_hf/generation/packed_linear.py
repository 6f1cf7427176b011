"""Linear layers for the few rows of a drawing step, on x86 processors without bfloat16 units.

PyTorch's and the compiler's matrix kernels are made for many rows, or for those units: without them two rows of
bfloat16 are read at a third of the memory's speed, and sixteen multiplied at half of the processor's. The kernel in
`packed_linear.cpp` is compiled when it is first needed, by the compiler's own machinery.

`M` rows, `K` inputs and `N` outputs of a layer.
"""

import copy
import ctypes
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import nn


_DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.int8: "int8"}


def packing_pays(device: torch.device) -> bool:
    """Whether the kernel is for this device: a CPU with AVX2 or AVX-512 that cannot multiply bfloat16."""
    if device.type != "cpu" or torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        return False
    return not (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def copy_sharing_weights(model: nn.Module) -> Any:
    """A copy whose modules may be changed; its parameters and buffers are the model's own."""
    return copy.deepcopy(model, {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())})


def pack_linears(model: nn.Module) -> bool:
    """Put a `PackedLinear` in the place of every linear layer whose weight is in float32, bfloat16 or torchao's int8.

    Returns:
        Whether those are all.
    """
    linears = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    fitting = [(name, module) for name, module in linears if type(module) is nn.Linear and _fits(module.weight)]
    for name, module in fitting:
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, PackedLinear(module))
    return len(fitting) == len(linears)


class PackedLinear(nn.Module):
    """A linear layer whose inputs and outputs may be of any floating dtype; summed in float32, in the same order for
    any number of rows.

    Args:
        linear: The layer to compute; its weight is kept beside the packed one.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        values, self.scale = _values_and_scale(linear.weight)
        self.register_buffer("packed", _pack(values, _kernels().block_size()), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`(..., K)` -> `(..., N)`."""
        y_MN = torch.ops.janus_hf.packed_linear(x.reshape(-1, x.shape[-1]).float(), self.packed)
        y_MN = y_MN[:, : len(self.weight)]
        if self.scale is not None:
            y_MN = y_MN * self.scale
        if self.bias is not None:
            y_MN = y_MN + self.bias.float()
        return y_MN.to(x.dtype).reshape(*x.shape[:-1], len(self.weight))


def _fits(weight: Any) -> bool:
    if type(weight).__name__ == "Int8Tensor":
        scale_per_output = list(weight.block_size) == [1, weight.shape[1]] and not bool(weight.zero_point.any())
        return scale_per_output and weight.act_quant_kwargs is None
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


@cache
def _kernels() -> Any:
    from torch._inductor.codecache import CppCodeCache

    library = CppCodeCache.load(Path(__file__).with_suffix(".cpp").read_text(encoding="utf-8"))
    for name in _DTYPES.values():
        kernel = getattr(library, f"linear_{name}")
        kernel.argtypes = [ctypes.c_void_p] * 3 + [ctypes.c_int64] * 3 + [ctypes.c_int]
        kernel.restype = None
    return library


def _packed_linear(x_MK: torch.Tensor, packed: torch.Tensor) -> torch.Tensor:
    """`x w^T` `(M, N)` float32, of `x` in float32 and packed weights `(N / block, K, block)`."""
    x_MK = x_MK.contiguous()
    (rows, inputs), outputs = x_MK.shape, packed.shape[0] * packed.shape[2]
    y_MN = x_MK.new_empty(rows, outputs)
    kernel = getattr(_kernels(), f"linear_{_DTYPES[packed.dtype]}")
    kernel(x_MK.data_ptr(), packed.data_ptr(), y_MN.data_ptr(), rows, inputs, outputs, torch.get_num_threads())
    return y_MN


# Not `torch.library.custom_op`: its checks cost 30 microseconds a call, and a step has 170 calls.
torch.library.define("janus_hf::packed_linear", "(Tensor x, Tensor packed) -> Tensor")
torch.library.impl("janus_hf::packed_linear", "CPU", _packed_linear)


@torch.library.register_fake("janus_hf::packed_linear")
def _shape_of_packed_linear(x_MK: torch.Tensor, packed: torch.Tensor) -> torch.Tensor:
    return x_MK.new_empty(x_MK.shape[0], packed.shape[0] * packed.shape[2])


__all__ = ["PackedLinear", "copy_sharing_weights", "pack_linears", "packing_pays"]
