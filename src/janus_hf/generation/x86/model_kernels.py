"""This folder's kernels, put into one model for the time of a step."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ...protocols import BareModel
from .cpu_kernels import kernels_can_be_built, kernels_fit, multiplies_bfloat16
from .few_query_attention import attending_with_few_queries
from .packed_linear import PackedLinears


class ModelKernels:
    """Packed linear layers and few-query attention for one model.

    On processors that multiply bfloat16 only the attention is used: the compiler's matrix kernels are faster there.

    Args:
        model: The bare model. Its language model, generation aligner and image head are packed.

    Attributes:
        complete: Whether the model has linear layers and all of them are packed. If not, the compiler packs the rest.
    """

    def __init__(self, model: BareModel) -> None:
        parts = (model.language_model, model.generation_aligner, model.generation_head)
        self._language_model = model.language_model
        self._linears = PackedLinears([] if multiplies_bfloat16() else parts)
        self.complete = self._linears.complete

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Let the model compute with these kernels inside the context."""
        with self._linears.in_place(), attending_with_few_queries(self._language_model):
            yield

    def is_current(self) -> bool:
        """Return whether the model's linear layers are still those that were packed."""
        return self._linears.is_current()

    def pack_again(self) -> None:
        """Pack all weights again, after they were changed in place."""
        self._linears.pack_again()


def kernels_for(model: BareModel, device: torch.device) -> ModelKernels | None:
    """Return kernels for a model on `device`.

    Return None unless `device` is an x86 CPU with AVX2 or AVX-512 and the kernels compile there.
    """
    return ModelKernels(model) if kernels_fit(device) and kernels_can_be_built() else None


__all__ = ["ModelKernels", "kernels_for"]
