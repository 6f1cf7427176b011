"""Decoders run one step of the generation loop: image tokens in, the next image tokens out.

`interface.py` defines what a decoder does; `plain.py` calls PyTorch's operators one by one and `compiled.py` runs one
compiled graph. `choose_decoder` is the only place that decides which of them a model uses.
"""

import torch

from .compiled import CompiledDecoder, why_not_compilable
from .interface import Decoder, StepInput, StepOutput
from .plain import PlainDecoder, decode_step, draw_from


def choose_decoder(device: torch.device, *, compiled: bool, mode: str | None = None) -> Decoder:
    """Return a new decoder for a model on `device`.

    Args:
        device: Device of the model's weights.
        compiled: Whether to compile the step. The caller checks first that this works there (`why_not_compilable`).
        mode: `mode` of `torch.compile`; None uses CUDA graphs on a GPU and packed weights on a CPU.
    """
    return CompiledDecoder(device, mode) if compiled else PlainDecoder()


__all__ = [
    "CompiledDecoder",
    "Decoder",
    "PlainDecoder",
    "StepInput",
    "StepOutput",
    "choose_decoder",
    "decode_step",
    "draw_from",
    "why_not_compilable",
]
