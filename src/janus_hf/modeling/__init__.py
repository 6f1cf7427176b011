"""The networks: vision tower, codec, aligners, heads, and the model that wires them."""

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
