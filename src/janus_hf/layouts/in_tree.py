"""The transformers layout."""

from typing import Any

from transformers.models.janus.configuration_janus import JanusVisionConfig

from .janus_pro import _ORIGINAL_ONLY_KEYS


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
        tower = JanusVisionConfig(**config["vision_config"])
        config["vq_config"] = {**config["vq_config"], "num_patches": tower.image_size // tower.patch_size}
        config["vq_config"].pop("image_size", None)
    return config


def to_transformers_schema(config: Any, plain: dict[str, Any]) -> dict[str, Any]:
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
