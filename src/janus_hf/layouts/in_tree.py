"""Conversion between the `config.json` of transformers' own Janus class and keyword arguments of `JanusProConfig`.

This file format is called the transformers layout. Its weights have the names of this package's modules, so no table
of names is needed here.
"""

from typing import Any

from transformers.models.janus.configuration_janus import JanusVisionConfig

from .janus_pro import BLOCKS, JanusProParts


MODEL_TYPE = "janus"


def read_config(config_dict: dict[str, Any]) -> dict[str, Any]:
    """Convert a `config.json` of transformers' own Janus class to keyword arguments of `JanusProConfig`.

    The file holds the sub-configs `text_config`, `vision_config` and `vq_config`. Files that this package wrote in the
    original layout (that of the deepseek-ai releases) hold these sub-configs too. Their original sub-configs repeat
    the same sizes and are dropped.
    """
    config = {key: value for key, value in config_dict.items() if key not in BLOCKS}
    config.pop("model_type", None)
    if isinstance(vision := config["vision_config"], dict):
        config["vision_config"] = {k: v for k, v in vision.items() if k not in ("cls", "params", "model_type")}
    if config_dict.get("model_type") == MODEL_TYPE:
        config.setdefault("tie_word_embeddings", True)  # default of transformers' JanusConfig
        if isinstance(config["vq_config"], dict):
            # transformers' Janus generates on the grid of its understanding tower, whatever vq_config says
            # (JanusConfig.__post_init__).
            tower = JanusVisionConfig(**config["vision_config"])
            config["vq_config"] = {**config["vq_config"], "num_patches": tower.image_size // tower.patch_size}
            config["vq_config"].pop("image_size", None)
    return config


def write_config(config: JanusProParts, plain: dict[str, Any]) -> dict[str, Any]:
    """Return the content of a `config.json` that transformers' own Janus class can read.

    Args:
        config: The configuration; `JanusProConfig` has the attributes of the Protocol.
        plain: The same configuration as a dictionary of JSON values.

    Raises:
        ValueError: If transformers' class would build another model from the file.
    """
    vision, vq = config.vision_config, config.vq_config
    if config.image_token_id is None:
        raise ValueError(
            "config.image_token_id must be an id in the transformers layout, got None: load the model together with "
            "its tokenizer files, or set `config.image_token_id = processor.image_token_id`."
        )
    if vq.num_patches != vision.image_size // vision.patch_size:
        raise ValueError(
            "vq_config.num_image_tokens must equal vision_config.num_image_tokens "
            f"({vision.num_image_tokens}) in the transformers layout, got {vq.num_image_tokens}: save the model with "
            "layout='original'."
        )
    if vq.image_token_embed_dim != config.text_config.hidden_size:
        raise ValueError(
            f"vq_config.image_token_embed_dim must equal text_config.hidden_size ({config.text_config.hidden_size}) "
            f"in the transformers layout, got {vq.image_token_embed_dim}: save the model with layout='original'."
        )
    vq_fields = {k: v for k, v in plain["vq_config"].items() if k not in ("image_size", "commitment_cost")}
    return {
        **plain,
        "model_type": MODEL_TYPE,
        "architectures": ["JanusForConditionalGeneration"],
        "vq_config": vq_fields | {"num_patches": vq.num_patches},
    }
