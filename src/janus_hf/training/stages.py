"""Training stages: a table of the parts of Janus-Pro that each stage trains, and functions that apply it to a model.

A stage trains all weights of some parts of the model, such as the aligner; `PARTS` lists the parts. A LoRA stage also
adds low-rank adapters to the language model (and, on request, to the vision tower). No stage trains the image codec.

The stages follow Table 2 of the Janus-Pro paper: stage 1 trains "adaptors and image head", stage 2 "all but the two
encoders", stage 3 the understanding encoder as well. The paper does not say whether the embeddings of the image codes
count as an adaptor in stage 1. Here they do: otherwise these embeddings, which are the inputs of image generation,
would keep their random values in a model that is trained from scratch. `train_generation_embeddings=False` excludes
them.
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer


if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel

    from ..modeling import JanusProForConditionalGeneration

# Name of each part of the model -> name of its module in `JanusProForConditionalGeneration`.
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
# Name of each part that can be trained -> the tasks whose rows change its weights. A row of another task passes it by.
REACHED_BY = {
    "vision_tower": {"understanding"},
    "aligner": {"understanding"},
    "language_model": {"text", "understanding", "drawing"},
    "lm_head": {"text", "understanding"},
    "generation_embeddings": {"drawing"},
    "generation_aligner": {"drawing"},
    "generation_head": {"drawing"},
}


@dataclass(frozen=True)
class Stage:
    """One training stage: the parts of the model that it trains, and its default learning rate.

    Args:
        parts: Names (keys of `PARTS`) of the parts of the model whose weights are all trained.
        learning_rate: Default learning rate. Stages 1 to 3 use the values of the Janus-Pro paper. Full fine-tuning
            uses the value of stage 3, which it continues. LoRA stages use 1e-4, a usual value for LoRA.
        lora: Whether the stage also trains LoRA adapters on the language model.
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
    # Full fine-tuning trains the parts of stage 3, because it continues that stage on other data.
    "full": Stage(("vision_tower", *_ALL_BUT_ENCODERS), learning_rate=4e-5),
    "lora_understanding": Stage(("aligner",), learning_rate=1e-4, lora=True),
    "lora_drawing": Stage(_GENERATION, learning_rate=1e-4, lora=True),
    "lora_both": Stage(("aligner", *_GENERATION), learning_rate=1e-4, lora=True),
}

# Both expressions match whole module names, because the vision tower too has modules named q_proj, k_proj and v_proj.
LANGUAGE_TARGETS = r"model\.language_model\.layers\.\d+\.(self_attn|mlp)\.(q|k|v|o|gate|up|down)_proj"
VISION_TARGETS = r"model\.vision_model\..*\.(self_attn\.([qkv]_proj|projection_layer)|mlp\.fc[12])"


def find_stage(name: str) -> Stage:
    """Return the training stage that `STAGES` lists under a name.

    Raises:
        ValueError: If `STAGES` has no such name.
    """
    if name not in STAGES:
        raise ValueError(f"`stage` must be one of {', '.join(STAGES)}, got {name!r}: choose one of them.")
    return STAGES[name]


def trained_parts(name: str, train_generation_embeddings: bool | None = None) -> tuple[str, ...]:
    """Return the names of the parts of the model whose weights a training stage trains, not counting LoRA adapters.

    The names are keys of `PARTS`, in its order.

    Args:
        name: Name of the stage, a key of `STAGES`.
        train_generation_embeddings: True adds the embeddings of the image codes to the trained parts, False removes
            them, and None keeps the stage's default.

    Raises:
        ValueError: If `STAGES` has no such name.
    """
    parts = set(find_stage(name).parts)
    if train_generation_embeddings is not None:
        parts.discard("generation_embeddings")
        parts |= {"generation_embeddings"} if train_generation_embeddings else set()
    # In the order of PARTS, because the order of a set changes from process to process.
    return tuple(part for part in PARTS if part in parts)


def check_reached(name: str, parts: Iterable[str], tasks: Mapping[str, Iterable[str]]) -> None:
    """Raise `ValueError` if no row of the data changes a part of the model that a training stage trains.

    Args:
        name: Name of the stage, for the message.
        parts: Names of the trained parts, keys of `REACHED_BY`.
        tasks: Name of each source of the data -> the tasks of its rows: "text", "understanding", "drawing".
    """
    present = {task for found in tasks.values() for task in found}
    if unreached := [part for part in parts if not REACHED_BY[part] & present]:
        needed = sorted({task for part in unreached for task in REACHED_BY[part]})
        sources = "; ".join(f"{source}: {', '.join(sorted(found)) or 'no rows'}" for source, found in tasks.items())
        raise ValueError(
            f"The stage {name!r} trains {', '.join(unreached)}, which only rows of the task {' or '.join(needed)} "
            f"reach, got sources without such rows ({sources}): add a source, choose another stage, or set "
            "training.allow_unreached=true to leave what is not reached as it is."
        )


def apply_stage(
    model: "JanusProForConditionalGeneration", name: str, *, train_generation_embeddings: bool | None = None
) -> None:
    """Set `requires_grad` to True for the parameters that a training stage trains, and to False for all others.

    This function is for stages without adapters. For a LoRA stage, wrap the model with PEFT instead, with the
    configuration that `lora_config` returns.

    Args:
        model: The model; changed in place.
        name: Name of the stage, a key of `STAGES`.
        train_generation_embeddings: Whether to train the embeddings of the image codes; None keeps the stage's
            default.

    Raises:
        ValueError: If `STAGES` has no such name, or the stage is a LoRA stage.
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
    revision: str | None = None,
) -> "LoraConfig":
    """Return the PEFT configuration with which a model is wrapped for a LoRA stage.

    The parts of the model that the stage trains without adapters become `modules_to_save`.

    Args:
        model: The model to be wrapped; not modified. It is used to check which modules the targets match.
        name: Name of the stage, a key of `STAGES`.
        rank: Rank of the adapters.
        alpha: Adapters are scaled by `alpha / rank`.
        dropout: Dropout probability of the adapters' inputs.
        vision_tower: Whether to add adapters to the vision tower as well.
        targets: Regular expression that is matched against whole names of modules; modules that match get adapters.
            The default (`LANGUAGE_TARGETS`) matches the projections of the language model.
        train_generation_embeddings: Whether to train the embeddings of the image codes; None keeps the stage's
            default.
        revision: Branch, tag or commit of the Hub repository that the model was loaded from, which the adapter's
            configuration states; None for the default branch. Not used if the model was loaded from a folder.

    Raises:
        ValueError: If the stage is no LoRA stage, the model has adapters already, or the targets match no module, a
            module of the image codec, or a module of a part that the stage trains without adapters.
    """
    from peft import LoraConfig

    if not find_stage(name).lora:
        raise ValueError(
            f"`name` must be a stage with adapters, got {name!r}: use apply_stage for it, or choose a lora_ stage."
        )
    if any(hasattr(module, "lora_A") for module in model.modules()):
        raise ValueError(
            "`model` must be a model without adapters, got one that has some, for example of a trainer that was made "
            "before: load the model again."
        )
    targets = targets or LANGUAGE_TARGETS
    whole = [PARTS[part] for part in trained_parts(name, train_generation_embeddings)]
    hits = [module for module, _ in model.named_modules() if re.fullmatch(targets, module)]
    if not hits:
        raise ValueError(
            f"`targets` must match modules of the model, got {targets!r}, which match no module: write a regular "
            "expression for whole names such as 'model.language_model.layers.0.self_attn.q_proj'."
        )
    # The vision tower's targets are added after the search above, because this expression of our own needs no check.
    if vision_tower:
        targets = f"({targets}|{VISION_TARGETS})"
    forbidden = [PARTS["codec"], *whole]
    if wrong := [hit for hit in hits if any(hit == part or hit.startswith(f"{part}.") for part in forbidden)]:
        raise ValueError(
            f"`targets` must leave out the codec, which is never trained, and the parts that this stage trains as a "
            f"whole ({', '.join(whole)}), got {targets!r}, which match {wrong[0]!r}: narrow the expression."
        )
    base: str | None = getattr(model, "name_or_path", None) or None
    return LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=targets,
        # Whole names of modules, because PEFT compares the ends of names: "aligner" would match the generation aligner
        # too.
        modules_to_save=whole,
        # Merging and PEFT read the base model from the adapter's configuration.
        base_model_name_or_path=base,
        revision=None if base is not None and os.path.isdir(base) else revision,
    )


def base_model(model: "JanusProForConditionalGeneration | PeftModel") -> "JanusProForConditionalGeneration":
    """Return the Janus-Pro model inside a PEFT wrapper, or the model itself if it is not wrapped.

    Adapters that PEFT has added to the model's layers are neither removed nor merged.
    """
    wrapped = getattr(model, "get_base_model", None)
    return cast("JanusProForConditionalGeneration", wrapped() if wrapped else model)


def frozen_parts(model: "JanusProForConditionalGeneration | PeftModel") -> list[nn.Module]:
    """Return the modules of those parts of the model (see `PARTS`) in which no parameter requires gradients."""
    base = base_model(model)
    parts = (base.get_submodule(path) for path in PARTS.values())
    return [part for part in parts if not any(parameter.requires_grad for parameter in part.parameters())]


def hold_still(part: nn.Module) -> None:
    """Switch dropout off in a frozen part of the model, and leave its activation checkpointing on.

    Gradients pass through a frozen language model, so its layers need activation checkpointing. But transformers
    checkpoints a layer only if the layer itself is in training mode. Therefore the layers stay in training mode, while
    all modules inside them, dropout included, are set to eval mode.

    Args:
        part: Module of the frozen part; the modes of its modules are changed in place.
    """
    part.eval()
    for module in part.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.training = True


def trains_understanding(model: "JanusProForConditionalGeneration | PeftModel") -> bool:
    """Return whether any parameter of the vision tower or of its aligner requires gradients.

    If so, every training batch must contain an image, so that it passes through both modules.
    """
    base = base_model(model)
    paths = (PARTS["vision_tower"], PARTS["aligner"])
    return any(parameter.requires_grad for path in paths for parameter in base.get_submodule(path).parameters())


def trainable_table(model: "JanusProForConditionalGeneration | PeftModel") -> str:
    """Return a Markdown table of the numbers of all parameters and of trained parameters of a model.

    The table has one row for each part of the model (see `PARTS`) and a last row for their sum. LoRA adapters are
    counted in the part to which they were added.
    """
    rows = list(_count_parts(base_model(model)))
    rows.append(("**all**", sum(row[1] for row in rows), sum(row[2] for row in rows)))
    lines = ["| part | parameters | trained |", "|---|---:|---:|"]
    return "\n".join([*lines, *(f"| {part} | {total:,} | {trained:,} |" for part, total, trained in rows)])


def _count_parts(base: nn.Module) -> Iterator[tuple[str, int, int]]:
    """Yield `(name, number of parameters, number of trained parameters)` of each part of the model (see `PARTS`).

    Args:
        base: The Janus-Pro model without PEFT's wrapper.
    """
    for part, path in PARTS.items():
        parameters = list(base.get_submodule(path).parameters())
        trained = (parameter for parameter in parameters if parameter.requires_grad)
        yield part, sum(map(count_elements, parameters)), sum(map(count_elements, trained))


def count_elements(parameter: nn.Parameter) -> int:
    """Return the number of weights of a parameter, also if it is sharded by ZeRO-3 or quantised to 4 bits."""
    # DeepSpeed's ZeRO-3 empties the parameter's tensor on this rank and keeps the true size in `ds_numel`.
    partitioned = getattr(parameter, "ds_numel", None)
    # bitsandbytes stores two weights of 4 bits in one byte. The type is compared by name, because the library
    # is optional.
    packed = 2 if type(parameter).__name__ == "Params4bit" else 1
    return partitioned if partitioned is not None else parameter.numel() * packed


__all__ = [
    "LANGUAGE_TARGETS",
    "PARTS",
    "REACHED_BY",
    "STAGES",
    "VISION_TARGETS",
    "Stage",
    "apply_stage",
    "base_model",
    "check_reached",
    "count_elements",
    "find_stage",
    "frozen_parts",
    "hold_still",
    "lora_config",
    "trainable_table",
    "trained_parts",
    "trains_understanding",
]
