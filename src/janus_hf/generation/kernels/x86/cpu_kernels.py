"""PyTorch operators for the generation step on x86 CPUs, implemented in C++ in `cpu_kernels.cpp`.

The kernels are compiled when they are first needed, in the same way as kernels of torch.compile, and cached on disk
together with them.
"""

import ctypes
from functools import cache
from pathlib import Path

import torch
from transformers.utils import logging


# The C functions take the addresses of tensors and sizes, then (for attention) the factor of the scores, and last the
# number of threads.
_NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.int8: "int8"}
_TENSOR, _SIZE = ctypes.c_void_p, ctypes.c_int64
_LINEAR = [_TENSOR] * 3 + [_SIZE] * 3 + [ctypes.c_int]
_ATTENTION = [_TENSOR] * 5 + [_SIZE] * 6 + [ctypes.c_float, ctypes.c_int]
_KERNELS = {
    "linear_float32": _LINEAR,
    "linear_bfloat16": _LINEAR,
    "linear_int8": _LINEAR,
    "linear_bfloat16_pairs": _LINEAR,
    "linear_int8_pairs": _LINEAR,
    "attention_float32": _ATTENTION,
    "attention_bfloat16": _ATTENTION,
    "ask_for_large_pages": [_TENSOR, _SIZE],
}

logger = logging.get_logger(__name__)


def kernels_fit(device: torch.device) -> bool:
    """Return whether `device` is a CPU with AVX2 or AVX-512, for which the kernels are written."""
    return device.type == "cpu" and torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")


@cache
def load_kernels() -> ctypes.CDLL:
    """Compile the C++ kernels, or load them from the cache on disk, and return them as a library.

    The argument types of its functions are declared.
    """
    # The public way, torch.utils.cpp_extension, needs ninja and does not set the processor's vector instructions, on
    # which the kernels' vector type depends.
    from torch._inductor.codecache import CppCodeCache

    library = CppCodeCache.load(Path(__file__).with_suffix(".cpp").read_text(encoding="utf-8"))
    for name, arguments in _KERNELS.items():
        kernel = getattr(library, name, None)
        if kernel is None:  # not every processor has the instructions of the kernels for pairs
            continue
        kernel.argtypes, kernel.restype = arguments, None
    return library


@cache
def kernels_can_be_built() -> bool:
    """Build the kernels and return whether that worked; if it did not, log a warning with the reason."""
    try:
        load_kernels()
    except Exception as error:  # compilers and file systems raise errors of any type
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        logger.warning(f"This package's kernels do not compile here, so the compiler's are used: {reason}")
        return False
    return True


@cache
def multiplies_pairs(dtype: torch.dtype) -> bool:
    """Return whether the kernels multiply a weight of a dtype by bfloat16 inputs, which they take in pairs.

    They do that by instructions of this machine's processor: AVX512-BF16, and for int8 also AVX512-VBMI. Otherwise
    they convert weights to float32. The answer is the C++ compiler's, which asks the processor.
    """
    return hasattr(load_kernels(), f"linear_{_NAMES.get(dtype)}_pairs")


@torch.compiler.assume_constant_result
def block_size() -> int:
    """Return the number of values that a kernel loads at once (a block): 16 with AVX2, 32 with AVX-512."""
    return load_kernels().block_size()


def in_large_pages(values: torch.Tensor) -> torch.Tensor:
    """Return a contiguous copy of a tensor in large memory pages, if the system has them (on Linux huge pages)."""
    copied = torch.empty(values.shape, dtype=values.dtype)
    load_kernels().ask_for_large_pages(copied.data_ptr(), copied.nbytes)
    return copied.copy_(values)


def packed_linear(x_MK: torch.Tensor, packed: torch.Tensor) -> torch.Tensor:
    """Compute `x w^T` for a packed weight `w`, summed in an order that does not depend on the number of rows of `x`.

    Args:
        x_MK: `(M, K)`: `M` rows of `K` inputs. The dtype tells the order in which the weight is packed: bfloat16 for
            pairs of inputs, else float32.
        packed: `w` as `pack_weight` returns it, `(N / block, K, block)` for `N` outputs; `block` is `block_size()`.
            bfloat16 or int8 in pairs, for which `multiplies_pairs` is true; float32, bfloat16 or int8 in the other
            order.

    Returns:
        `(M, N)` float32.
    """
    return torch.ops.janus_hf.packed_linear(x_MK, packed)


def _packed_linear(x_MK: torch.Tensor, packed: torch.Tensor) -> torch.Tensor:
    """Implement the operator `packed_linear` on the CPU: call the C++ kernel and return its output."""
    x_MK = x_MK.contiguous()  # the kernel gets an address and no strides
    y_MN = _empty_packed_linear(x_MK, packed)
    pairs = "_pairs" if x_MK.dtype == torch.bfloat16 else ""
    kernel = getattr(load_kernels(), f"linear_{_NAMES[packed.dtype]}{pairs}")
    kernel(x_MK.data_ptr(), packed.data_ptr(), y_MN.data_ptr(), *x_MK.shape, y_MN.shape[1], torch.get_num_threads())
    return y_MN


def _empty_packed_linear(x_MK: torch.Tensor, packed: torch.Tensor) -> torch.Tensor:
    """Implement the operator `packed_linear` for torch.compile's tracing: check the inputs and return an empty output.

    The output has the right shape `(M, N)` and dtype but no values. Raise a ValueError if the kernel does not support
    the inputs.
    """
    in_pairs = x_MK.dtype == torch.bfloat16 and packed.shape[1] % 2 == 0 and multiplies_pairs(packed.dtype)
    if not (x_MK.dtype == torch.float32 or in_pairs) or x_MK.ndim != 2 or x_MK.shape[1] != packed.shape[1]:
        raise ValueError(
            f"The input of a packed layer must be float32 of shape (rows, {packed.shape[1]}), or bfloat16 for a "
            f"weight packed in pairs of inputs, got {x_MK.dtype} of shape {tuple(x_MK.shape)}: convert and reshape it "
            "first."
        )
    return x_MK.new_empty(x_MK.shape[0], packed.shape[0] * packed.shape[2], dtype=torch.float32)


def masked_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, visible: torch.Tensor, scale: float
) -> torch.Tensor:
    """Compute the attention of queries to keys and values, without reading any position after the last visible one.

    `R` is the number of rows (sequences), `H` of query heads, `G` of key and value heads, `n` of queries per row, `L`
    of positions, and `D` the width of a head.

    Args:
        query: `(R, H, n, D)` float32; `D` is a multiple of `block_size()`.
        key: `(R, G, L, D)` float32 or bfloat16.
        value: `(R, G, L, D)` in the key's dtype.
        visible: `(R, n, L)` bool, True where a query may attend.
        scale: Factor by which scores are multiplied before the softmax.

    Returns:
        `(R, n, H, D)` float32; 0 for a query that may attend to no position.
    """
    return torch.ops.janus_hf.masked_attention(query, key, value, visible, scale)


def _masked_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, visible: torch.Tensor, scale: float
) -> torch.Tensor:
    """Implement the operator `masked_attention` on the CPU: call the C++ kernel and return its output."""
    inputs = [tensor.contiguous() for tensor in (query, key, value, visible)]
    output = _empty_masked_attention(query, key, value, visible, scale)
    rows, heads, queries, width = query.shape
    sizes = (rows, heads, key.shape[1], queries, key.shape[2], width)
    kernel = getattr(load_kernels(), f"attention_{_NAMES[key.dtype]}")
    kernel(*(tensor.data_ptr() for tensor in (*inputs, output)), *sizes, scale, torch.get_num_threads())
    return output


def _empty_masked_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, visible: torch.Tensor, scale: float
) -> torch.Tensor:
    """Implement the operator `masked_attention` for torch.compile's tracing: check the inputs, return an empty output.

    The output has the right shape `(R, n, H, D)` and dtype but no values. Raise a ValueError if the kernel does not
    support the inputs.
    """
    rows, heads, queries, width = query.shape
    fit = key.shape == value.shape and key.shape[::3] == query.shape[::3] and heads % key.shape[1] == 0
    fit = fit and key.dtype == value.dtype and visible.shape == (rows, queries, key.shape[2])
    if not fit or query.dtype != torch.float32 or visible.dtype != torch.bool or width % block_size() != 0:
        tensors = ", ".join(f"{tensor.dtype} {tuple(tensor.shape)}" for tensor in (query, key, value, visible))
        raise ValueError(
            "Query, key, value and visible must fit each other and the kernel (see `masked_attention`), got "
            f"{tensors}: use PyTorch's attention for others."
        )
    return query.new_empty(rows, queries, heads, width)


# torch.library.custom_op is shorter, but its checks cost 30 microseconds a call, and a step has 200 calls.
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


__all__ = [
    "block_size",
    "in_large_pages",
    "kernels_can_be_built",
    "kernels_fit",
    "load_kernels",
    "masked_attention",
    "multiplies_pairs",
    "packed_linear",
]
