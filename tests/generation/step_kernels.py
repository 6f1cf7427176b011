"""The three ways in which a compiled step multiplies matrices on a CPU, to run a test in each."""

import pytest
import torch

from janus_hf.generation.kernels.x86 import model_kernels
from janus_hf.generation.kernels.x86.cpu_kernels import kernels_fit
from janus_hf.generation.kernels.x86.packed_linear import PackedLinears


CPU = torch.device("cpu")

needs_kernels = pytest.mark.skipif(not kernels_fit(CPU), reason="the kernels are for processors with AVX2 or AVX-512")
OURS = pytest.param("all", marks=needs_kernels, id="our kernels")
OUR_ATTENTION = pytest.param("attention", marks=[needs_kernels, pytest.mark.slow], id="our attention")
THE_COMPILERS = pytest.param("none", marks=pytest.mark.slow, id="the compiler's kernels")


def choose_kernels(patch, kernels):
    """Use all kernels of `x86/`, only its attention (as for weights that cannot be packed), or none of them."""
    patch.setattr(model_kernels, "kernels_fit", lambda device: kernels != "none")
    if kernels == "attention":
        patch.setattr(model_kernels, "PackedLinears", lambda parts: PackedLinears([]))
