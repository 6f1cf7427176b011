"""Janus-Pro for the Hugging Face libraries: one model that understands images and draws them.

Importing this package registers the model with transformers' Auto classes.
"""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
)

from .configuration import JanusProConfig, JanusProVisionConfig, JanusProVQConfig
from .modeling import JanusProForConditionalGeneration, JanusProModel
from .modeling.checkpoint import register_conversions

register_conversions()
AutoConfig.register("multi_modality", JanusProConfig, exist_ok=True)
for auto_class in (AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForMultimodalLM):
    auto_class.register(JanusProConfig, JanusProForConditionalGeneration, exist_ok=True)
