"""The Triton kernel of the operator `few_row_linear` for NVIDIA's GPUs, and the function that launches it.

This file needs Triton, which comes with the builds of PyTorch for CUDA on Linux.
"""

import torch
import triton
import triton.language as tl


@triton.jit
def _linear(
    x: tl.tensor,
    weight: tl.tensor,
    scale: tl.tensor,
    bias: tl.tensor,
    y: tl.tensor,
    M: tl.tensor,
    N: tl.tensor,
    K: tl.tensor,
    IS_FLOAT8: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> None:
    """Compute `BLOCK_N` outputs of `BLOCK_M` rows; the arguments are those of `launch`, as addresses."""
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    total = tl.zeros((BLOCK_N, BLOCK_M), dtype=tl.float32)
    rows = weight + n[:, None].to(tl.int64) * K
    for start in range(0, K, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        values = tl.load(rows + k[None, :], mask=(n < N)[:, None] & (k < K)[None, :], other=0)
        inputs = tl.load(x + m[None, :] * K + k[:, None], mask=(m < M)[None, :] & (k < K)[:, None], other=0)
        if IS_FLOAT8:
            # The bits of a float8_e4m3fn, shifted, are those of a float16 with 1/256 of its value. Triton converts
            # float8 on GPUs from Ada and Hopper on only.
            bits = values.to(tl.int16)
            values = (((bits & 0x80) << 8) | ((bits & 0x7F) << 7)).to(tl.float16, bitcast=True)
        total = tl.dot(values.to(inputs.dtype), inputs, total, input_precision="ieee")
    if IS_FLOAT8:
        total *= 256
    total *= tl.load(scale + n, mask=n < N, other=0)[:, None]
    if HAS_BIAS:
        total += tl.load(bias + n, mask=n < N, other=0).to(tl.float32)[:, None]
    places = y + m[None, :].to(tl.int64) * N + n[:, None]
    tl.store(places, total.to(y.dtype.element_ty), mask=(m < M)[None, :] & (n < N)[:, None])


def launch(
    x_MK: torch.Tensor, weight_NK: torch.Tensor, scale_N: torch.Tensor, bias_N: torch.Tensor | None, y_MN: torch.Tensor
) -> None:
    """Launch the kernel, which writes `(x w^T) * scale + bias` to `y_MN`, summed in float32 and rounded once.

    Args:
        x_MK: `(M, K)` float32, bfloat16 or float16, contiguous: `M` rows of `K` inputs.
        weight_NK: `(N, K)` int8, or uint8 with the bits of float8_e4m3fn values; contiguous.
        scale_N: `(N,)` float32, contiguous.
        bias_N: `(N,)` in the dtype of `x_MK`, or None.
        y_MN: `(M, N)` in the dtype of `x_MK`, contiguous.
    """
    (rows, inputs), outputs = x_MK.shape, len(weight_NK)
    block_m, block_n, block_k, stages = block_sizes(rows, outputs, x_MK.dtype)
    _linear[(triton.cdiv(outputs, block_n), triton.cdiv(rows, block_m))](
        x_MK,
        weight_NK,
        scale_N,
        scale_N if bias_N is None else bias_N,
        y_MN,
        rows,
        outputs,
        inputs,
        IS_FLOAT8=weight_NK.dtype == torch.uint8,
        HAS_BIAS=bias_N is not None,
        BLOCK_M=block_m,
        BLOCK_N=block_n,
        BLOCK_K=block_k,
        num_warps=4,
        num_stages=stages,
    )


def block_sizes(rows: int, outputs: int, dtype: torch.dtype) -> tuple[int, int, int, int]:
    """Return the sizes of a block in rows, outputs and inputs, and how many blocks are being loaded at a time.

    They are a rule and not the result of timing, so a step is ready at once and the same sums are rounded in the same
    way in every process. Blocks are narrow, so that a layer of few outputs still occupies all parts of the GPU.
    """
    block_m = 16 if rows <= 16 else 32 if rows <= 32 else 64
    if dtype == torch.float32:  # without matrix units, so blocks are small enough for the registers
        return block_m, 32, 32, 3
    if rows > 16:
        return block_m, 64, 128, 3
    return (block_m, 16, 512, 3) if outputs <= 3072 else (block_m, 32, 256, 4)


__all__ = ["block_sizes", "launch"]
