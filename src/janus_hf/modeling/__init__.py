"""The networks: vision tower, image codec, aligners, heads, and the model that joins them."""

from .image_codec import JanusProVQModel
from .model import JanusProForConditionalGeneration, JanusProModel
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
