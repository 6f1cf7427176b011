"""Register the processors with transformers' Auto classes, so that these open original Janus-Pro repositories too."""

from typing import Any

from transformers import AutoImageProcessor, AutoProcessor, PreTrainedConfig

from .image_processor import JanusProImageProcessor
from .processor import JanusProProcessor


class VLMImageProcessor(JanusProImageProcessor):
    """The class name in an original preprocessor_config.json; the Auto classes find `JanusProImageProcessor` by it."""


class VLChatProcessor(JanusProProcessor):
    """The class name in an original processor_config.json; the Auto classes find `JanusProProcessor` by it."""

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> JanusProProcessor:
        """Return a `JanusProProcessor`, never an instance of this class; the arguments are the same."""
        processor: JanusProProcessor = JanusProProcessor.from_pretrained(*args, **kwargs)
        return processor


class _VLChatConfig(PreTrainedConfig):
    """A key for `VLChatProcessor`: `AutoProcessor` keeps one processor class per config class."""


def register(config_class: type[PreTrainedConfig]) -> None:
    """Register both processors for `config_class` and under the class names in the files of original repositories.

    Registering again has no effect.
    """
    # One class for both backends: without "torchvision", asking for it (the default where installed) would warn.
    backends: dict[str, type] = {"pil": JanusProImageProcessor, "torchvision": JanusProImageProcessor}
    backends["original"] = VLMImageProcessor  # not a backend that is ever chosen: it makes the class findable by name
    AutoImageProcessor.register(config_class, image_processor_classes=backends, exist_ok=True)
    AutoProcessor.register(config_class, JanusProProcessor, exist_ok=True)
    AutoProcessor.register(_VLChatConfig, VLChatProcessor, exist_ok=True)
