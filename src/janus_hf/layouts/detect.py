"""Which schema."""

from typing import Any, Literal

from .in_tree import _read_transformers_schema
from .janus_pro import _read_original_schema


Layout = Literal["original", "transformers"]


def read_schema(config_dict: dict[str, Any]) -> dict[str, Any]:
    """Any of the three schemas -> keyword arguments of `JanusProConfig`. The input is not modified.

    Raises:
        ValueError: If the dict is of another family, or asks for a part that Janus-Pro does not have.
    """
    family = config_dict.get("model_type", "multi_modality")
    if family not in ("multi_modality", "janus"):
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
