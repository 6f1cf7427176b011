"""Functions that make the configuration of a model from its parts: from their config.json, else from their shapes."""

import math
import re
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PreTrainedConfig

from ...configuration import JanusProConfig
from ...errors import CheckpointError
from ...layouts import janus_pro
from .part_files import PartFiles
from .part_plan import PartPlan


_LINEAR_LAYERS = 2  # in each aligner of every released model

# Fields of a language model's config.json that say nothing about its architecture.
_NOT_SIZES = {"_name_or_path", "architectures", "auto_map", "dtype", "torch_dtype", "transformers_version"}


def read_text_config(files: PartFiles) -> PreTrainedConfig:
    """Return the configuration of the language model.

    Raises:
        CheckpointError: If there is no config.json.
        ValueError: If it is that of another model than a Llama, or of a quantised one.
    """
    config = files.config
    if not config:
        raise CheckpointError(
            f"{files.label} must have a config.json beside its weights, got none: copy the file there, because the "
            "weights do not show the number of attention heads."
        )
    if config.get("model_type") == janus_pro.MODEL_TYPE:
        config = dict(config.get("language_config") or {"model_type": None})
        config.setdefault("model_type", "llama")
    if config.get("model_type") != "llama":
        raise ValueError(
            f"{files.label} must be a Llama (config.json with model_type 'llama', or that of DeepSeek-VL or Janus), "
            f"got model_type {config.get('model_type')!r}: Janus has no other language models."
        )
    if "quantization_config" in config:
        raise ValueError(
            f"{files.label} must hold the weights themselves, got a quantised model: name the model that it was "
            "made from."
        )
    fields = {name: value for name, value in config.items() if name not in _NOT_SIZES}
    return _build_config(files, fields)


def _build_config(files: PartFiles, fields: dict[str, Any]) -> PreTrainedConfig:
    """Return transformers' configuration with these fields of a part's config.json.

    Raises:
        CheckpointError: If a field has a value that transformers does not accept.
    """
    try:
        config: PreTrainedConfig = AutoConfig.for_model(**fields)
    except (StrictDataclassError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"config.json of {files.label} must be valid, got {reason}: correct it.") from error
    return config


def make_config(text: PreTrainedConfig, tower: PartPlan, codec: PartPlan) -> JanusProConfig:
    """Return the configuration of the model that is assembled from three parts.

    Aligners have two layers and the image head the width of the language model, as in every released model. A
    generated image is as large as one that the vision tower reads.

    Raises:
        CheckpointError: If a weight that shows a size is missing or has another number of dimensions.
        ValueError: If sizes do not fit together.
    """
    width = text.hidden_size
    text.tie_word_embeddings = False
    vision = _tower_sizes(tower)
    return JanusProConfig(
        text_config=text,
        vision_config={**vision, "projection_dim": width, "depth": _LINEAR_LAYERS},
        vq_config={
            **_codec_sizes(codec),
            "image_size": vision["image_size"],
            "projection_dim": width,
            "num_hidden_layers": _LINEAR_LAYERS,
            "image_token_embed_dim": width,
        },
    )


def _tower_sizes(plan: PartPlan) -> dict[str, Any]:
    """Return the sizes of the vision tower as fields of `JanusProVisionConfig`.

    Those that config.json states have precedence; the check of the shapes then shows where the weights differ.
    """
    root = "model.vision_model."
    patches = _shape(plan, f"{root}embeddings.patch_embedding.weight", 4)
    width, patch = patches[0], patches[2]
    positions = _shape(plan, f"{root}embeddings.position_embedding.weight", 2, 3)[-2]
    hidden = _shape(plan, f"{root}encoder.layers.0.mlp.fc1.weight", 2)[0]
    shown = {
        "hidden_size": width,
        "patch_size": patch,
        "image_size": math.isqrt(positions) * patch,
        "num_hidden_layers": _count(plan, rf"{re.escape(root)}encoder\.layers\.(\d+)\."),
        "mlp_ratio": _ratio(hidden, width),
    }
    sizes = shown | _stated_sizes(plan.files)
    if "num_attention_heads" not in sizes:
        heads = {size["width"]: size["heads"] for size in janus_pro.SIGLIP_SIZES.values()}
        if width not in heads:
            raise ValueError(
                f"{plan.files.label} must state its number of attention heads, which the weights do not show, got no "
                f"config.json with it and a width of {width}, which no tower of Janus has: put a config.json with "
                '{"num_attention_heads": N} beside the weights.'
            )
        sizes["num_attention_heads"] = heads[width]
    return sizes


def _stated_sizes(files: PartFiles) -> dict[str, Any]:
    """Return the sizes of the vision tower that config.json states, as fields of `JanusProVisionConfig`."""
    config = files.config
    family = config.get("model_type")
    if family == janus_pro.MODEL_TYPE and "language_config" in config:
        stated: dict[str, Any] = janus_pro.read_config(config)["vision_config"]
        return {name: value for name, value in stated.items() if name not in ("projection_dim", "depth")}
    if family in ("siglip", "siglip_vision_model"):
        # The files leave out sizes that are the defaults of transformers' class.
        tower = _build_config(files, {**(config.get("vision_config") or config), "model_type": "siglip_vision_model"})
        return {
            **{
                name: getattr(tower, name)
                for name in ("hidden_size", "patch_size", "image_size", "num_hidden_layers", "num_attention_heads")
            },
            "mlp_ratio": _ratio(tower.intermediate_size, tower.hidden_size),
            "layer_norm_eps": tower.layer_norm_eps,
        }
    heads = config.get("num_attention_heads") or (config.get("model_args") or {}).get("num_heads")  # timm's name
    return {} if heads is None else {"num_attention_heads": heads}


def _ratio(hidden: int, width: int) -> float:
    """Return the number that gives `hidden` when `width` is multiplied by it and the product is rounded down."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)


def _codec_sizes(plan: PartPlan) -> dict[str, Any]:
    """Return the sizes of the image codec as fields of `JanusProVQConfig`; no file of LlamaGen states them."""
    root = "model.vqmodel."
    base = _shape(plan, f"{root}encoder.conv_in.weight", 4)[0]
    levels = _count(plan, rf"{re.escape(root)}encoder\.down\.(\d+)\.")
    widths = [
        _shape(plan, f"{root}encoder.down.{level}.block.0.conv1.weight", 4)[0] for level in range(max(levels, 1))
    ]
    codes, embedding = _shape(plan, f"{root}quantize.embedding.weight", 2)
    return {
        "base_channels": base,
        "channel_multiplier": [max(1, width // base) for width in widths],
        "num_res_blocks": _count(plan, rf"{re.escape(root)}encoder\.down\.0\.block\.(\d+)\."),
        "latent_channels": _shape(plan, f"{root}encoder.conv_out.weight", 4)[0],
        "num_embeddings": codes,
        "embed_dim": embedding,
    }


def _shape(plan: PartPlan, name: str, *dimensions: int) -> tuple[int, ...]:
    """Return the shape of a weight, by its name in the model, that shows sizes of its part.

    Raises:
        CheckpointError: If there is no such weight, or it has another number of dimensions or none in one of them.
    """
    shape = plan.shapes.get(name)
    if shape is None or len(shape) not in dimensions or 0 in shape:
        got = "none" if shape is None else f"one of shape {shape}"
        raise CheckpointError(
            f"{plan.files.label} must hold a weight {name!r} with {' or '.join(map(str, dimensions))} dimensions, "
            f"which shows the sizes of the part, got {got}: name the checkpoint that holds this part.",
            missing=[name] if shape is None else [],
            unexpected=plan.unknown,
        )
    return shape


def _count(plan: PartPlan, pattern: str) -> int:
    """Return the number of numbered modules: one more than the largest number that `pattern` finds in the names."""
    return 1 + max((int(match[1]) for name in plan.shapes if (match := re.match(pattern, name))), default=-1)


__all__ = ["make_config", "read_text_config"]
