"""The networks of Janus-Pro: vision tower, image codec, aligners, output heads, and the models that join them."""

from .bare_model import JanusProModel
from .image_codec import JanusProVQModel
from .model import JanusProForConditionalGeneration
from .outputs import JanusProCausalLMOutput, JanusProModelOutput, JanusProVQOutput
from .pretrained import JanusProPreTrainedModel
from .vision_encoder import JanusProVisionModel


__all__ = [
    "JanusProCausalLMOutput",
    "JanusProForConditionalGeneration",
    "JanusProModel",
    "JanusProModelOutput",
    "JanusProPreTrainedModel",
    "JanusProVQModel",
    "JanusProVQOutput",
    "JanusProVisionModel",
]
