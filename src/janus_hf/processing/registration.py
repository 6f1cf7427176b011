"""Registration of the processors with transformers' Auto classes.

It lets the Auto classes load the processors of original Janus-Pro repositories (deepseek-ai) too.
"""

from typing import Any

from transformers import AutoImageProcessor, AutoProcessor, PreTrainedConfig

from .image_processor import JanusProImageProcessor
from .processor import JanusProProcessor


class VLMImageProcessor(JanusProImageProcessor):
    """The same as `JanusProImageProcessor`, under the class name in an original preprocessor_config.json.

    transformers' Auto classes find the class by this name.
    """


class VLChatProcessor(JanusProProcessor):
    """Loader of `JanusProProcessor` under the class name in an original processor_config.json.

    transformers' Auto classes find the class by this name.
    """

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> JanusProProcessor:
        """Load and return a `JanusProProcessor`, not an instance of this class.

        The arguments are those of `JanusProProcessor.from_pretrained`.
        """
        processor: JanusProProcessor = JanusProProcessor.from_pretrained(*args, **kwargs)
        return processor


class _VLChatConfig(PreTrainedConfig):
    """Config class without content, under which `VLChatProcessor` is registered with `AutoProcessor`.

    `AutoProcessor` keeps one processor class per config class, so a second processor needs a second config class.
    """


def register(config_class: type[PreTrainedConfig]) -> None:
    """Register the processor and the image processor with transformers' Auto classes.

    They are registered for `config_class` and under the class names in the files of original repositories. Calling
    this function again has no further effect.
    """
    # Both backends get the same class: without an entry for "torchvision", which is the default where it is installed,
    # transformers would warn.
    backends: dict[str, type] = {"pil": JanusProImageProcessor, "torchvision": JanusProImageProcessor}
    backends["original"] = VLMImageProcessor  # never chosen as a backend; makes the class findable by name
    AutoImageProcessor.register(config_class, image_processor_classes=backends, exist_ok=True)
    AutoProcessor.register(config_class, JanusProProcessor, exist_ok=True)
    AutoProcessor.register(_VLChatConfig, VLChatProcessor, exist_ok=True)
