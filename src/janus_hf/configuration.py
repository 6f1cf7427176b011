"""Configuration of Janus-Pro, and the three schemas its `config.json` comes in.

* original: what deepseek-ai released (`model_type: multi_modality`, `language_config`, `gen_vision_config`, ...). Many
  sizes are absent from those files: they lived in tables of the original code, restated here as `SIGLIP_SIZES`
  and as the defaults of the sub-configs.
* transformers: what transformers' own Janus reads (`model_type: janus`, `text_config`, `vision_config`, `vq_config`).
* ours, in memory: the transformers attribute names. On disk we write either the transformers schema or a superset of
  the original one, which the original code, this package and readers of `text_config` all understand.
"""

import json
from typing import TYPE_CHECKING, Any

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec
from transformers.models.janus.configuration_janus import JanusVisionConfig, JanusVQVAEConfig

from .layouts import Layout, read_schema
from .layouts.in_tree import to_transformers_schema
from .layouts.janus_pro import MAX_ALIGNER_DEPTH, to_original_schema


JANUS_PRO_1B_TEXT: dict[str, int] = {
    "vocab_size": 102400,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "max_position_embeddings": 16384,
}


def _check_depth(name: str, depth: int) -> None:
    if not 1 <= depth <= MAX_ALIGNER_DEPTH:
        raise ValueError(
            f"{name}, an aligner's number of linear layers, must be at least 1 and at most {MAX_ALIGNER_DEPTH}, "
            f"got {depth}."
        )


@strict
class JanusProVisionConfig(JanusVisionConfig):
    """SigLIP tower and its aligner (the understanding path). Fields are those of transformers' `JanusVisionConfig`.

    `projection_dim` is the aligner's output width and must equal the language model's; `depth` counts the aligner's
    linear layers.
    """

    def __post_init__(self, **kwargs: Any) -> None:
        self.num_image_tokens = (self.image_size // self.patch_size) ** 2
        super().__post_init__(**kwargs)
        self.validate_architecture()  # at once, so that a plain ValueError is raised; @strict would wrap it

    def validate_architecture(self) -> None:
        """Raise a ValueError if sizes do not fit together."""
        if self.image_size % self.patch_size:
            raise ValueError(
                f"vision_config.image_size ({self.image_size}) must be a multiple of patch_size ({self.patch_size})."
            )
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"vision_config.hidden_size ({self.hidden_size}) must be a multiple of num_attention_heads "
                f"({self.num_attention_heads})."
            )
        _check_depth("vision_config.depth", self.depth)


@strict
class JanusProVQConfig(JanusVQVAEConfig):
    """Image codec, code embedding, generation aligner and image head (the drawing path).

    Adds to transformers' `JanusVQVAEConfig`:

    Args:
        image_size: Side of the drawn picture in pixels. The codec, not the understanding tower, owns the geometry
            of drawing: a picture is `num_patches x num_patches` codes, `num_image_tokens` in all.
        commitment_cost: Weight of the commitment term in the codec's training loss.

    `projection_dim` is the generation aligner's output width (the language model's), `image_token_embed_dim` the
    hidden width of the image head, `num_hidden_layers` the number of linear layers in the generation aligner.
    """

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
        """Pixels per code along one side."""
        return 2 ** (len(self.channel_multiplier) - 1)

    @property
    def num_image_tokens(self) -> int:
        """Codes per picture (`P`)."""
        return self.num_patches**2

    def validate_architecture(self) -> None:
        """Raise a ValueError if sizes do not fit together."""
        if self.image_size != self.num_patches * self.downsampling:
            raise ValueError(
                f"vq_config.image_size ({self.image_size}) must be a multiple of {self.downsampling}, the codec's "
                f"downsampling (2 ** (levels - 1) for channel_multiplier {list(self.channel_multiplier)})."
            )
        _check_depth("vq_config.num_hidden_layers", self.num_hidden_layers)
        if self.double_latent:
            raise ValueError("vq_config.double_latent is not part of Janus-Pro's codec; it must be False.")
        odd = [self.base_channels * m for m in self.channel_multiplier if self.base_channels * m % 32]
        if odd or self.base_channels % 32:
            raise ValueError(
                "The codec normalises in 32 groups: vq_config.base_channels times each channel_multiplier must be "
                f"a multiple of 32, got {self.base_channels} x {list(self.channel_multiplier)}."
            )


@strict
class JanusProConfig(PreTrainedConfig):
    """Configuration of a whole Janus-Pro; without arguments, that of Janus-Pro-1B.

    Args:
        text_config: Any transformers text configuration (Llama by default), as an object or a dict.
        vision_config: `JanusProVisionConfig` or dict: the understanding path.
        vq_config: `JanusProVQConfig` or dict: the drawing path.
        image_token_id: Id of `<image_placeholder>`, the token that understanding features replace. It differs between
            checkpoints and is not in the original `config.json`; `from_pretrained` of the model reads it from the
            tokenizer's files.

    Raises:
        ValueError: If sizes of the parts do not fit together, or a config of another family is read (DeepSeek-VL and
            JanusFlow share the `model_type`).
    """

    model_type = "multi_modality"
    sub_configs_defaults = {
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="llama", init_kwargs=JANUS_PRO_1B_TEXT),
        "vision_config": JanusProVisionConfig,
        "vq_config": JanusProVQConfig,
    }

    if TYPE_CHECKING:  # what they are once constructed
        text_config: Any
        vision_config: JanusProVisionConfig
        vq_config: JanusProVQConfig
    else:  # what the constructor takes
        text_config: dict | PreTrainedConfig | None = None
        vision_config: dict | PreTrainedConfig | None = None
        vq_config: dict | PreTrainedConfig | None = None
    image_token_id: int | None = None
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        self.validate_architecture()

    def validate_architecture(self) -> None:
        """Raise a ValueError if sizes do not fit together."""
        width = self.text_config.hidden_size
        for name, sub_config in (("vision_config", self.vision_config), ("vq_config", self.vq_config)):
            if sub_config.projection_dim != width:
                raise ValueError(
                    f"{name}.projection_dim ({sub_config.projection_dim}) is the width an aligner hands to the "
                    f"language model and must equal text_config.hidden_size ({width})."
                )

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Read any of the three schemas (see the module's docstring); `kwargs` as in `PreTrainedConfig.from_dict`."""
        return super().from_dict(read_schema(config_dict), **kwargs)

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: Any, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """As in `PreTrainedConfig`, brought to our own attribute names."""
        config_dict, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        return read_schema(config_dict), kwargs

    def to_file_dict(self, layout: Layout) -> dict[str, Any]:
        """The content of `config.json` in one of the two layouts.

        Raises:
            ValueError: If the layout cannot express this model.
        """
        plain = json.loads(super().to_json_string(use_diff=True))
        return to_original_schema(self, plain) if layout == "original" else to_transformers_schema(self, plain)

    def to_json_file(self, json_file_path: Any, use_diff: bool = True) -> None:
        """Write `config.json` in the layout that `save_pretrained` of the model asked for (original by default)."""
        layout: Layout = getattr(self, "_file_layout", "original")
        with open(json_file_path, "w", encoding="utf-8") as file:
            file.write(json.dumps(self.to_file_dict(layout), indent=2, sort_keys=True) + "\n")

    def _remove_keys_not_serialized(self, d: dict[str, Any]) -> None:
        super()._remove_keys_not_serialized(d)
        d.pop("_file_layout", None)


__all__ = ["JanusProConfig", "JanusProVQConfig", "JanusProVisionConfig"]
