"""Teaches transformers' Auto classes to open Janus-Pro repositories, under the names found in their files."""

from typing import Any

from transformers import AutoImageProcessor, AutoProcessor, PreTrainedConfig

from .image_processor import JanusProImageProcessor
from .processor import JanusProProcessor


class VLMImageProcessor(JanusProImageProcessor):
    """The name in an original preprocessor_config.json; opens as `JanusProImageProcessor`."""


class VLChatProcessor(JanusProProcessor):
    """The name in an original processor_config.json; opens as `JanusProProcessor`."""

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """A `JanusProProcessor`, whatever this class is called."""
        return JanusProProcessor.from_pretrained(*args, **kwargs)


class _VLChatConfig(PreTrainedConfig):
    """AutoProcessor keeps one class per config class, and looks names up among those: a key for the second name."""


def register(config_class: type[PreTrainedConfig]) -> None:
    """Registers both processors for `config_class` and for the class names of original repositories. Repeatable."""
    # One class for both backends: without "torchvision", asking for it (the default where installed) would warn.
    backends: dict[str, type] = {"pil": JanusProImageProcessor, "torchvision": JanusProImageProcessor}
    backends["original"] = VLMImageProcessor  # never chosen, only found by its name
    AutoImageProcessor.register(config_class, image_processor_classes=backends, exist_ok=True)
    AutoProcessor.register(config_class, JanusProProcessor, exist_ok=True)
    AutoProcessor.register(_VLChatConfig, VLChatProcessor, exist_ok=True)
