"""The class `ModelKernels`, which makes a model compute with the kernels in this folder while a step runs."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ....protocols import BareModel
from .cpu_kernels import kernels_can_be_built, kernels_fit
from .few_query_attention import attending_with_few_queries
from .packed_linear import PackedLinears


class ModelKernels:
    """Fast layers of one model for x86 CPUs: packed linear layers, and attention for few queries.

    A packed layer has its weight reordered for the kernel.

    Args:
        model: The model without its text head. The linear layers of its language model, generation aligner and image
            head are packed.

    Attributes:
        complete: Whether the model has linear layers and the compiler need not pack any of them.
    """

    def __init__(self, model: BareModel) -> None:
        parts = (model.language_model, model.generation_aligner, model.generation_head)
        self._language_model = model.language_model
        self._linears = PackedLinears(parts)
        self.complete = self._linears.complete

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Make the model compute with the packed layers and the fast attention inside the context."""
        with self._linears.in_place(), attending_with_few_queries(self._language_model):
            yield

    def is_current(self) -> bool:
        """Return whether the model still has the same layer objects that were packed.

        Weights that were changed in place are not noticed.
        """
        return self._linears.is_current()

    def pack_again(self) -> None:
        """Pack all weights again; the caller calls this after weights were changed in place."""
        self._linears.pack_again()


def kernels_for(model: BareModel, device: torch.device) -> ModelKernels | None:
    """Return the kernels for a model on `device`, or None if they do not work there.

    They need an x86 CPU with AVX2 or AVX-512 and a C++ compiler that compiles them.
    """
    return ModelKernels(model) if kernels_fit(device) and kernels_can_be_built() else None


__all__ = ["ModelKernels", "kernels_for"]
