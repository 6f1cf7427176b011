"""`JanusProPipeline`: a diffusers pipeline that generates images, answers questions and loads LoRA adapters."""

from .pipeline import JanusProPipeline, JanusProPipelineOutput


__all__ = ["JanusProPipeline", "JanusProPipelineOutput"]
