"""Kernels for the generation step on x86 CPUs.

`kernels_for` is the entrance: it returns the kernels for a model. `decoders/compiled.py` calls it, and this folder can
be deleted with that call (and with that of `kernels_fit` in the command line's report on the environment).
"""

from .model_kernels import ModelKernels, kernels_for


__all__ = ["ModelKernels", "kernels_for"]
