"""Decoders: classes that run one step of the generation loop, from image tokens to the next image tokens.

`interface.py` defines the methods of a decoder; the decoder in `plain.py` calls PyTorch's operators one by one, that
in `compiled.py` runs one compiled graph, and that in `captured.py` replays the plain operators from a CUDA graph.
`fused_layers/` has the layers with which uncompiled steps run the language model on a GPU. `default_decoder` chooses
a decoder for a model, until `compile_generation` is called.
"""

import torch

from .captured import CapturedDecoder
from .compiled import CompiledDecoder, why_not_compilable
from .graph_dependencies import fingerprint, step_modules
from .interface import Decoder, StepInput, StepModel, StepOutput, TextHead
from .obstacles import why_not_capturable
from .plain import PlainDecoder, decode_step, draw_from, few_kernels_pay


def default_decoder(device: torch.device) -> Decoder:
    """Return a new decoder for a model on `device` whose `compile_generation` was not called."""
    # `return CapturedDecoder() if device.type == "cuda" else PlainDecoder()` makes captured steps the default on CUDA.
    # They have not been run on a GPU yet; see "Captured steps" in docs/speed.md for what must be measured first.
    return PlainDecoder()


def choose_decoder(device: torch.device, *, compiled: bool, mode: str | None = None) -> Decoder:
    """Return a new decoder that compiles the steps of image generation, or one that does not, for a model on `device`.

    Args:
        device: Device of the model's weights.
        compiled: Whether the decoder compiles the step. The caller first checks that compiling works on `device`
            (`why_not_compilable`).
        mode: The argument `mode` of `torch.compile`; None uses CUDA graphs on a GPU and packed weights (copies in the
            order in which matrix kernels read them) on a CPU.
    """
    return CompiledDecoder(device, mode) if compiled else PlainDecoder()


__all__ = [
    "CapturedDecoder",
    "CompiledDecoder",
    "Decoder",
    "PlainDecoder",
    "StepInput",
    "StepModel",
    "StepOutput",
    "TextHead",
    "choose_decoder",
    "decode_step",
    "default_decoder",
    "draw_from",
    "few_kernels_pay",
    "fingerprint",
    "step_modules",
    "why_not_capturable",
    "why_not_compilable",
]
