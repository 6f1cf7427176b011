"""Janus-Pro for the Hugging Face libraries: one model that understands images and generates images.

Importing this package registers the model, its processor and the weight conversion with transformers' Auto classes.
The pipeline, which needs diffusers, and the functions that assemble, convert and inspect checkpoints are
imported when they are
first accessed.
"""

import importlib
import warnings
from typing import TYPE_CHECKING


# transformers and diffusers import tqdm.auto, whose first import in a notebook warns if ipywidgets is missing.
# Progress bars are plain text then.
with warnings.catch_warnings():
    warnings.filterwarnings("ignore", message="IProgress not found")
    from tqdm import auto as _  # noqa: F401

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
)

from ._version import __version__
from .configuration import JanusProConfig, JanusProVisionConfig, JanusProVQConfig
from .errors import CheckpointError
from .modeling import JanusProForConditionalGeneration, JanusProModel, JanusProVisionModel, JanusProVQModel
from .modeling.checkpoint import register_conversions
from .processing import JanusProImageProcessor, JanusProProcessor
from .processing import register as _register_processors


if TYPE_CHECKING:
    from .checkpoints.assemble import assemble_checkpoint
    from .checkpoints.convert import convert_checkpoint
    from .checkpoints.inspect import CheckpointInfo, inspect_checkpoint
    from .pipelines import JanusProPipeline, JanusProPipelineOutput

# Public names that are imported at first access -> the module that defines them.
_LAZY = {
    "CheckpointInfo": "checkpoints.inspect",
    "JanusProPipeline": "pipelines",
    "JanusProPipelineOutput": "pipelines",
    "assemble_checkpoint": "checkpoints.assemble",
    "convert_checkpoint": "checkpoints.convert",
    "inspect_checkpoint": "checkpoints.inspect",
}

__all__ = [
    "CheckpointError",
    "CheckpointInfo",
    "JanusProConfig",
    "JanusProForConditionalGeneration",
    "JanusProImageProcessor",
    "JanusProModel",
    "JanusProPipeline",
    "JanusProPipelineOutput",
    "JanusProProcessor",
    "JanusProVQConfig",
    "JanusProVQModel",
    "JanusProVisionConfig",
    "JanusProVisionModel",
    "__version__",
    "assemble_checkpoint",
    "convert_checkpoint",
    "inspect_checkpoint",
]


if not TYPE_CHECKING:  # a type checker would take every misspelled name for one that this function returns

    def __getattr__(name: str) -> object:
        if name in _LAZY:
            return getattr(importlib.import_module(f".{_LAZY[name]}", __name__), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)


def _register() -> None:
    """Register the classes and the weight conversion with transformers. A second call has no further effect."""
    register_conversions()
    AutoConfig.register(JanusProConfig.model_type, JanusProConfig, exist_ok=True)
    for auto_class in (AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForMultimodalLM):
        auto_class.register(JanusProConfig, JanusProForConditionalGeneration, exist_ok=True)
    _register_processors(JanusProConfig)


_register()
