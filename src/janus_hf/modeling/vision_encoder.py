"""`JanusProVisionModel`, the vision tower that encodes images to be understood.

It is a SigLIP encoder without pooling head or class token. The vision tower of transformers' Janus computes the same
as deepseek-ai/Janus, bit for bit (in float32, measured against recorded outputs of that code), so it is used
unchanged. It is subclassed only to have its own name, because the conversion of original weights is registered per
class name (see `checkpoint.py`).
"""

from transformers.models.janus.modeling_janus import JanusVisionModel

from ..configuration import JanusProVisionConfig
from .weight_files import LoadedWholeMixin


class JanusProVisionModel(LoadedWholeMixin, JanusVisionModel):
    """SigLIP vision tower: maps normalised pixels `(M, 3, H, W)` of `M` images to patch features `(M, P, width)`.

    The features are those of the last transformer layer after the final norm, `P` per image. They are in the output's
    `last_hidden_state`.
    """

    config: JanusProVisionConfig


__all__ = ["JanusProVisionModel"]
