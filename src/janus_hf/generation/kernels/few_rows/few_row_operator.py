"""The PyTorch operator `few_row_linear`: a linear layer with a quantised weight, for the few rows of a step.

On CUDA it reads the weight once, in 8 bits. torchao's layers first write the whole weight in 16 bits and read it
again, unless a compiler joins the two, which it finds out by timing kernels for every layer.
"""

from functools import cache

import torch
from torch.nn import functional as F
from transformers.utils import logging

from ...devices import has_bfloat16


logger = logging.get_logger(__name__)

# Largest number of rows for the operator: 128 images with guidance. More rows, such as those of prompts, are better
# multiplied by the matrix kernels of PyTorch, for which converting the weight is a small part of the work.
MAX_ROWS = 256


def few_row_linear(
    x_MK: torch.Tensor, weight_NK: torch.Tensor, scale_N: torch.Tensor, bias_N: torch.Tensor | None = None
) -> torch.Tensor:
    """Compute `(x w^T) * scale + bias`, summed in float32 and rounded once.

    Args:
        x_MK: `(M, K)` float32, bfloat16 or float16: `M` rows of `K` inputs.
        weight_NK: Values `(N, K)` of the weight, int8 or float8_e4m3fn.
        scale_N: `(N,)` float32.
        bias_N: `(N,)` in the dtype of `x_MK`, or None.

    Returns:
        `(M, N)` in the dtype of `x_MK`.
    """
    return torch.ops.janus_hf.few_row_linear(x_MK, weight_NK, scale_N, bias_N)


def _on_cpu(
    x_MK: torch.Tensor, weight_NK: torch.Tensor, scale_N: torch.Tensor, bias_N: torch.Tensor | None
) -> torch.Tensor:
    """Implement the operator on a CPU with PyTorch's operators."""
    y_MN = F.linear(x_MK.float(), weight_NK.float()) * scale_N
    return (y_MN if bias_N is None else y_MN + bias_N.float()).to(x_MK.dtype)


def _on_cuda(
    x_MK: torch.Tensor, weight_NK: torch.Tensor, scale_N: torch.Tensor, bias_N: torch.Tensor | None
) -> torch.Tensor:
    """Implement the operator on CUDA with the kernel in `few_row_kernel.py`."""
    from .few_row_kernel import launch  # needs Triton

    if weight_NK.dtype == torch.float8_e4m3fn:
        weight_NK = weight_NK.view(torch.uint8)
    y_MN = x_MK.new_empty(x_MK.shape[0], weight_NK.shape[0])
    with torch.cuda.device(x_MK.device):
        launch(x_MK.contiguous(), weight_NK.contiguous(), scale_N.contiguous(), bias_N, y_MN)
    return y_MN


def _empty(
    x_MK: torch.Tensor, weight_NK: torch.Tensor, scale_N: torch.Tensor, bias_N: torch.Tensor | None
) -> torch.Tensor:
    """Implement the operator for torch.compile's tracing: return an output of the right shape without values."""
    return x_MK.new_empty(x_MK.shape[0], weight_NK.shape[0])


def few_rows_pay(device: torch.device) -> bool:
    """Return whether the operator is faster than torchao's layers on `device`, and works there."""
    return device.type == "cuda" and kernel_works(device)


@cache
def kernel_works(device: torch.device) -> bool:
    """Run the operator on a small example on `device` and return whether it works; if not, log a warning once.

    The example is computed for both kinds of weights and compared with PyTorch's own operators.
    """
    try:
        reason = _what_is_wrong(device)
    except Exception as error:  # compilers, drivers and file systems raise errors of any type
        reason = str(error).strip().split("\n")[0] or type(error).__name__
    if reason is not None:
        logger.warning(
            f"This package's kernel for quantised weights does not work here, so torchao's are used: {reason}"
        )
    return reason is None


def _what_is_wrong(device: torch.device) -> str | None:
    """Return how the operator's results for a small example on `device` are wrong, or None if they are right."""
    generator = torch.Generator().manual_seed(0)
    dtype = torch.bfloat16 if has_bfloat16(device) else torch.float16
    x_MK, scale_N = torch.randn(3, 544, generator=generator), torch.rand(40, generator=generator) + 0.5
    weight_NK = (20 * torch.randn(40, 544, generator=generator)).round().clamp(-127, 127)
    inputs = x_MK.to(dtype)
    for kind in (torch.int8, torch.float8_e4m3fn):
        values = weight_NK.to(kind)
        expected = _on_cpu(inputs.float(), values, scale_N, None)
        found = few_row_linear(inputs.to(device), values.to(device), scale_N.to(device)).cpu().float()
        error = ((found - expected).abs().max() / expected.abs().max()).item()
        if not error < 2 * torch.finfo(dtype).eps:  # False for NaN too
            return f"its results for {kind} weights are off by {error:.1e} of the largest"
    return None


# torch.library.custom_op is shorter, but its checks cost 30 microseconds a call, and a step has 200 calls.
torch.library.define("janus_hf::few_row_linear", "(Tensor x, Tensor weight, Tensor scale, Tensor? bias) -> Tensor")
torch.library.impl("janus_hf::few_row_linear", "CPU", _on_cpu)
torch.library.impl("janus_hf::few_row_linear", "CUDA", _on_cuda)
torch.library.register_fake("janus_hf::few_row_linear", _empty)


__all__ = ["MAX_ROWS", "few_row_linear", "few_rows_pay", "kernel_works"]
