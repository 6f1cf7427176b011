"""Layers of the language model that launch few kernels, for the steps of image generation on GPUs.

`fuse` returns a model that runs with them; `PlainDecoder` and `CapturedDecoder` call it.
"""

from .fused_model import FusedModel, fuse
from .why_not_fused import why_not_fused


__all__ = ["FusedModel", "fuse", "why_not_fused"]
