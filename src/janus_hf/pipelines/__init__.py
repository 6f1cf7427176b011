"""`JanusProPipeline`: a diffusers pipeline that generates images, answers questions and loads LoRA adapters.

Importing this package registers the pipeline with diffusers.
"""

import logging


def _is_about_weights(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith("Unable to import `torchao`")


# With a new torchao, importing diffusers warns that it cannot read weights which torchao quantised. transformers reads
# those of this package's model. diffusers has no public way to leave its quantizers out.
logging.getLogger("diffusers.quantizers.torchao.torchao_quantizer").addFilter(_is_about_weights)

from ..modeling import JanusProForConditionalGeneration  # noqa: E402
from ..processing import JanusProProcessor  # noqa: E402
from .diffusers_registration import register_pipeline  # noqa: E402
from .pipeline import JanusProPipeline, JanusProPipelineOutput  # noqa: E402


register_pipeline(JanusProPipeline, (JanusProForConditionalGeneration, JanusProProcessor))

__all__ = ["JanusProPipeline", "JanusProPipelineOutput"]
