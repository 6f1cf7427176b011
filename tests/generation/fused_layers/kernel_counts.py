"""Count the kernels that operators would launch on a GPU, by running them on a CPU."""

from collections import Counter
from types import TracebackType
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode


# Kernels of operators that launch another number than one. PyTorch's source on CUDA: `empty` and `_unsafe_view` only
# make a tensor; padding fills a tensor and copies into it. Attention without a mask runs FlashAttention, which splits
# the keys among blocks and then combines the parts; attention with a mask runs the memory-efficient kernel.
OTHERS = {
    "aten::empty": 0,
    "aten::new_empty": 0,
    "aten::empty_like": 0,
    "aten::empty_strided": 0,
    "aten::new_empty_strided": 0,
    "aten::_unsafe_view": 0,
    "aten::lift_fresh": 0,
    "aten::constant_pad_nd": 2,
}
FLASH = "aten::_scaled_dot_product_flash_attention_for_cpu"


@torch.library.custom_op("janus_hf_tests::fused_rms_norm", mutates_args=())
def fused_rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Stand for `aten::_fused_rms_norm`: one kernel on CUDA (torch 2.9 and later), but seven operators on a CPU."""
    return torch.rms_norm(x, x.shape[-1:], weight, eps)


class KernelCount(TorchDispatchMode):
    """Context manager that counts the kernels that the operators inside it would launch on CUDA.

    Attributes:
        by_operator: Number of kernels by the name of the operator.
    """

    def __init__(self) -> None:
        super().__init__()
        self.by_operator: Counter[str] = Counter()
        self._patch = pytest.MonkeyPatch()

    def __enter__(self) -> "KernelCount":
        self._patch.setattr(
            torch.nn.functional, "rms_norm", lambda x, shape, weight, eps: fused_rms_norm(x, weight, eps)
        )
        return super().__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        self._patch.undo()

    @property
    def total(self) -> int:
        return self.by_operator.total()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = function._schema.name
        if name == FLASH:
            count = 1 if kwargs.get("attn_mask") is not None else 2
        else:
            count = OTHERS.get(name, 0 if _is_view(function) else 1)
        if count:
            self.by_operator[name] += count
        return function(*args, **kwargs)


def _is_view(function: Any) -> bool:
    """Whether an operator returns a view of its input and writes nothing."""
    returned = function._schema.returns
    return bool(returned) and all(one.alias_info is not None and not one.alias_info.is_write for one in returned)
