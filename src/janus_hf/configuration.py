"""Configuration of Janus-Pro, and the three schemas its `config.json` comes in.

* original: what deepseek-ai released (`model_type: multi_modality`, `language_config`, `gen_vision_config`, ...). Many
  sizes are absent from those files: they lived in tables of the original code, restated here as `SIGLIP_SIZES`
  and as the defaults of the sub-configs.
* transformers: what transformers' own Janus reads (`model_type: janus`, `text_config`, `vision_config`, `vq_config`).
* ours, in memory: the transformers attribute names. On disk we write either the transformers schema or a superset of
  the original one, which the original code, this package and readers of `text_config` all understand.
"""

import json
from typing import TYPE_CHECKING, Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec
from transformers.models.janus.configuration_janus import JanusVisionConfig, JanusVQVAEConfig


Layout = Literal["original", "transformers"]

# Sizes that the original code looks up by `model_name` (janus/models/siglip_vit.py); only this tower was ever
# released.
SIGLIP_SIZES: dict[str, dict[str, int | float]] = {
    "siglip_large_patch16_384": {"patch_size": 16, "width": 1024, "layers": 24, "heads": 16, "mlp_ratio": 4},
}
# The original builds its codec from constants (janus/models/vq_model.py, "VQ-16") and ignores the file's params.
VQ16_SIZES: dict[str, Any] = {"ch": 128, "ch_mult": [1, 1, 2, 2, 4], "num_res_blocks": 2, "z_channels": 256}

JANUS_PRO_1B_TEXT: dict[str, int] = {
    "vocab_size": 102400,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "max_position_embeddings": 16384,
}


# Linear layers an aligner may have; the table of weight names (modeling/checkpoint.py) is written out for so many.
MAX_ALIGNER_DEPTH = 8


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


def read_schema(config_dict: dict[str, Any]) -> dict[str, Any]:
    """Any of the three schemas -> keyword arguments of `JanusProConfig`. The input is not modified.

    Raises:
        ValueError: If the dict is of another family, or asks for a part that Janus-Pro does not have.
    """
    family = config_dict.get("model_type", JanusProConfig.model_type)
    if family not in (JanusProConfig.model_type, "janus"):
        raise ValueError(
            f"This is a checkpoint of another family: model_type {family!r}. janus_hf reads Janus and Janus-Pro only."
        )
    if "vision_gen_enc_config" in config_dict or "vision_und_enc_config" in config_dict:
        raise ValueError(
            "This is a JanusFlow checkpoint: it draws by rectified flow through a U-ViT and an SDXL VAE, not by "
            "image codes. janus_hf reads Janus and Janus-Pro; use the original JanusFlow code for this one."
        )
    if "text_config" in config_dict and "vq_config" in config_dict:
        return _read_transformers_schema(config_dict)
    if "gen_vision_config" in config_dict:
        return _read_original_schema(config_dict)
    if config_dict.get("model_type") == "multi_modality" and "language_config" in config_dict:
        raise ValueError(
            "This multi_modality checkpoint has no gen_vision_config: it looks like DeepSeek-VL, which shares the "
            "model_type with Janus but cannot draw. janus_hf reads Janus and Janus-Pro checkpoints only."
        )
    return dict(config_dict)


def _read_transformers_schema(config_dict: dict[str, Any]) -> dict[str, Any]:
    config = {key: value for key, value in config_dict.items() if key not in _ORIGINAL_ONLY_KEYS}
    config.pop("model_type", None)
    if isinstance(vision := config["vision_config"], dict):
        config["vision_config"] = {k: v for k, v in vision.items() if k not in ("cls", "params", "model_type")}
    if config_dict.get("model_type") == "janus":
        config.setdefault("tie_word_embeddings", True)  # that class's default
    if config_dict.get("model_type") == "janus" and isinstance(config["vq_config"], dict):
        # transformers' Janus takes the grid of drawn pictures from the understanding tower
        # (JanusConfig.__post_init__).
        tower = JanusProVisionConfig(**config["vision_config"])
        config["vq_config"] = {**config["vq_config"], "num_patches": tower.image_size // tower.patch_size}
        config["vq_config"].pop("image_size", None)
    return config


_ORIGINAL_ONLY_KEYS = (
    "language_config",
    "aligner_config",
    "gen_aligner_config",
    "gen_head_config",
    "gen_vision_config",
)


def _read_original_schema(config_dict: dict[str, Any]) -> dict[str, Any]:
    language = dict(config_dict["language_config"])
    # Janus-1.3B asks for flash-attn here; which kernel to run is the user's choice at load time, not the file's.
    for key in ("_attn_implementation", "attn_implementation", "torch_dtype"):
        language.pop(key, None)
    text_config = AutoConfig.for_model(language.pop("model_type", "llama"), **language)

    vision = _params(config_dict, "vision_config", cls="CLIPVisionTower")
    aligner = _params(config_dict, "aligner_config", cls="MlpProjector", projector_type="mlp_gelu")
    gen_aligner = _params(config_dict, "gen_aligner_config", cls="MlpProjector", projector_type="mlp_gelu")
    head = _params(config_dict, "gen_head_config", cls="vision_head")
    codec = VQ16_SIZES | _params(config_dict, "gen_vision_config", cls="VQ-16")

    name = vision.get("model_name", "siglip_large_patch16_384")
    if name not in SIGLIP_SIZES:
        raise ValueError(f"vision_config.params.model_name must be one of {sorted(SIGLIP_SIZES)}, got {name!r}.")
    if vision.get("select_feature", "same") != "same":
        raise ValueError(f"vision_config.params.select_feature must be 'same', got {vision['select_feature']!r}.")
    tower = SIGLIP_SIZES[name] | vision
    select_layer = vision.get("select_layer", -1)
    # siglip_vit.py builds only the blocks up to the selected one, counted from the end when not positive.
    layers = min(tower["layers"], tower["layers"] + select_layer + 1 if select_layer <= 0 else select_layer)

    image_size = vision.get("image_size", 384)
    rest = {k: v for k, v in config_dict.items() if k not in (*_ORIGINAL_ONLY_KEYS, "vision_config", "model_type")}
    return {
        **rest,
        "tie_word_embeddings": False,
        "text_config": text_config,
        "vision_config": {
            "image_size": image_size,
            "patch_size": tower["patch_size"],
            "hidden_size": tower["width"],
            "num_hidden_layers": layers,
            "num_attention_heads": tower["heads"],
            "mlp_ratio": tower["mlp_ratio"],
            "projection_dim": aligner.get("n_embed", text_config.hidden_size),
            "depth": aligner.get("depth", 1),
        },
        "vq_config": {
            # The file states one picture size only; drawing and understanding share it in every release.
            "image_size": codec.get("image_size", image_size),
            "base_channels": codec["ch"],
            "channel_multiplier": codec["ch_mult"],
            "num_res_blocks": codec["num_res_blocks"],
            "latent_channels": codec["z_channels"],
            "num_embeddings": codec.get("image_token_size", 16384),
            "embed_dim": codec.get("n_embed", 8),
            "projection_dim": gen_aligner.get("n_embed", text_config.hidden_size),
            "num_hidden_layers": gen_aligner.get("depth", 1),
            "image_token_embed_dim": head.get("image_token_embed", text_config.hidden_size),
        },
    }


def _params(config_dict: dict[str, Any], key: str, *, cls: str, projector_type: str | None = None) -> dict[str, Any]:
    block = config_dict.get(key, {})
    params = dict(block.get("params", {}))
    if block.get("cls", cls) != cls:
        raise ValueError(f"{key}.cls must be {cls!r} for Janus-Pro, got {block['cls']!r}.")
    if projector_type is not None and params.get("projector_type", projector_type) != projector_type:
        raise ValueError(
            f"{key}.params.projector_type must be {projector_type!r} for Janus-Pro, got {params['projector_type']!r}."
        )
    return params


def to_original_schema(config: JanusProConfig, plain: dict[str, Any]) -> dict[str, Any]:
    """Superset of the original schema: its blocks, plus `text_config` / `vision_config` fields / `vq_config`."""
    text, vision, vq = config.text_config, config.vision_config, config.vq_config
    tower = {
        "patch_size": vision.patch_size,
        "width": vision.hidden_size,
        "layers": vision.num_hidden_layers,
        "heads": vision.num_attention_heads,
        "mlp_ratio": vision.mlp_ratio,
    }
    codec = {
        "ch": vq.base_channels,
        "ch_mult": list(vq.channel_multiplier),
        "num_res_blocks": vq.num_res_blocks,
        "z_channels": vq.latent_channels,
    }
    name = "siglip_large_patch16_384"
    aligner = {"projector_type": "mlp_gelu", "n_embed": text.hidden_size}
    dtype = {"torch_dtype": plain["dtype"]} if plain.get("dtype") else {}
    return {
        **plain,
        "model_type": "multi_modality",
        "architectures": ["MultiModalityCausalLM"],
        **dtype,
        "language_config": _llama_for_old_transformers(text) | dtype,
        "vision_config": {
            **plain["vision_config"],
            "cls": "CLIPVisionTower",
            "model_type": "vision",
            "params": {
                "image_size": vision.image_size,
                "model_name": name,
                "select_feature": "same",
                "select_layer": -1,
                # Sizes that are not the named tower's own are spelled out: without them they could not be known.
                **{key: value for key, value in tower.items() if value != SIGLIP_SIZES[name][key]},
            },
        },
        "aligner_config": _block(
            "MlpProjector", "aligner", **aligner, depth=vision.depth, input_dim=vision.hidden_size
        ),
        "gen_vision_config": _block(
            "VQ-16",
            "gen_vision",
            image_token_size=vq.num_embeddings,
            n_embed=vq.embed_dim,
            **{key: value for key, value in codec.items() if value != VQ16_SIZES[key]},
            **({"image_size": vq.image_size} if vq.image_size != vision.image_size else {}),
        ),
        "gen_aligner_config": _block(
            "MlpProjector", "gen_aligner", **aligner, depth=vq.num_hidden_layers, input_dim=vq.embed_dim
        ),
        "gen_head_config": _block(
            "vision_head",
            "gen_head",
            image_token_embed=vq.image_token_embed_dim,
            image_token_size=vq.num_embeddings,
            n_embed=text.hidden_size,
        ),
    }


def _block(cls: str, model_type: str, **params: Any) -> dict[str, Any]:
    return {"cls": cls, "model_type": model_type, "params": params}


def _llama_for_old_transformers(text: PreTrainedConfig) -> dict[str, Any]:
    """`text` with every field of its class spelled out, rotary settings in the form transformers 4 reads."""
    common = PreTrainedConfig().to_dict()
    language = {k: v for k, v in text.to_dict().items() if k not in common and v is not None}
    rope = dict(language.pop("rope_parameters", None) or {})
    language["rope_theta"] = rope.pop("rope_theta", 10000.0)
    if rope.get("rope_type", "default") != "default":
        language["rope_scaling"] = rope
    token_ids = {k: getattr(text, k) for k in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return language | token_ids | {"model_type": text.model_type, "tie_word_embeddings": False}


def to_transformers_schema(config: JanusProConfig, plain: dict[str, Any]) -> dict[str, Any]:
    """The schema of transformers' own Janus (`model_type: janus`).

    Raises:
        ValueError: If that class would build another model from it.
    """
    vision, vq = config.vision_config, config.vq_config
    if config.image_token_id is None:
        raise ValueError(
            "transformers' Janus needs config.image_token_id and this configuration has none: load the model "
            "together with its tokenizer files, or set `config.image_token_id = processor.image_token_id`."
        )
    if vq.num_patches != vision.image_size // vision.patch_size:
        raise ValueError(
            "transformers' Janus draws as many codes as its understanding tower sees patches "
            f"({vision.num_image_tokens}); this model draws {vq.num_image_tokens}. Save it with layout='original'."
        )
    if vq.image_token_embed_dim != config.text_config.hidden_size:
        raise ValueError(
            "transformers' Janus has no separate width for the image head; this model's is "
            f"{vq.image_token_embed_dim} next to a language model of {config.text_config.hidden_size}. Save it with "
            "layout='original'."
        )
    vq_fields = {k: v for k, v in plain["vq_config"].items() if k not in ("image_size", "commitment_cost")}
    return {
        **plain,
        "model_type": "janus",
        "architectures": ["JanusForConditionalGeneration"],
        "vq_config": vq_fields | {"num_patches": vq.num_patches},
    }


__all__ = ["JanusProConfig", "JanusProVQConfig", "JanusProVisionConfig"]
