"""`JanusProPipeline`: a diffusers pipeline that generates images, answers questions and loads LoRA adapters.

Importing this package registers the pipeline with diffusers.
"""

from ..modeling import JanusProForConditionalGeneration
from ..processing import JanusProProcessor
from .diffusers_registration import register_pipeline
from .pipeline import JanusProPipeline, JanusProPipelineOutput


register_pipeline(JanusProPipeline, (JanusProForConditionalGeneration, JanusProProcessor))

__all__ = ["JanusProPipeline", "JanusProPipelineOutput"]
