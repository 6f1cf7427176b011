"""PyTorch operators for the drawing step on x86 CPUs, from `cpu_kernels.cpp`.

The kernels are compiled when they are first needed, by the machinery that torch.compile has for its own, and kept on
disk like those.
"""

import ctypes
from functools import cache
from pathlib import Path
from typing import Any

import torch


_NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.int8: "int8"}
_TENSOR, _SIZE = ctypes.c_void_p, ctypes.c_int64
_LINEAR = [_TENSOR] * 3 + [_SIZE] * 3 + [ctypes.c_int]
_ATTENTION = [_TENSOR] * 5 + [_SIZE] * 6 + [ctypes.c_float, ctypes.c_int]


def kernels_fit(device: torch.device) -> bool:
    """Whether this is a CPU with AVX2 or AVX-512."""
    return device.type == "cpu" and torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")


def multiplies_bfloat16() -> bool:
    """Whether the processor has instructions for it, which PyTorch's and the compiler's kernels then use."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


@cache
def _kernels() -> Any:
    from torch._inductor.codecache import CppCodeCache

    library = CppCodeCache.load(Path(__file__).with_suffix(".cpp").read_text(encoding="utf-8"))
    for kind, arguments in (("linear", _LINEAR), ("attention", _ATTENTION)):
        for name in _NAMES.values():
            if hasattr(library, f"{kind}_{name}"):
                kernel = getattr(library, f"{kind}_{name}")
                kernel.argtypes, kernel.restype = arguments, None
    return library


@torch.compiler.assume_constant_result
def block_size() -> int:
    """Numbers that the kernels compute with at once; depends on the processor."""
    return _kernels().block_size()


def packed_linear(x_MK: torch.Tensor, packed: torch.Tensor) -> torch.Tensor:
    """`x w^T`, summed in an order that does not depend on the number of rows.

    Args:
        x_MK: `(M, K)` float32.
        packed: Weights `(N / block, K, block)`, float32, bfloat16 or int8; see `PackedLinear`.

    Returns:
        `(M, N)` float32.
    """
    return torch.ops.janus_hf.packed_linear(x_MK, packed)


def _packed_linear(x_MK: torch.Tensor, packed: torch.Tensor) -> torch.Tensor:
    x_MK = x_MK.contiguous()
    y_MN = _empty_packed_linear(x_MK, packed)
    kernel = getattr(_kernels(), f"linear_{_NAMES[packed.dtype]}")
    kernel(x_MK.data_ptr(), packed.data_ptr(), y_MN.data_ptr(), *x_MK.shape, y_MN.shape[1], torch.get_num_threads())
    return y_MN


def _empty_packed_linear(x_MK: torch.Tensor, packed: torch.Tensor) -> torch.Tensor:
    return x_MK.new_empty(x_MK.shape[0], packed.shape[0] * packed.shape[2])


def masked_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, visible: torch.Tensor, scale: float
) -> torch.Tensor:
    """Attention that reads no further than the last position that is visible; 0 where none is.

    `R` rows, `H` heads, `G` heads of keys and values, `n` queries, `L` positions, `D` width of a head.

    Args:
        query: `(R, H, n, D)` float32; `block_size` divides `D`.
        key, value: `(R, G, L, D)` float32 or bfloat16.
        visible: `(R, n, L)` bool.

    Returns:
        `(R, n, H, D)` float32.
    """
    return torch.ops.janus_hf.masked_attention(query, key, value, visible, scale)


def _masked_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, visible: torch.Tensor, scale: float
) -> torch.Tensor:
    inputs = [tensor.contiguous() for tensor in (query, key, value, visible)]
    output = _empty_masked_attention(query, key, value, visible, scale)
    rows, heads, queries, width = query.shape
    sizes = (rows, heads, key.shape[1], queries, key.shape[2], width)
    kernel = getattr(_kernels(), f"attention_{_NAMES[key.dtype]}")
    kernel(*(tensor.data_ptr() for tensor in (*inputs, output)), *sizes, scale, torch.get_num_threads())
    return output


def _empty_masked_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, visible: torch.Tensor, scale: float
) -> torch.Tensor:
    rows, heads, queries, width = query.shape
    return query.new_empty(rows, queries, heads, width)


# Not `torch.library.custom_op`: its checks cost 30 microseconds a call, and a step has 200 calls.
for _name, _arguments, _run, _empty in (
    ("packed_linear", "Tensor x, Tensor packed", _packed_linear, _empty_packed_linear),
    (
        "masked_attention",
        "Tensor query, Tensor key, Tensor value, Tensor visible, float scale",
        _masked_attention,
        _empty_masked_attention,
    ),
):
    torch.library.define(f"janus_hf::{_name}", f"({_arguments}) -> Tensor")
    torch.library.impl(f"janus_hf::{_name}", "CPU", _run)
    torch.library.register_fake(f"janus_hf::{_name}", _empty)


__all__ = ["block_size", "kernels_fit", "masked_attention", "multiplies_bfloat16", "packed_linear"]
