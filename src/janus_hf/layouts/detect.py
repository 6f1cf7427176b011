"""Functions that find out which layout (file format) a `config.json` has and refuse those of other model families.

The model type alone does not identify the family: DeepSeek-VL and JanusFlow have the same model type as Janus-Pro,
"multi_modality". The sub-configs in the file identify it.
"""

from typing import Any, Literal

from . import in_tree, janus_pro


Layout = Literal["original", "transformers"]


def layout_of(config_dict: dict[str, Any]) -> Layout:
    """Return the layout of a Janus-Pro checkpoint whose `config.json` has this content.

    "transformers" is the file format of transformers' own Janus class, "original" that of the deepseek-ai releases.
    Only the model type decides: files that this package writes in the original layout hold the sub-configs of both
    layouts.
    """
    return "transformers" if config_dict.get("model_type") == in_tree.MODEL_TYPE else "original"


def read_config(config_dict: dict[str, Any]) -> dict[str, Any]:
    """Convert the content of a `config.json` in either layout to keyword arguments of `JanusProConfig`.

    The layouts are that of the deepseek-ai releases and that of transformers' own Janus class.

    Args:
        config_dict: Content of the file, or keyword arguments of `JanusProConfig`, which are returned as they are. The
            dictionary is not modified.

    Raises:
        ValueError: If the file belongs to another model family, or names a component that Janus-Pro does not have.
    """
    model_type = config_dict.get("model_type", janus_pro.MODEL_TYPE)
    if model_type not in (janus_pro.MODEL_TYPE, in_tree.MODEL_TYPE):
        raise ValueError(
            f"model_type must be {janus_pro.MODEL_TYPE!r} or {in_tree.MODEL_TYPE!r}, got {model_type!r}: this is a "
            "checkpoint of another family, and janus_hf reads Janus and Janus-Pro only. Load it with AutoModel."
        )
    if "vision_gen_enc_config" in config_dict or "vision_und_enc_config" in config_dict:
        raise ValueError(
            "config.json must describe Janus or Janus-Pro, got a JanusFlow checkpoint, which generates images by "
            "rectified flow through a U-ViT and an SDXL VAE and not as image tokens: use the original JanusFlow code."
        )
    if "text_config" in config_dict and "vq_config" in config_dict:
        return in_tree.read_config(config_dict)
    if "gen_vision_config" in config_dict:
        return janus_pro.read_config(config_dict)
    if config_dict.get("model_type") == janus_pro.MODEL_TYPE and "language_config" in config_dict:
        raise ValueError(
            "config.json must describe Janus or Janus-Pro, got no gen_vision_config: it looks like DeepSeek-VL, which "
            "shares the model_type but cannot generate images. Use the original DeepSeek-VL code."
        )
    return dict(config_dict)
