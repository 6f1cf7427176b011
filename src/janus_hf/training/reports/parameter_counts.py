"""`count_parameters`, which counts the parameters of a model by what a training stage does with them."""

import json
import re
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from ...configuration import JanusProConfig
from ...modeling import JanusProForConditionalGeneration
from ..stages import LANGUAGE_TARGETS, PARTS, VISION_TARGETS, apply_stage, find_stage, trained_parts


@dataclass(frozen=True)
class ParameterCounts:
    """Numbers of parameters by what a training stage does with them; the groups overlap.

    Args:
        trained: Trained, without adapters.
        frozen: Not trained.
        adapters: Of LoRA adapters.
        linear: Of the language model's linear layers, which quantisation compresses.
        frozen_linear: Those of them that are frozen.
        trained_matrices: Trained and no embedding table, so that autocast makes copies of them.
        codec: Of the codec.
        layers: Of all layers of the language model and of the vision tower, each of which is a unit of FSDP2.
        largest_layer: Of the largest of them.
        outside_layers: Outside these layers and the codec.
    """

    trained: int
    frozen: int
    adapters: int
    linear: int
    frozen_linear: int
    trained_matrices: int
    codec: int
    layers: int
    largest_layer: int
    outside_layers: int


def count_parameters(
    config: JanusProConfig, stage: str, rank: int, tower: bool, targets: str | None, embeddings: bool | None
) -> ParameterCounts:
    """Count the parameters of a model by how a training stage uses them.

    Args:
        config: The model's configuration.
        stage: Name of the training stage, a key of `STAGES`.
        rank: Rank of the adapters in LoRA stages.
        tower: Whether LoRA stages also add adapters to the vision tower.
        targets: Regular expression for names of modules with adapters; None for the default.
        embeddings: Whether to train the embeddings of the image codes; None for the stage's default.
    """
    model = _model_without_storage(json.dumps(config.to_dict(), default=str))
    adapters = copies = 0
    parts = trained_parts(stage, embeddings)
    if find_stage(stage).lora:
        targets = targets or LANGUAGE_TARGETS
        targets = f"({targets}|{VISION_TARGETS})" if tower else targets
        hits = [m for name, m in model.named_modules() if isinstance(m, nn.Linear) and re.fullmatch(targets, name)]
        adapters = sum(rank * (module.in_features + module.out_features) for module in hits)
        # PEFT trains a copy of each module in `modules_to_save`, and keeps the module itself, frozen, beside the copy.
        copies = sum(_size(model.get_submodule(PARTS[part])) for part in parts)
        model.requires_grad_(False)
    else:
        apply_stage(model, stage, train_generation_embeddings=embeddings)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    matrices = trained + copies
    for table in (m for m in model.modules() if isinstance(m, nn.Embedding)):
        matrices -= table.weight.numel() if table.weight.requires_grad else 0
    if copies and "generation_embeddings" in parts:
        matrices -= _size(model.model.generation_embeddings)
    layers = model.get_submodule(f"{PARTS['language_model']}.layers")
    linear = [m.weight for m in layers.modules() if isinstance(m, nn.Linear)]
    units = [_size(m) for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    codec = _size(model.get_submodule(PARTS["codec"]))
    return ParameterCounts(
        trained=trained + copies,
        frozen=_size(model) - trained,
        adapters=adapters,
        linear=sum(weight.numel() for weight in linear),
        frozen_linear=sum(weight.numel() for weight in linear if not weight.requires_grad),
        trained_matrices=matrices,
        codec=codec,
        layers=sum(units),
        largest_layer=max(units),
        outside_layers=_size(model) + copies - codec - sum(units),
    )


def _size(module: nn.Module) -> int:
    """Return the number of all parameters of a module, trained or not."""
    return sum(parameter.numel() for parameter in module.parameters())


@lru_cache(maxsize=2)
def _model_without_storage(config: str) -> JanusProForConditionalGeneration:
    """Return the model of a configuration, given as JSON, with parameters that have only a size (meta device)."""
    with torch.device("meta"):
        return JanusProForConditionalGeneration(JanusProConfig.from_dict(json.loads(config)))


__all__ = ["ParameterCounts", "count_parameters"]
