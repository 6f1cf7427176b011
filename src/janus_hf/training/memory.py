"""Computed estimate of the GPU memory that a recipe needs: weights, gradients, optimizer, activations, logits.

Nothing is measured. The following come on top: fragmentation of the allocator, the CUDA context (about 0.5 GiB), the
weights that FSDP gathers (one layer at a time, and the heads for the whole step), and the activations of the vision
tower. Parameters are counted on the real architecture, built without storage.

`python -m janus_hf.training.memory recipes/*.yaml` prints the table of recipes, without loading or fetching anything.
"""

import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import nn

from ..configuration import JanusProConfig
from ..modeling import JanusProForConditionalGeneration
from ..modeling.loss import CHUNK_SIZE
from .stages import LANGUAGE_TARGETS, PARTS, VISION_TARGETS, apply_stage, find_stage, trained_parts


if TYPE_CHECKING:
    from .recipes import Recipe

Sharding = Literal["ddp", "zero2", "zero3", "fsdp2"]
GIB = 2**30
# Bytes per weight. In "4bit", 4 bits plus double-quantised scales.
_BYTES = {"float32": 4.0, "bfloat16": 2.0, "8bit": 1.0, "4bit": 0.53}

# Language model of the released 7B; all other defaults of `JanusProConfig` are those of the 1B. From config.json of
# deepseek-ai/Janus-Pro-7B, which leaves most sizes of the language model to Llama's defaults.
_LANGUAGE_7B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "max_position_embeddings": 16384,
    "num_attention_heads": 32,
    "num_hidden_layers": 30,
    "num_key_value_heads": 32,
    "vocab_size": 102400,
}
# Number of GPUs for the rows of sharded training in the printed table: those of one machine.
_SHARDED_OVER = 8


@dataclass(frozen=True)
class Memory:
    """Estimated memory on one GPU in GiB, by what it holds."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    logits: float

    @property
    def total(self) -> float:
        """Sum of all fields, in GiB."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.logits


def estimate_memory(
    config: JanusProConfig,
    stage: str,
    *,
    dtype: str = "float32",
    quantization: str | None = None,
    sharding: Sharding = "ddp",
    num_processes: int = 1,
    tokens: int = 4096,
    checkpointing: bool = True,
    lora_r: int = 16,
    lora_vision_tower: bool = False,
    chunk_size: int = CHUNK_SIZE,
) -> Memory:
    """Estimate the memory of one training step that computes in bfloat16.

    Args:
        config: The model's configuration.
        stage: Name of the stage, which decides the trained weights.
        dtype: Dtype of the frozen weights, "float32" or "bfloat16". Trained weights are counted as float32.
        quantization: "4bit" or "8bit" if the linear layers of the language model are quantised, else None.
        sharding: "ddp" keeps everything on every GPU, "zero2" shards gradients and optimizer, "zero3" and "fsdp2"
            shard the weights too.
        num_processes: Number of GPUs.
        tokens: Tokens per micro-batch, `per_device_train_batch_size * max_length`.
        checkpointing: Whether activations are recomputed layer by layer in the backward pass.
        lora_r: Rank of the adapters in LoRA stages.
        lora_vision_tower: Whether LoRA stages add adapters to the vision tower.
        chunk_size: Number of positions whose logits are held at the same time.

    Returns:
        Estimates in GiB.

    Raises:
        ValueError: If there is no such stage.
    """
    trained, frozen, adapters, quantised = _count_parameters(config, stage, lora_r, lora_vision_tower)
    if quantization:  # quantised weights are frozen, and added at their own size below
        frozen -= quantised
    weights = 4.0 * (trained + adapters) + _BYTES[dtype] * frozen
    weights += _BYTES[quantization] * quantised if quantization else 0.0
    gradients = 4.0 * (trained + adapters)
    weight_shards = num_processes if sharding in ("zero3", "fsdp2") else 1
    gradient_shards = num_processes if sharding != "ddp" else 1
    return Memory(
        weights=weights / weight_shards / GIB,
        gradients=gradients / gradient_shards / GIB,
        # AdamW's two moments, each as large as the gradients.
        optimizer=2 * gradients / gradient_shards / GIB,
        activations=_activations(config, tokens, checkpointing) / GIB,
        logits=_logits(config, min(tokens, chunk_size)) / GIB,
    )


def _count_parameters(config: JanusProConfig, stage: str, rank: int, tower: bool) -> tuple[int, int, int, int]:
    """Count the parameters of a model in a stage.

    Args:
        config: The model's configuration.
        stage: Name of the stage.
        rank: Rank of the adapters in LoRA stages.
        tower: Whether LoRA stages add adapters to the vision tower.

    Returns:
        The numbers of trained parameters, of frozen parameters, of adapter parameters, and of parameters that a
        quantiser would compress (the last are among the first two).
    """
    # On the meta device parameters have a size but no storage.
    with torch.device("meta"):
        model = JanusProForConditionalGeneration(config)
    adapters = copies = 0
    if find_stage(stage).lora:
        targets = f"({LANGUAGE_TARGETS}|{VISION_TARGETS})" if tower else LANGUAGE_TARGETS
        hits = [m for name, m in model.named_modules() if isinstance(m, nn.Linear) and re.fullmatch(targets, name)]
        adapters = sum(rank * (module.in_features + module.out_features) for module in hits)
        # PEFT trains a copy of each whole module (`modules_to_save`) and keeps the original, frozen, beside it.
        copies = sum(_num_parameters(model.get_submodule(PARTS[part])) for part in trained_parts(stage))
        model.requires_grad_(False)
    else:
        apply_stage(model, stage)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    layers = model.get_submodule(f"{PARTS['language_model']}.layers")
    linear = sum(m.weight.numel() for m in layers.modules() if isinstance(m, nn.Linear))
    return trained + copies, _num_parameters(model) - trained, adapters, linear


def _num_parameters(module: nn.Module) -> int:
    """Return the number of parameters of a module."""
    return sum(parameter.numel() for parameter in module.parameters())


def _activations(config: JanusProConfig, tokens: int, checkpointing: bool) -> float:
    """Return the bytes of the language model's activations that the backward pass needs, 2 bytes per number.

    Without checkpointing, each layer keeps for every token the inputs and outputs of two norms, queries, keys, values,
    the attention's output, and three vectors of the MLP's width and their product. With checkpointing, each layer
    keeps only its input, and one layer at a time is recomputed.

    Args:
        config: The model's configuration.
        tokens: Tokens per micro-batch.
        checkpointing: Whether activations are recomputed layer by layer.
    """
    text = config.text_config
    width, inner = text.hidden_size, text.intermediate_size
    per_layer = 2.0 * tokens * (8 * width + 4 * inner)
    if not checkpointing:
        return per_layer * text.num_hidden_layers
    return 2.0 * tokens * width * text.num_hidden_layers + per_layer


def _logits(config: JanusProConfig, rows: int) -> float:
    """Return the bytes of the logits of `rows` positions: 2 in bfloat16, 4 in float32 and 4 for their gradient."""
    # The heads run one after the other, so the larger one decides.
    classes = max(config.text_config.vocab_size, config.vq_config.num_embeddings)
    return rows * classes * (2.0 + 4.0 + 4.0)


def recipe_memory(
    recipe: "Recipe", config: JanusProConfig, *, sharding: Sharding = "ddp", num_processes: int = 1
) -> Memory:
    """Estimate the memory of one training step of a recipe; see `estimate_memory`.

    Args:
        recipe: The recipe.
        config: Configuration of the recipe's model.
        sharding: How the training is sharded.
        num_processes: Number of GPUs.

    Returns:
        Estimates in GiB.
    """
    training = recipe.training
    dtype = recipe.model.get("dtype") or "auto"
    if dtype == "auto":  # as training decides on a device that computes in bfloat16
        dtype = "bfloat16" if find_stage(training["stage"]).lora else "float32"
    # The defaults below are those of JanusProSFTConfig, which needs the `train` extra and is not imported here.
    return estimate_memory(
        config,
        training["stage"],
        dtype=dtype,
        quantization=recipe.model.get("quantization"),
        sharding=sharding,
        num_processes=num_processes,
        tokens=training.get("per_device_train_batch_size", 8) * training.get("max_length", 4096),
        checkpointing=training.get("activation_checkpointing", True),
        lora_r=training.get("lora_r", 16),
        lora_vision_tower=training.get("lora_vision_tower", False),
    )


def memory_table(rows: dict[str, Memory]) -> str:
    """Return a Markdown table of estimates in GiB, one row per name."""
    lines = [
        "| recipe | weights | gradients | optimizer | activations | logits | total (GiB) |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, memory in rows.items():
        cells = (memory.weights, memory.gradients, memory.optimizer, memory.activations, memory.logits, memory.total)
        lines.append(f"| {name} | " + " | ".join(f"{cell:.1f}" for cell in cells) + " |")
    return "\n".join(lines)


def released_config(size: str) -> JanusProConfig:
    """Return the configuration of a released Janus-Pro model, without access to the Hub.

    Args:
        size: "1b" or "7b".

    Raises:
        KeyError: If `size` is neither.
    """
    width = {"1b": 2048, "7b": 4096}[size]
    return JanusProConfig(
        text_config=_LANGUAGE_7B if size == "7b" else None,
        vision_config={"projection_dim": width},
        vq_config={"projection_dim": width, "image_token_embed_dim": width},
    )


def recipes_table(paths: Sequence[str | os.PathLike[str]]) -> str:
    """Return the Markdown table of the memory that recipe files need, in GiB.

    A recipe that trains adapters on the 1B also has a row for the 7B. A recipe without adapters has one row for a copy
    of everything on every GPU (`ddp.yaml`) and one for FSDP2 over eight GPUs (`fsdp2.yaml`).

    Args:
        paths: Recipe files. The paths of their models must end with the size, 1B or 7B.

    Raises:
        ValueError: If the path of a recipe's model ends otherwise.
    """
    from .recipes import load_recipe  # here, because it needs the `train` extra and the estimates do not

    rows = {}
    for path in sorted(map(Path, paths)):
        recipe = load_recipe(path)
        own = str(recipe.model["path"])[-2:].lower()
        if own not in ("1b", "7b"):
            raise ValueError(
                f"The path of a recipe's model must end with 1B or 7B, got {recipe.model['path']!r} in {path}: call "
                "estimate_memory with the model's configuration instead."
            )
        lora = find_stage(recipe.training["stage"]).lora
        for size in ("1b", "7b") if lora and own == "1b" else (own,):
            config, name = released_config(size), f"{path.stem}, {size.upper()}"
            rows[name] = recipe_memory(recipe, config)
            if not lora:
                rows[f"{name}, FSDP2 over {_SHARDED_OVER}"] = recipe_memory(
                    recipe, config, sharding="fsdp2", num_processes=_SHARDED_OVER
                )
    return memory_table(rows)


__all__ = [
    "Memory",
    "Sharding",
    "estimate_memory",
    "memory_table",
    "recipe_memory",
    "recipes_table",
    "released_config",
]

if __name__ == "__main__":
    sys.stdout.write(recipes_table(sys.argv[1:]) + "\n")
