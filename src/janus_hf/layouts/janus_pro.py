"""Conversion of the original layout (the file format of the deepseek-ai releases): `config.json` and weight names.

The released `config.json` leaves out many sizes, because the original code keeps them in its own tables and constants.
They are repeated here (`SIGLIP_SIZES`, `VQ16_SIZES`) and as defaults of the configuration classes. When a file is
written, sizes other than these defaults are spelled out, and `text_config` and `vq_config` are added for readers of
the transformers layout; the original code ignores both.
"""

from typing import Any, Protocol

from transformers import AutoConfig, PreTrainedConfig
from transformers.models.janus.configuration_janus import JanusVisionConfig, JanusVQVAEConfig


MODEL_TYPE = "multi_modality"

# Sub-configs of the file that only the original layout has. `vision_config` is a sub-config of both layouts.
BLOCKS = ("language_config", "aligner_config", "gen_aligner_config", "gen_head_config", "gen_vision_config")

# Sizes of the vision tower, which the original code looks up by `model_name` (janus/models/siglip_vit.py). Only this
# tower was released.
_TOWER = "siglip_large_patch16_384"
SIGLIP_SIZES: dict[str, dict[str, int | float]] = {
    _TOWER: {"patch_size": 16, "width": 1024, "layers": 24, "heads": 16, "mlp_ratio": 4},
}
# The original code builds its codec from constants (janus/models/vq_model.py, "VQ-16") and ignores the file's params.
VQ16_SIZES: dict[str, Any] = {"ch": 128, "ch_mult": [1, 1, 2, 2, 4], "num_res_blocks": 2, "z_channels": 256}

# Largest number of linear layers in an aligner: `ROOT_NAMES` has rows for this many.
MAX_ALIGNER_DEPTH = 8

# Regular expressions for weights that are in the original files but not used by any path of the original code: the
# pooling head of SigLIP and the usage counter of the codec.
STORED_BUT_UNUSED = (r"vision_model\.attn_pool\.", r"vqmodel\.quantize\.codebook_used$")

# Pairs of regular expressions: (name in the original files, name in `JanusProModel`). The table is used in both
# directions. `^` keeps a row from matching names of the transformers layout. General prefixes come before the names
# inside them, because saving applies the rows in reverse order.
ROOT_NAMES: tuple[tuple[str, str], ...] = (
    (r"^vision_model\.vision_tower\.", r"^vision_model\."),
    *(
        (rf"^{theirs}\.layers\.{2 * i}\.", rf"^{ours}\.{'fc1' if i == 0 else f'hidden_layers.{i - 1}'}\.")
        for theirs, ours in (("aligner", "aligner"), ("gen_aligner", "generation_aligner"))
        for i in range(MAX_ALIGNER_DEPTH)
    ),
    (r"^gen_embed\.", r"^generation_embeddings\."),
    (r"^gen_head\.output_mlp_projector\.", r"^generation_head\.proj_out\."),
    (r"^gen_head\.vision_head\.", r"^generation_head\.vision_head\."),
    (r"^language_model\.model\.", r"^language_model\."),
    (r"^gen_vision_model\.", r"^vqmodel\."),
    (r"vqmodel\.encoder\.conv_blocks\.", r"vqmodel\.encoder\.down\."),
    (r"vqmodel\.decoder\.conv_blocks\.", r"vqmodel\.decoder\.up\."),
    (r"\.res\.", r"\.block\."),
    (r"\.mid\.0\.", r"\.mid\.block_1\."),
    (r"\.mid\.1\.", r"\.mid\.attn_1\."),
    (r"\.mid\.2\.", r"\.mid\.block_2\."),
)

# The same for names inside the vision tower. The fused qkv and the shape of the position embedding need tensors, so
# they are converted in modeling/checkpoint.py.
TOWER_NAMES: tuple[tuple[str, str], ...] = (
    (r"^patch_embed\.proj\.", r"^embeddings\.patch_embedding\."),
    (r"^blocks\.", r"^encoder\.layers\."),
    (r"\.norm1\.", r"\.layer_norm1\."),
    (r"\.norm2\.", r"\.layer_norm2\."),
    (r"\.attn\.proj\.", r"\.self_attn\.projection_layer\."),
    (r"^norm\.", r"^post_layernorm\."),
)


class JanusProParts(Protocol):
    """Protocol of a `JanusProConfig`, with the fields that are translated when a `config.json` is written."""

    image_token_id: int | None

    @property
    def text_config(self) -> PreTrainedConfig:
        """Sizes of the language model."""
        ...

    @property
    def vision_config(self) -> JanusVisionConfig:
        """Sizes of the vision tower that understands images, and of its aligner."""
        ...

    @property
    def vq_config(self) -> JanusVQVAEConfig:
        """Sizes of the image codec, the generation aligner and the image head: a `JanusProVQConfig`."""
        ...


def read_config(config_dict: dict[str, Any]) -> dict[str, Any]:
    """Convert a `config.json` of the deepseek-ai releases to keyword arguments of `JanusProConfig`.

    The input is not modified.

    Raises:
        ValueError: If the file names a component that Janus-Pro does not have.
    """
    language = dict(config_dict["language_config"])
    # Janus-1.3B requests flash-attn here, but which kernel to run is the user's choice at load time.
    for key in ("_attn_implementation", "attn_implementation", "torch_dtype"):
        language.pop(key, None)
    text_config = AutoConfig.for_model(language.pop("model_type", "llama"), **language)

    vision = _params(config_dict, "vision_config", cls="CLIPVisionTower")
    aligner = _params(config_dict, "aligner_config", cls="MlpProjector", projector_type="mlp_gelu")
    gen_aligner = _params(config_dict, "gen_aligner_config", cls="MlpProjector", projector_type="mlp_gelu")
    head = _params(config_dict, "gen_head_config", cls="vision_head")
    codec = VQ16_SIZES | _params(config_dict, "gen_vision_config", cls="VQ-16")

    image_size = vision.get("image_size", 384)
    blocks = (*BLOCKS, "vision_config", "model_type")
    return {
        **{key: value for key, value in config_dict.items() if key not in blocks},
        "tie_word_embeddings": False,
        "text_config": text_config,
        "vision_config": {
            "image_size": image_size,
            **_tower_sizes(vision),
            "projection_dim": aligner.get("n_embed", text_config.hidden_size),
            "depth": aligner.get("depth", 1),
        },
        "vq_config": {
            # The file states only one image size; understanding and generation share it in every release.
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


def _tower_sizes(vision: dict[str, Any]) -> dict[str, Any]:
    """Return the sizes of the vision tower as fields of `JanusProVisionConfig`.

    The original code looks up these sizes by the tower's `model_name`; sizes in the file replace them.

    Args:
        vision: The `params` of the file's `vision_config`.

    Raises:
        ValueError: If the tower or the selection of its features is not that of Janus-Pro.
    """
    name = vision.get("model_name", _TOWER)
    if name not in SIGLIP_SIZES:
        raise ValueError(
            f"vision_config.params.model_name must be one of {sorted(SIGLIP_SIZES)}, got {name!r}: only Janus and "
            "Janus-Pro checkpoints can be read."
        )
    if vision.get("select_feature", "same") != "same":
        raise ValueError(
            f"vision_config.params.select_feature must be 'same', got {vision['select_feature']!r}: only Janus and "
            "Janus-Pro checkpoints can be read."
        )
    tower = SIGLIP_SIZES[name] | vision
    select_layer = vision.get("select_layer", -1)
    # siglip_vit.py builds only the layers up to the selected one, which is counted from the end when not positive.
    layers = min(tower["layers"], tower["layers"] + select_layer + 1 if select_layer <= 0 else select_layer)
    return {
        "patch_size": tower["patch_size"],
        "hidden_size": tower["width"],
        "num_hidden_layers": layers,
        "num_attention_heads": tower["heads"],
        "mlp_ratio": tower["mlp_ratio"],
    }


def _params(config_dict: dict[str, Any], key: str, *, cls: str, projector_type: str | None = None) -> dict[str, Any]:
    """Return the `params` of one sub-config, after checking that it names the class that Janus-Pro uses there.

    Args:
        config_dict: Content of a `config.json` of the deepseek-ai releases.
        key: Name of the sub-config, such as "aligner_config"; if it is missing, the result is empty.
        cls: Name of the class that the sub-config must name.
        projector_type: Value that `params.projector_type` must have; None checks nothing.

    Raises:
        ValueError: If the sub-config names another class or projector type.
    """
    block = config_dict.get(key, {})
    params = dict(block.get("params", {}))
    expected = [(f"{key}.cls", block.get("cls", cls), cls)]
    if projector_type is not None:
        expected.append((f"{key}.params.projector_type", params.get("projector_type", projector_type), projector_type))
    for name, found, wanted in expected:
        if found != wanted:
            raise ValueError(
                f"{name} must be {wanted!r}, got {found!r}: only Janus and Janus-Pro checkpoints can be read."
            )
    return params


def write_config(config: JanusProParts, plain: dict[str, Any]) -> dict[str, Any]:
    """Return the content of a `config.json` that the original code of deepseek-ai can read.

    The sub-configs of the transformers layout (`text_config`, `vq_config`) are added; the original code ignores them.

    Args:
        config: The configuration; `JanusProConfig` has the attributes of the Protocol.
        plain: The same configuration as a dictionary of JSON values.
    """
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
    aligner = {"projector_type": "mlp_gelu", "n_embed": text.hidden_size}
    dtype = {"torch_dtype": plain["dtype"]} if plain.get("dtype") else {}
    return {
        **plain,
        "model_type": MODEL_TYPE,
        "architectures": ["MultiModalityCausalLM"],
        **dtype,
        "language_config": _llama_for_old_transformers(text) | dtype,
        "vision_config": {
            **plain["vision_config"],
            "cls": "CLIPVisionTower",
            "model_type": "vision",
            "params": {
                "image_size": vision.image_size,
                "model_name": _TOWER,
                "select_feature": "same",
                "select_layer": -1,
                # Without these entries a reader of the original sub-config would use the sizes of the named tower.
                **{key: value for key, value in tower.items() if value != SIGLIP_SIZES[_TOWER][key]},
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
    """Return a sub-config in the form of the original `config.json`: class name, model type and sizes (`params`)."""
    return {"cls": cls, "model_type": model_type, "params": params}


def _llama_for_old_transformers(text: PreTrainedConfig) -> dict[str, Any]:
    """Return the language model's configuration as `language_config`, in the form that transformers 4 reads.

    Every field of its class is spelled out, since defaults may differ in transformers 4, and the rotary settings are
    split into `rope_theta` and `rope_scaling`.
    """
    common = PreTrainedConfig().to_dict()
    language = {k: v for k, v in text.to_dict().items() if k not in common and v is not None}
    rope = dict(language.pop("rope_parameters", None) or {})
    language["rope_theta"] = rope.pop("rope_theta", 10000.0)
    if rope.get("rope_type", "default") != "default":
        language["rope_scaling"] = rope
    token_ids = {k: getattr(text, k) for k in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return language | token_ids | {"model_type": text.model_type, "tie_word_embeddings": False}
