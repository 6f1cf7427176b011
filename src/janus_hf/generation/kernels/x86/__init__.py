"""Kernels for the generation step on x86 CPUs.

`kernels_for` returns the kernels for a model; `decoders/compiled.py` calls it. `kernels_fit` says whether the kernels
suit a device; the command line's report on the environment calls it. Nothing else imports this folder, so it can be
deleted together with these two calls.
"""

from .cpu_kernels import kernels_fit
from .model_kernels import ModelKernels, kernels_for


__all__ = ["ModelKernels", "kernels_fit", "kernels_for"]
