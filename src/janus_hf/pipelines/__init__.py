"""The model as a pipeline: generate images, ask about images, chat, adapters."""

from .pipeline import JanusProPipeline, JanusProPipelineOutput


__all__ = ["JanusProPipeline", "JanusProPipelineOutput"]
