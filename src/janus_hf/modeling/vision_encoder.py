"""The understanding encoder: SigLIP without pooling head or class token.

The tower of transformers' Janus reproduces the original bit for bit (float32, measured against the goldens), so it is
used as it is. It is subclassed only for its name: the conversion of original weights is registered per class name (see
`checkpoint.py`).
"""

from transformers.models.janus.modeling_janus import JanusVisionModel

from ..configuration import JanusProVisionConfig


class JanusProVisionModel(JanusVisionModel):
    """SigLIP tower: maps normalised pixels `(M, 3, H, W)` of `M` images to `(M, P, width)` features of their patches.

    The features are those of the last block after the final norm, in `last_hidden_state` of the output.
    """

    config: JanusProVisionConfig


__all__ = ["JanusProVisionModel"]
