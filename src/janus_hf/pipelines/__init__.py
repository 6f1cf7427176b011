"""`JanusProPipeline`: a diffusers pipeline that generates images, answers questions and loads LoRA adapters.

Importing this package registers the pipeline with diffusers.
"""

import logging


def _is_wanted(record: logging.LogRecord) -> bool:
    """Return whether a log message is to be shown: all but the one about a torchao that diffusers cannot import."""
    return not record.getMessage().startswith("Unable to import `torchao`")


# If torchao is too new for diffusers, importing diffusers logs that it cannot read weights that torchao quantised. The
# warning is wrong here, because transformers reads the weights of this package's model. diffusers has no public way to
# leave its quantizers out.
logging.getLogger("diffusers.quantizers.torchao.torchao_quantizer").addFilter(_is_wanted)

from ..modeling import JanusProForConditionalGeneration  # noqa: E402
from ..processing import JanusProProcessor  # noqa: E402
from .diffusers_registration import register_pipeline  # noqa: E402
from .pipeline import JanusProPipeline, JanusProPipelineOutput  # noqa: E402


register_pipeline(JanusProPipeline, (JanusProForConditionalGeneration, JanusProProcessor))

__all__ = ["JanusProPipeline", "JanusProPipelineOutput"]
