"""What each stage trains.

A stage names the parts of the model that it trains as a whole; a LoRA stage adds low-rank adapters inside the language
model (and, when asked, the understanding tower). The codec is trained by none of them.

The paper's Table 2: stage 1 trains "adaptors and image head", stage 2 "all but the two encoders", stage 3 the
understanding encoder as well. It does not say whether the code embeddings count as an adaptor in stage 1: they do
here, because without them the drawing path's input would stay at random values in a model trained from nothing;
`train_generation_embeddings=False` says otherwise.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer


if TYPE_CHECKING:
    from peft import LoraConfig

# Name of a part -> where it stands in `JanusProForConditionalGeneration`.
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
    """What one stage trains.

    Args:
        parts: Parts trained as a whole.
        learning_rate: Used where the configuration names none: the paper's for its stages and for full fine-tuning
            (that of stage 3, which it continues), the usual one of LoRA otherwise.
        lora: Whether the language model is trained through adapters.
    """

    parts: tuple[str, ...]
    learning_rate: float
    lora: bool = False


_DRAWING = ("generation_aligner", "generation_head")
_ALL_BUT_ENCODERS = ("aligner", "language_model", "lm_head", "generation_embeddings", *_DRAWING)

STAGES = {
    "stage1": Stage(("aligner", "generation_embeddings", *_DRAWING), learning_rate=1e-3),
    "stage2": Stage(_ALL_BUT_ENCODERS, learning_rate=1e-4),
    "stage3": Stage(("vision_tower", *_ALL_BUT_ENCODERS), learning_rate=4e-5),
    "full": Stage(("vision_tower", *_ALL_BUT_ENCODERS), learning_rate=4e-5),
    "lora_understanding": Stage(("aligner",), learning_rate=1e-4, lora=True),
    "lora_drawing": Stage(_DRAWING, learning_rate=1e-4, lora=True),
    "lora_both": Stage(("aligner", *_DRAWING), learning_rate=1e-4, lora=True),
}

# The tower has q_proj, k_proj and v_proj too: names alone would hit both.
LANGUAGE_TARGETS = r"model\.language_model\.layers\.\d+\.(self_attn|mlp)\.(q|k|v|o|gate|up|down)_proj"
VISION_TARGETS = r"model\.vision_model\..*\.(self_attn\.([qkv]_proj|projection_layer)|mlp\.fc[12])"


def find_stage(name: str) -> Stage:
    """The stage of that name.

    Raises:
        ValueError: If there is none.
    """
    if name not in STAGES:
        raise ValueError(f"There is no stage {name!r}: stage must be one of {', '.join(STAGES)}.")
    return STAGES[name]


def trained_parts(name: str, train_generation_embeddings: bool | None = None) -> tuple[str, ...]:
    """Parts that a stage trains as a whole, in the model's order.

    Args:
        name: The stage.
        train_generation_embeddings: Add or remove the code embeddings; None is the stage's own choice.

    Raises:
        ValueError: If there is no such stage.
    """
    parts = set(find_stage(name).parts)
    if train_generation_embeddings is not None:
        parts.discard("generation_embeddings")
        parts |= {"generation_embeddings"} if train_generation_embeddings else set()
    return tuple(part for part in PARTS if part in parts)


def apply_stage(model: nn.Module, name: str, *, train_generation_embeddings: bool | None = None) -> None:
    """Let exactly the stage's parameters require gradients. LoRA stages are applied by `lora_config` and PEFT instead.

    Args:
        model: A `JanusProForConditionalGeneration`; changed in place.
        name, train_generation_embeddings: See `trained_parts`.

    Raises:
        ValueError: If there is no such stage, or it is a LoRA stage.
    """
    if find_stage(name).lora:
        raise ValueError(f"{name} trains adapters: wrap the model with peft.get_peft_model(model, lora_config(...)).")
    model.requires_grad_(False)
    for part in trained_parts(name, train_generation_embeddings):
        model.get_submodule(PARTS[part]).requires_grad_(True)


def lora_config(
    model: nn.Module,
    name: str,
    *,
    rank: int = 16,
    alpha: float = 32,
    dropout: float = 0.0,
    vision_tower: bool = False,
    targets: str | None = None,
    train_generation_embeddings: bool | None = None,
) -> "LoraConfig":
    """PEFT's configuration of a LoRA stage.

    Args:
        model: The model to be wrapped: what the adapters would hit is checked on it.
        name, train_generation_embeddings: See `trained_parts`; the parts become `modules_to_save`.
        rank, alpha, dropout: The adapters' own.
        vision_tower: Put adapters into the understanding tower as well.
        targets: A regular expression over whole module names instead of the language model's projections.

    Raises:
        ValueError: If the stage is no LoRA stage, or the targets hit nothing, the codec, or a part trained as a whole.
    """
    from peft import LoraConfig

    if not find_stage(name).lora:
        raise ValueError(f"{name} trains whole parts and takes no adapters: use apply_stage, or a lora_ stage.")
    targets = targets or LANGUAGE_TARGETS
    whole = [PARTS[part] for part in trained_parts(name, train_generation_embeddings)]
    hits = [module for module, _ in model.named_modules() if re.fullmatch(targets, module)]
    if not hits:
        raise ValueError(
            f"The LoRA targets {targets!r} match no module of this model. They are matched against whole names such "
            "as 'model.language_model.layers.0.self_attn.q_proj'."
        )
    if vision_tower:
        targets = f"({targets}|{VISION_TARGETS})"
    forbidden = [PARTS["codec"], *whole]
    if wrong := [hit for hit in hits if any(hit == part or hit.startswith(f"{part}.") for part in forbidden)]:
        raise ValueError(
            f"The LoRA targets {targets!r} hit {wrong[0]!r}: the codec is never trained, and {', '.join(whole)} are "
            "trained as a whole in this stage."
        )
    return LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=targets,
        # PEFT compares ends of names: "aligner" alone would take the generation aligner along.
        modules_to_save=whole,
        base_model_name_or_path=getattr(model, "name_or_path", None) or None,
    )


def frozen_parts(model: Any) -> list[nn.Module]:
    """Parts without a single trainable parameter."""
    base = _without_peft(model)
    parts = (base.get_submodule(path) for path in PARTS.values())
    return [part for part in parts if not any(parameter.requires_grad for parameter in part.parameters())]


def hold_still(part: nn.Module) -> None:
    """Eval mode for a frozen part: no dropout in what does not learn.

    A layer of transformers is checkpointed only if it is in training mode itself, and gradients pass through a frozen
    language model. So layers stay in training mode, and everything inside them, dropout included, is in eval mode.
    """
    part.eval()
    for module in part.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.training = True


def trains_understanding(model: Any) -> bool:
    """Whether the tower or its aligner learns, so that every batch must pass through them."""
    base = _without_peft(model)
    paths = (PARTS["vision_tower"], PARTS["aligner"])
    return any(parameter.requires_grad for path in paths for parameter in base.get_submodule(path).parameters())


def trainable_table(model: Any) -> str:
    """Markdown table of parameters and trainable parameters per part; adapters count where they sit."""
    rows = list(_count(_without_peft(model)))
    rows.append(("**all**", sum(row[1] for row in rows), sum(row[2] for row in rows)))
    lines = ["| part | parameters | trained |", "|---|---:|---:|"]
    return "\n".join([*lines, *(f"| {part} | {total:,} | {trained:,} |" for part, total, trained in rows)])


def _count(base: nn.Module) -> Iterator[tuple[str, int, int]]:
    for part, path in PARTS.items():
        parameters = [_size(parameter) for parameter in base.get_submodule(path).parameters()]
        yield part, sum(size for size, _ in parameters), sum(size for size, trained in parameters if trained)


def _size(parameter: nn.Parameter) -> tuple[int, bool]:
    """Elements, also of a parameter that DeepSpeed has partitioned or bitsandbytes has packed."""
    partitioned = getattr(parameter, "ds_numel", None)
    packed = 2 if type(parameter).__name__ == "Params4bit" else 1
    return partitioned if partitioned is not None else parameter.numel() * packed, parameter.requires_grad


def _without_peft(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


__all__ = [
    "LANGUAGE_TARGETS",
    "PARTS",
    "STAGES",
    "VISION_TARGETS",
    "Stage",
    "apply_stage",
    "find_stage",
    "frozen_parts",
    "hold_still",
    "lora_config",
    "trainable_table",
    "trained_parts",
    "trains_understanding",
]
