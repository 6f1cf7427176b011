"""The three ways in which a compiled step multiplies matrices on a CPU, to run a test in each."""

import pytest
import torch

from janus_hf.generation.kernels.x86 import model_kernels
from janus_hf.generation.kernels.x86.cpu_kernels import kernels_fit


CPU = torch.device("cpu")

needs_kernels = pytest.mark.skipif(not kernels_fit(CPU), reason="the kernels are for processors with AVX2 or AVX-512")
OURS = pytest.param("all", marks=needs_kernels, id="our kernels")
OUR_ATTENTION = pytest.param("attention", marks=[needs_kernels, pytest.mark.slow], id="our attention")
THE_COMPILERS = pytest.param("none", marks=pytest.mark.slow, id="the compiler's kernels")


def choose_kernels(patch, kernels):
    """Use all kernels of `x86/`, only its attention (as on processors that multiply bfloat16), or none of them."""
    patch.setattr(model_kernels, "kernels_fit", lambda device: kernels != "none")
    patch.setattr(model_kernels, "multiplies_bfloat16", lambda: kernels == "attention")
