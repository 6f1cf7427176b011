"""Training stages: which parts of the model each stage trains.

A stage trains some parts of the model completely. A LoRA stage also adds low-rank adapters to the language model (and,
on request, to the vision tower). No stage trains the image codec.

The paper's Table 2: stage 1 trains "adaptors and image head", stage 2 "all but the two encoders", stage 3 the
understanding encoder as well. The paper does not say whether the code embeddings count as an adaptor in stage 1. Here
they do, because otherwise the inputs of image generation would stay at random values in a model that is trained from
scratch; `train_generation_embeddings=False` excludes them.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer


if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel

    from ..modeling import JanusProForConditionalGeneration

# Name of each part -> name of its module in `JanusProForConditionalGeneration`.
PARTS = {
    "vision_tower": "model.vision_model",
    "aligner": "model.aligner",
    "language_model": "model.language_model",
    "lm_head": "lm_head",
    "generation_embeddings": "model.generation_embeddings",
    "generation_aligner": "model.generation_aligner",
    "generation_head": "model.generation_head",
    "codec": "model.vqmodel",
}


@dataclass(frozen=True)
class Stage:
    """The parts of the model that one stage trains, and the learning rate that suits it.

    Args:
        parts: Names (keys of `PARTS`) of the parts whose weights are all trained.
        learning_rate: Default learning rate. The paper's stages use the paper's value, full fine-tuning uses that of
            stage 3, which it continues, and LoRA stages use 1e-4, a usual value for LoRA.
        lora: Whether the language model is trained through adapters.
    """

    parts: tuple[str, ...]
    learning_rate: float
    lora: bool = False


_GENERATION = ("generation_aligner", "generation_head")
_ALL_BUT_ENCODERS = ("aligner", "language_model", "lm_head", "generation_embeddings", *_GENERATION)

STAGES = {
    "stage1": Stage(("aligner", "generation_embeddings", *_GENERATION), learning_rate=1e-3),
    "stage2": Stage(_ALL_BUT_ENCODERS, learning_rate=1e-4),
    "stage3": Stage(("vision_tower", *_ALL_BUT_ENCODERS), learning_rate=4e-5),
    # The parts of stage 3: full fine-tuning continues that stage on other data.
    "full": Stage(("vision_tower", *_ALL_BUT_ENCODERS), learning_rate=4e-5),
    "lora_understanding": Stage(("aligner",), learning_rate=1e-4, lora=True),
    "lora_drawing": Stage(_GENERATION, learning_rate=1e-4, lora=True),
    "lora_both": Stage(("aligner", *_GENERATION), learning_rate=1e-4, lora=True),
}

# Whole module names, because the vision tower has modules named q_proj, k_proj and v_proj too.
LANGUAGE_TARGETS = r"model\.language_model\.layers\.\d+\.(self_attn|mlp)\.(q|k|v|o|gate|up|down)_proj"
VISION_TARGETS = r"model\.vision_model\..*\.(self_attn\.([qkv]_proj|projection_layer)|mlp\.fc[12])"


def find_stage(name: str) -> Stage:
    """Return the stage of the given name.

    Raises:
        ValueError: If there is no such stage.
    """
    if name not in STAGES:
        raise ValueError(f"`stage` must be one of {', '.join(STAGES)}, got {name!r}: choose one of them.")
    return STAGES[name]


def trained_parts(name: str, train_generation_embeddings: bool | None = None) -> tuple[str, ...]:
    """Return the names of the parts whose weights a stage trains completely, in the order of `PARTS`.

    Args:
        name: Name of the stage.
        train_generation_embeddings: True adds the embeddings of the image codes, False removes them, None leaves the
            stage's own choice.

    Raises:
        ValueError: If there is no such stage.
    """
    parts = set(find_stage(name).parts)
    if train_generation_embeddings is not None:
        parts.discard("generation_embeddings")
        parts |= {"generation_embeddings"} if train_generation_embeddings else set()
    # In the order of PARTS, because the order of a set changes from process to process.
    return tuple(part for part in PARTS if part in parts)


def apply_stage(
    model: "JanusProForConditionalGeneration", name: str, *, train_generation_embeddings: bool | None = None
) -> None:
    """Set `requires_grad` to True for exactly the parameters that a stage trains.

    For LoRA stages, wrap the model with PEFT and the configuration of `lora_config` instead.

    Args:
        model: The model; changed in place.
        name: Name of the stage.
        train_generation_embeddings: See `trained_parts`.

    Raises:
        ValueError: If there is no such stage, or it is a LoRA stage.
    """
    if find_stage(name).lora:
        raise ValueError(
            f"`name` must be a stage without adapters, got {name!r}: wrap the model with "
            "peft.get_peft_model(model, lora_config(...))."
        )
    model.requires_grad_(False)
    for part in trained_parts(name, train_generation_embeddings):
        model.get_submodule(PARTS[part]).requires_grad_(True)


def lora_config(
    model: "JanusProForConditionalGeneration",
    name: str,
    *,
    rank: int = 16,
    alpha: float = 32,
    dropout: float = 0.0,
    vision_tower: bool = False,
    targets: str | None = None,
    train_generation_embeddings: bool | None = None,
) -> "LoraConfig":
    """Return PEFT's configuration of a LoRA stage.

    Args:
        model: The model to be wrapped; used to check which modules the targets match.
        name: Name of the stage.
        rank: Rank of the adapters.
        alpha: Adapters are scaled by `alpha / rank`.
        dropout: Dropout probability of the adapters' inputs.
        vision_tower: Add adapters to the vision tower as well.
        targets: Regular expression that is matched against whole module names; by default it matches the projections
            of the language model (`LANGUAGE_TARGETS`).
        train_generation_embeddings: See `trained_parts`. The trained parts become `modules_to_save`.

    Raises:
        ValueError: If the stage is no LoRA stage, or the targets match no module, a module of the codec, or a module
            of a part that the stage trains completely.
    """
    from peft import LoraConfig

    if not find_stage(name).lora:
        raise ValueError(
            f"`name` must be a stage with adapters, got {name!r}: use apply_stage for it, or choose a lora_ stage."
        )
    targets = targets or LANGUAGE_TARGETS
    whole = [PARTS[part] for part in trained_parts(name, train_generation_embeddings)]
    hits = [module for module, _ in model.named_modules() if re.fullmatch(targets, module)]
    if not hits:
        raise ValueError(
            f"`targets` must match modules of the model, got {targets!r}, which match no module: write a regular "
            "expression for whole names such as 'model.language_model.layers.0.self_attn.q_proj'."
        )
    # After the search above, because this expression is our own and needs no check.
    if vision_tower:
        targets = f"({targets}|{VISION_TARGETS})"
    forbidden = [PARTS["codec"], *whole]
    if wrong := [hit for hit in hits if any(hit == part or hit.startswith(f"{part}.") for part in forbidden)]:
        raise ValueError(
            f"`targets` must leave out the codec, which is never trained, and the parts that this stage trains as a "
            f"whole ({', '.join(whole)}), got {targets!r}, which match {wrong[0]!r}: narrow the expression."
        )
    return LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=targets,
        # Whole names, because PEFT compares the ends of names: "aligner" would match the generation aligner too.
        modules_to_save=whole,
        # Merging and PEFT read the base model from the adapter's configuration.
        base_model_name_or_path=getattr(model, "name_or_path", None) or None,
    )


def base_model(model: "JanusProForConditionalGeneration | PeftModel") -> "JanusProForConditionalGeneration":
    """Return the Janus-Pro model inside PEFT's wrapper; adapters stay in place. Return an unwrapped model itself."""
    wrapped = getattr(model, "get_base_model", None)
    return cast("JanusProForConditionalGeneration", wrapped() if wrapped else model)


def frozen_parts(model: "JanusProForConditionalGeneration | PeftModel") -> list[nn.Module]:
    """Return the modules of those parts of the model (see `PARTS`) of which no parameter is trained."""
    base = base_model(model)
    parts = (base.get_submodule(path) for path in PARTS.values())
    return [part for part in parts if not any(parameter.requires_grad for parameter in part.parameters())]


def hold_still(part: nn.Module) -> None:
    """Switch dropout off in a frozen part, without switching activation checkpointing off.

    Gradients pass through a frozen language model, so its layers need activation checkpointing, and transformers
    checkpoints a layer only if the layer itself is in training mode. Therefore the layers stay in training mode, while
    all modules inside them, dropout included, are set to eval mode.
    """
    part.eval()
    for module in part.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.training = True


def trains_understanding(model: "JanusProForConditionalGeneration | PeftModel") -> bool:
    """Return whether the vision tower or its aligner is trained, so that every batch must pass through them."""
    base = base_model(model)
    paths = (PARTS["vision_tower"], PARTS["aligner"])
    return any(parameter.requires_grad for path in paths for parameter in base.get_submodule(path).parameters())


def trainable_table(model: "JanusProForConditionalGeneration | PeftModel") -> str:
    """Return a Markdown table of the numbers of parameters and trained parameters of each part.

    Adapters are counted with the part that contains them.
    """
    rows = list(_count_parts(base_model(model)))
    rows.append(("**all**", sum(row[1] for row in rows), sum(row[2] for row in rows)))
    lines = ["| part | parameters | trained |", "|---|---:|---:|"]
    return "\n".join([*lines, *(f"| {part} | {total:,} | {trained:,} |" for part, total, trained in rows)])


def _count_parts(base: nn.Module) -> Iterator[tuple[str, int, int]]:
    """Yield name, number of parameters and number of trained parameters of each part."""
    for part, path in PARTS.items():
        parameters = list(base.get_submodule(path).parameters())
        trained = (parameter for parameter in parameters if parameter.requires_grad)
        yield part, sum(map(_count_elements, parameters)), sum(map(_count_elements, trained))


def _count_elements(parameter: nn.Parameter) -> int:
    """Return the number of weights of a parameter, however it is stored."""
    # DeepSpeed's ZeRO-3 empties the tensor on this rank and keeps the true size in `ds_numel`.
    partitioned = getattr(parameter, "ds_numel", None)
    # bitsandbytes stores two weights of 4 bits in one byte. Compared by name, because it is an optional library.
    packed = 2 if type(parameter).__name__ == "Params4bit" else 1
    return partitioned if partitioned is not None else parameter.numel() * packed


__all__ = [
    "LANGUAGE_TARGETS",
    "PARTS",
    "STAGES",
    "VISION_TARGETS",
    "Stage",
    "apply_stage",
    "base_model",
    "find_stage",
    "frozen_parts",
    "hold_still",
    "lora_config",
    "trainable_table",
    "trained_parts",
    "trains_understanding",
]
