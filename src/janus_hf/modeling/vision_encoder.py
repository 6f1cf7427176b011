"""The understanding encoder: SigLIP without pooling head or class token.

transformers' Janus tower reproduces the original bit for bit (float32, measured against the goldens), so it is used as
it is. It is subclassed only for its name: the conversion of original weights is registered per class (see
`checkpoint.py`).
"""

from transformers.models.janus.modeling_janus import JanusVisionModel

from ..configuration import JanusProVisionConfig


class JanusProVisionModel(JanusVisionModel):
    """`(M, 3, H, W)` normalised pixels -> `(M, P, width)` patch features (last block, final norm) in
    `last_hidden_state`.
    """

    config: JanusProVisionConfig
