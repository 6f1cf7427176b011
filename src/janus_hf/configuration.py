"""Configuration classes of Janus-Pro, with the field names of transformers' own Janus and some additional fields.

A `config.json` can have two file formats (layouts). `layouts/` holds the functions that read and write them.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, ClassVar, Self

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec
from transformers.models.janus.configuration_janus import JanusVisionConfig, JanusVQVAEConfig

from .errors import CheckpointError
from .layouts import Layout, in_tree, janus_pro, read_config


# Sizes of the language model when no `text_config` is given.
JANUS_PRO_1B_TEXT: dict[str, int] = {
    "vocab_size": 102400,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "max_position_embeddings": 16384,
}


# A context variable and not an argument: transformers writes the file, inside `PreTrainedModel.save_pretrained`.
_layout_to_write: ContextVar[Layout] = ContextVar("layout of config.json", default="original")


@contextmanager
def writing_layout(layout: Layout) -> Iterator[None]:
    """Write the `config.json` of every `JanusProConfig` in the file format `layout` inside the `with` block.

    Args:
        layout: "original" (that of the deepseek-ai releases) or "transformers" (that of transformers' own Janus
            class).
    """
    token = _layout_to_write.set(layout)
    try:
        yield
    finally:
        _layout_to_write.reset(token)


def _check_depth(name: str, depth: int) -> None:
    """Raise a ValueError unless an aligner's number of linear layers is 1 to `janus_pro.MAX_ALIGNER_DEPTH`.

    The table of weight names covers only these numbers.

    Args:
        name: Name of the config field in the error message.
        depth: Number of linear layers.
    """
    if not 1 <= depth <= janus_pro.MAX_ALIGNER_DEPTH:
        raise ValueError(
            f"{name} must be at least 1 and at most {janus_pro.MAX_ALIGNER_DEPTH}, got {depth}: it is the number of "
            "linear layers in an aligner."
        )


@strict
class JanusProVisionConfig(JanusVisionConfig):
    """Sizes of the SigLIP vision tower and its aligner, with which the model understands images.

    The fields are those of transformers' `JanusVisionConfig`. `projection_dim` is the output width of the aligner and
    must equal the width of the language model; `depth` is the aligner's number of linear layers. `num_image_tokens` is
    computed from the image size and the patch size.

    Raises:
        ValueError: If sizes do not fit together.
    """

    def __post_init__(self, **kwargs: Any) -> None:
        self.num_image_tokens = (self.image_size // self.patch_size) ** 2
        super().__post_init__(**kwargs)
        # This is called here and not left to @strict, which would wrap the ValueError in an exception of its own.
        self.validate_architecture()

    def validate_architecture(self) -> None:
        """Raise a ValueError unless patches divide the image size, heads divide the width and `depth` is in range."""
        if self.image_size % self.patch_size:
            raise ValueError(
                f"vision_config.image_size must be a multiple of patch_size ({self.patch_size}), got "
                f"{self.image_size}: the tower cuts an image into whole patches."
            )
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"vision_config.hidden_size must be a multiple of num_attention_heads ({self.num_attention_heads}), "
                f"got {self.hidden_size}: the heads share the width equally."
            )
        _check_depth("vision_config.depth", self.depth)


@strict
class JanusProVQConfig(JanusVQVAEConfig):
    """Sizes of the parts that generate images: image codec, code embedding, generation aligner and image head.

    The fields are those of transformers' `JanusVQVAEConfig` and those below. `projection_dim` is the output width of
    the generation aligner and must equal the width of the language model, `num_hidden_layers` is the aligner's number
    of linear layers, and `image_token_embed_dim` the hidden width of the image head.

    Args:
        image_size: Side of a generated image in pixels. If it is given, `num_patches` is computed from it, otherwise
            it is computed from `num_patches`.
        commitment_cost: Weight of the commitment term in the codec's training loss.
        num_patches: Number of codes (codebook entries) along one side of an image, which has
            `num_patches x num_patches` codes. It is the codec's number and may differ from that of the vision tower.

    Raises:
        ValueError: If sizes do not fit together.
    """

    if TYPE_CHECKING:  # the type of the attribute once the object is constructed
        image_size: int
    else:  # the types that the constructor takes
        image_size: int | None = None
    commitment_cost: float = 0.25
    num_patches: int = 24

    def __post_init__(self, **kwargs: Any) -> None:
        if self.image_size is None:
            self.image_size = self.num_patches * self.downsampling
        else:
            self.num_patches = self.image_size // self.downsampling
        super().__post_init__(**kwargs)
        self.validate_architecture()

    @property
    def downsampling(self) -> int:
        """Number of pixels per code (codebook entry) along one side of an image."""
        return 2 ** (len(self.channel_multiplier) - 1)

    @property
    def num_image_tokens(self) -> int:
        """Number of codes (codebook entries) per image."""
        return self.num_patches**2

    def validate_architecture(self) -> None:
        """Raise a ValueError if sizes do not fit together, or Janus-Pro's codec does not support a setting."""
        if self.image_size != self.num_patches * self.downsampling:
            raise ValueError(
                f"vq_config.image_size must be a multiple of {self.downsampling}, got {self.image_size}: the codec "
                "halves the grid between levels, and channel_multiplier "
                f"{list(self.channel_multiplier)} has {len(self.channel_multiplier)} levels."
            )
        _check_depth("vq_config.num_hidden_layers", self.num_hidden_layers)
        if self.double_latent:
            raise ValueError(
                "vq_config.double_latent must be False, got True: the codec of Janus-Pro has single latents."
            )
        odd = [self.base_channels * m for m in self.channel_multiplier if self.base_channels * m % 32]
        if odd or self.base_channels % 32:
            raise ValueError(
                "vq_config.base_channels times each channel_multiplier must be a multiple of 32, got "
                f"{self.base_channels} x {list(self.channel_multiplier)}: the codec normalises in 32 groups."
            )


@strict
class JanusProConfig(PreTrainedConfig):
    """Configuration of a complete Janus-Pro; without arguments, that of Janus-Pro-1B.

    Args:
        text_config: Any transformers text configuration (Llama by default), as an object or a dict.
        vision_config: `JanusProVisionConfig` or dict: the vision tower and aligner with which images are understood.
        vq_config: `JanusProVQConfig` or dict: the codec, aligner and image head with which images are generated.
        image_token_id: Id of `<image_placeholder>`, the token whose embedding is replaced by image features. It
            differs between checkpoints and is not in the original `config.json`; `from_pretrained` of the model reads
            it from the tokenizer's files.

    Raises:
        ValueError: If sizes of the sub-configs do not fit together, or a config of another model family is read
            (DeepSeek-VL and JanusFlow share the `model_type`).
    """

    model_type = janus_pro.MODEL_TYPE
    # TRL loads a reference model by `architectures`, which names a class of deepseek-ai's code, unless a config has
    # this attribute of models with remote code; then it uses the Auto classes, which know this configuration.
    auto_map: ClassVar[dict[str, str]] = {}
    # The fields of `JanusProCausalLMOutput` that are no predictions, for the evaluation of transformers' `Trainer`.
    # What remains of the output are the text logits.
    keys_to_ignore_at_inference: ClassVar[list[str]] = [
        "past_key_values",
        "hidden_states",
        "attentions",
        "image_hidden_states",
        "text_loss",
        "image_loss",
        "num_text_labels",
        "num_image_labels",
    ]
    sub_configs_defaults = {
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="llama", init_kwargs=JANUS_PRO_1B_TEXT),
        "vision_config": JanusProVisionConfig,
        "vq_config": JanusProVQConfig,
    }

    if TYPE_CHECKING:  # the types of the attributes once the object is constructed
        text_config: PreTrainedConfig
        vision_config: JanusProVisionConfig
        vq_config: JanusProVQConfig
    else:  # the types that the constructor takes, which @strict checks
        text_config: dict | PreTrainedConfig | None = None
        vision_config: dict | PreTrainedConfig | None = None
        vq_config: dict | PreTrainedConfig | None = None
    image_token_id: int | None = None
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        # Fields of a released config.json would become attributes that nothing reads, beside the defaults of the 1B.
        if foreign := sorted(set(kwargs) & set(janus_pro.BLOCKS)):
            raise ValueError(
                f"Arguments must be fields of {type(self).__name__}, got {', '.join(foreign)} of a deepseek-ai "
                "config.json: read that content with from_dict, or the file with from_pretrained or from_json_file."
            )
        super().__post_init__(**kwargs)
        self.validate_architecture()

    def validate_architecture(self) -> None:
        """Raise a ValueError unless the output widths of both aligners equal the width of the language model."""
        width = self.text_config.hidden_size
        for name, sub_config in (("vision_config", self.vision_config), ("vq_config", self.vq_config)):
            if sub_config.projection_dim != width:
                raise ValueError(
                    f"{name}.projection_dim must equal text_config.hidden_size ({width}), got "
                    f"{sub_config.projection_dim}: the aligner's output is the language model's input."
                )

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Self:
        """Build a configuration from the content of a `config.json`, or from the fields of this class.

        The file may be that of a deepseek-ai release or of transformers' own Janus class.

        Args:
            config_dict: The content; it is not modified.
            kwargs: Further arguments, as in `PreTrainedConfig.from_dict`.

        Raises:
            ValueError: If the content belongs to another model family, or sizes do not fit together.
        """
        return super().from_dict(read_config(config_dict), **kwargs)

    @classmethod
    def from_json_file(cls, json_file: str | os.PathLike[str]) -> Self:
        """Build a configuration from a `config.json` of any file format that `from_dict` reads."""
        with open(json_file, encoding="utf-8") as file:
            return cls.from_dict(json.load(file))

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Read a `config.json` as `PreTrainedConfig` does, and convert its content to keyword arguments of this class.

        Returns:
            These keyword arguments, and those of `kwargs` that were not used to find the file.

        Raises:
            CheckpointError: If there is no such file. The method of `PreTrainedConfig` then returns the defaults of
                the class, which are a whole Janus-Pro-1B.
        """
        config_dict, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        if not config_dict:
            raise CheckpointError(
                f"{str(pretrained_model_name_or_path)!r} must hold a config.json, got none: name the folder or "
                "repository of a checkpoint, or copy the file there."
            )
        return read_config(config_dict), kwargs

    def to_file_dict(self, layout: Layout) -> dict[str, Any]:
        """Return the content of `config.json` in one of two file formats.

        Args:
            layout: "original" (that of the deepseek-ai releases) or "transformers" (that of transformers' own Janus
                class).

        Raises:
            ValueError: If this file format cannot express the model.
        """
        plain = json.loads(super().to_json_string(use_diff=True))
        family = janus_pro if layout == "original" else in_tree
        return family.write_config(self, plain)

    def to_json_file(self, json_file_path: str | os.PathLike[str], use_diff: bool = True) -> None:
        """Write `config.json` in the file format of the deepseek-ai releases, or in that set by `writing_layout`.

        Args:
            json_file_path: File to write.
            use_diff: Argument of the method in transformers; it has no effect, because fields at their defaults are
                never written.
        """
        with open(json_file_path, "w", encoding="utf-8") as file:
            file.write(json.dumps(self.to_file_dict(_layout_to_write.get()), indent=2, sort_keys=True) + "\n")


__all__ = ["JanusProConfig", "JanusProVQConfig", "JanusProVisionConfig", "writing_layout"]
