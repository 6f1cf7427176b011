"""Functions that make the configuration of a model from its parts: from their config.json, else from their shapes."""

import copy
import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PreTrainedConfig

from ...configuration import JanusProConfig
from ...errors import CheckpointError
from ...layouts import janus_pro
from ...layouts.part_layouts import PREFIXES
from .part_files import PartFiles
from .part_plan import PartPlan


_LINEAR_LAYERS = 2  # in each aligner of every released model

# A weight, by its name in the part, and the axis of its shape that shows a size.
Witness = tuple[str, int]

# Width, side of a patch, number of positions and inner width of the vision tower: their witnesses.
_TOWER: tuple[tuple[Witness, ...], ...] = (
    (
        ("embeddings.patch_embedding.weight", 0),
        ("embeddings.patch_embedding.bias", 0),
        ("post_layernorm.weight", 0),
    ),
    (("embeddings.patch_embedding.weight", 2), ("embeddings.patch_embedding.weight", 3)),
    (("embeddings.position_embedding.weight", -2),),
    (
        ("encoder.layers.0.mlp.fc1.weight", 0),
        ("encoder.layers.0.mlp.fc1.bias", 0),
        ("encoder.layers.0.mlp.fc2.weight", 1),
    ),
)
# Base width, width of the latents, number of codes and width of a code of the image codec: their witnesses.
_CODEC: tuple[tuple[Witness, ...], ...] = (
    (("encoder.conv_in.weight", 0), ("encoder.conv_in.bias", 0), ("encoder.down.0.block.0.norm1.weight", 0)),
    (("encoder.conv_out.weight", 0), ("encoder.conv_out.bias", 0), ("decoder.conv_in.weight", 1)),
    (("quantize.embedding.weight", 0),),
    (("quantize.embedding.weight", 1), ("quant_conv.weight", 0), ("post_quant_conv.weight", 1)),
)
# Weights of the first block of a level of the codec whose first axis is the level's width.
_LEVEL = ("conv1.weight", "conv1.bias", "norm2.weight")

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
        CheckpointError: If no weight shows a size.
        ValueError: If sizes do not fit together.
    """
    text = copy.deepcopy(text)  # models and configurations change the object that they are given
    text.tie_word_embeddings = False
    width = text.hidden_size
    vision = _tower_sizes(tower)
    try:
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
    except CheckpointError:
        raise
    except ValueError as error:
        raise ValueError(
            f"{tower.files.label} and {codec.files.label} must have sizes of a Janus-Pro, got others: {error}"
        ) from error


def _tower_sizes(plan: PartPlan) -> dict[str, Any]:
    """Return the sizes of the vision tower as fields of `JanusProVisionConfig`.

    Those that config.json states have precedence; the check of the shapes then shows where the weights differ.
    """
    width, patch, positions, hidden = (_size(plan, witnesses) for witnesses in _TOWER)
    shown = {
        "hidden_size": width,
        "patch_size": patch,
        "image_size": math.isqrt(positions) * patch,
        "num_hidden_layers": _count(plan, "encoder.layers."),
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
    base, latent, codes, embedding = (_size(plan, witnesses) for witnesses in _CODEC)
    widths = [
        _size(plan, [(f"encoder.down.{level}.block.0.{name}", 0) for name in _LEVEL])
        for level in range(max(1, _count(plan, "encoder.down.")))
    ]
    return {
        "base_channels": base,
        "channel_multiplier": [max(1, width // base) for width in widths],
        "num_res_blocks": _count(plan, "encoder.down.0.block."),
        "latent_channels": latent,
        "num_embeddings": codes,
        "embed_dim": embedding,
    }


def _size(plan: PartPlan, witnesses: Sequence[Witness]) -> int:
    """Return the size that most of its witnesses show, so that one wrong shape does not make all others wrong.

    Raises:
        CheckpointError: If there is no witness.
    """
    (root,) = PREFIXES[plan.files.part]
    shapes = [(plan.shapes.get(root + name), axis) for name, axis in witnesses]
    seen = [shape[axis] for shape, axis in shapes if shape is not None and -len(shape) <= axis < len(shape)]
    if not any(seen):
        raise CheckpointError(
            f"{plan.files.label} must hold weights that show its sizes, got none of those named here, or none with "
            "as many dimensions: name the checkpoint that holds this part.",
            missing={root + name for name, _ in witnesses},
            unexpected=plan.unknown,
        )
    return Counter(filter(None, seen)).most_common(1)[0][0]


def _count(plan: PartPlan, prefix: str) -> int:
    """Return the number of modules that are numbered after `prefix`: one more than the largest number in the names."""
    (root,) = PREFIXES[plan.files.part]
    pattern = re.compile(re.escape(root + prefix) + r"(\d+)\.")
    return 1 + max((int(match[1]) for name in plan.shapes if (match := pattern.match(name))), default=-1)


__all__ = ["make_config", "read_text_config"]
