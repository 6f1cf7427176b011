"""Kernels for the generation step on x86 CPUs.

`kernels_for` is the only entrance: `decoders/compiled.py` calls it, and this folder can be deleted with that call.
"""

from .model_kernels import ModelKernels, kernels_for


__all__ = ["ModelKernels", "kernels_for"]
