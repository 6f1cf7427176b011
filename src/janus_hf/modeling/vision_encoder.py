"""`JanusProVisionModel`, the vision tower that encodes images to be understood.

It is a SigLIP encoder without pooling head or class token. The vision tower of transformers' Janus computes the same
as deepseek-ai/Janus, bit for bit (in float32, measured against recorded outputs of that code), so it is used
unchanged. It is subclassed only to have its own name, because the conversion of original weights is registered per
class name (see `checkpoint.py`).
"""

from typing import Any

import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.janus.modeling_janus import JanusVisionModel

from ..arguments import check_keywords
from ..configuration import JanusProVisionConfig
from .weight_files import LoadedWholeMixin


# Keyword arguments that the vision tower uses. transformers' class accepts others and ignores them.
VISION_KEYWORDS = frozenset({"interpolate_pos_encoding", "output_hidden_states", "output_attentions"})


class JanusProVisionModel(LoadedWholeMixin, JanusVisionModel):
    """SigLIP vision tower: maps normalised pixels `(M, 3, H, W)` of `M` images to patch features `(M, P, width)`.

    The features are those of the last transformer layer after the final norm, `P` per image. They are in the output's
    `last_hidden_state`.
    """

    config: JanusProVisionConfig

    def forward(
        self, pixel_values: torch.Tensor | None = None, interpolate_pos_encoding: bool = False, **kwargs: Any
    ) -> BaseModelOutputWithPooling:
        """Encode images, as transformers' class does, and refuse keyword arguments that it would ignore.

        Args:
            pixel_values: `(M, 3, H, W)`, normalised by the image processor.
            interpolate_pos_encoding: Whether to fit the position embeddings to images of another size than the
                config's, which give another number of features.
            kwargs: `output_hidden_states`, `output_attentions`, `return_dict`.

        Raises:
            TypeError: If an argument is unknown.
        """
        check_keywords(kwargs, "forward", passed_on={*VISION_KEYWORDS, "return_dict"})
        # Any: transformers' method has no annotation of its result.
        output: Any = super().forward(pixel_values, interpolate_pos_encoding=interpolate_pos_encoding, **kwargs)
        return output


__all__ = ["VISION_KEYWORDS", "JanusProVisionModel"]
