"""What a recipe needs in GPU memory, computed: weights, gradients, optimizer, activations, logits.

Arithmetic, not measurement: the allocator's fragmentation, the CUDA context (about 0.5 GiB), what FSDP gathers (a
layer, and the heads for the whole step) and the activations of the understanding tower come on top. Parameters are
counted on the real architecture, built without storage.

`python -m janus_hf.training.memory recipes/*.yaml` prints the table of recipes, without loading or fetching anything.
"""

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from ..configuration import JanusProConfig
from ..modeling import JanusProForConditionalGeneration
from ..modeling.loss import CHUNK_SIZE
from .stages import LANGUAGE_TARGETS, PARTS, VISION_TARGETS, apply_stage, find_stage, trained_parts


Sharding = Literal["ddp", "zero2", "zero3", "fsdp2"]
GIB = 2**30
_BYTES = {"float32": 4.0, "bfloat16": 2.0, "8bit": 1.0, "4bit": 0.53}  # 4 bits, and double-quantised scales

# Of the released 7B, where it differs from the 1B (`JanusProConfig()`): config.json of deepseek-ai/Janus-Pro-7B, which
# leaves most sizes of the language model to Llama's defaults.
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
_SHARDED_OVER = 8  # GPUs of one machine, in the printed table


@dataclass(frozen=True)
class Memory:
    """GiB on one GPU."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    logits: float

    @property
    def total(self) -> float:
        """All of it."""
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
    """Memory of one training step, computing in bfloat16.

    Args:
        config: The model's sizes.
        stage: What is trained.
        dtype: Of the frozen weights, "float32" or "bfloat16"; what is trained is held in float32.
        quantization: "4bit" or "8bit": the language model's layers are.
        sharding: "ddp" keeps everything on every GPU, "zero2" shards gradients and optimizer, "zero3" and "fsdp2" the
            weights too.
        num_processes: GPUs.
        tokens: Per micro-batch, `per_device_train_batch_size * max_length`.
        checkpointing: Activations are computed again, layer by layer.
        lora_r, lora_vision_tower: Of LoRA stages.
        chunk_size: Positions whose logits exist at the same time.

    Returns:
        Estimates in GiB.
    """
    trained, frozen, adapters, quantised = _count(config, stage, lora_r, lora_vision_tower)
    if quantization:
        frozen -= quantised
    weights = 4.0 * (trained + adapters) + _BYTES[dtype] * frozen
    weights += _BYTES[quantization] * quantised if quantization else 0.0
    learns = 4.0 * (trained + adapters)
    whole, parts = (num_processes if sharding in ("zero3", "fsdp2") else 1), num_processes if sharding != "ddp" else 1
    return Memory(
        weights=weights / whole / GIB,
        gradients=learns / parts / GIB,
        optimizer=2 * learns / parts / GIB,
        activations=_activations(config, tokens, checkpointing) / GIB,
        logits=_logits(config, min(tokens, chunk_size)) / GIB,
    )


def _count(config: JanusProConfig, stage: str, rank: int, tower: bool) -> tuple[int, int, int, int]:
    """Trained, frozen, adapter parameters, and those a quantiser would take."""
    with torch.device("meta"):
        model = JanusProForConditionalGeneration(config)
    adapters = copies = 0
    if find_stage(stage).lora:
        targets = f"({LANGUAGE_TARGETS}|{VISION_TARGETS})" if tower else LANGUAGE_TARGETS
        hits = [m for name, m in model.named_modules() if isinstance(m, nn.Linear) and re.fullmatch(targets, name)]
        adapters = sum(rank * (module.in_features + module.out_features) for module in hits)
        # A module that an adapter trains as a whole is a copy beside the original.
        copies = sum(_size(model.get_submodule(PARTS[part])) for part in trained_parts(stage))
        model.requires_grad_(False)
    else:
        apply_stage(model, stage)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    layers: Any = model.model.language_model.layers
    linear = sum(m.weight.numel() for m in layers.modules() if isinstance(m, nn.Linear))
    return trained + copies, _size(model) - trained, adapters, linear


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _activations(config: JanusProConfig, tokens: int, checkpointing: bool) -> float:
    """Bytes kept for the backward pass of the language model, 16 bits each.

    Per token and layer: two norms' inputs and outputs, queries, keys, values, attention's output, and three tensors of
    the MLP's width with their product. With checkpointing one input per layer, and one whole layer at a time.
    """
    text = config.text_config
    width, inner = text.hidden_size, text.intermediate_size
    per_layer = 2.0 * tokens * (8 * width + 4 * inner)
    if not checkpointing:
        return per_layer * text.num_hidden_layers
    return 2.0 * tokens * width * text.num_hidden_layers + per_layer


def _logits(config: JanusProConfig, rows: int) -> float:
    """Bytes of one chunk's logits: in bfloat16, in float32, and their gradient."""
    classes = max(config.text_config.vocab_size, config.vq_config.num_embeddings)
    return rows * classes * (2.0 + 4.0 + 4.0)


def recipe_memory(
    recipe: Any, config: JanusProConfig, *, sharding: Sharding = "ddp", num_processes: int = 1
) -> Memory:
    """`estimate_memory` of a recipe as `load_recipe` returns it, for the model it names.

    Args:
        recipe: `janus_hf.training.recipes.Recipe`.
        config: Of its model.
        sharding, num_processes: See `estimate_memory`.
    """
    training = recipe.training
    dtype = recipe.model.get("dtype") or "auto"
    if dtype == "auto":  # on a device that computes in bfloat16
        dtype = "bfloat16" if training["stage"].startswith("lora_") else "float32"
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
    """Markdown table, one row per name, in GiB."""
    lines = [
        "| recipe | weights | gradients | optimizer | activations | logits | total (GiB) |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, memory in rows.items():
        cells = (memory.weights, memory.gradients, memory.optimizer, memory.activations, memory.logits, memory.total)
        lines.append(f"| {name} | " + " | ".join(f"{cell:.1f}" for cell in cells) + " |")
    return "\n".join(lines)


def released_config(size: str) -> JanusProConfig:
    """Configuration of the released Janus-Pro, without the Hub.

    Args:
        size: "1b" or "7b".

    Raises:
        KeyError: If there is no such size.
    """
    width = {"1b": 2048, "7b": 4096}[size]
    return JanusProConfig(
        text_config=_LANGUAGE_7B if size == "7b" else None,
        vision_config={"projection_dim": width},
        vq_config={"projection_dim": width, "image_token_embed_dim": width},
    )


def recipes_table(paths: Sequence[Any]) -> str:
    """`memory_table` of recipe files.

    A recipe for adapters on the 1B has a row for the 7B too. One that trains whole parts has a row for a copy on every
    GPU (`ddp.yaml`) and one for FSDP2 over eight (`fsdp2.yaml`).

    Args:
        paths: Recipes; the paths of their models end with the size, 1B or 7B.

    Raises:
        ValueError: If a recipe's model has another name.
    """
    from .recipes import load_recipe

    rows = {}
    for path in sorted(map(Path, paths)):
        recipe = load_recipe(path)
        own = str(recipe.model["path"])[-2:].lower()
        if own not in ("1b", "7b"):
            raise ValueError(f"{path}: the size of the model cannot be told from its path {recipe.model['path']!r}.")
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
