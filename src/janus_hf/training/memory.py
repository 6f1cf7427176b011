"""What a recipe needs in GPU memory, computed: weights, gradients, optimizer, activations, logits.

Arithmetic, not measurement: the allocator's fragmentation, the CUDA context (about 0.5 GiB), communication buffers (a
gathered layer under FSDP) and the activations of the understanding tower come on top. Parameters are counted on the
real architecture, built without storage.
"""

import re
from dataclasses import dataclass
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
        recipe: `janus_hf.training.run.Recipe`.
        config: Of its model.
        sharding, num_processes: See `estimate_memory`.
    """
    training = recipe.training
    return estimate_memory(
        config,
        training["stage"],
        dtype=recipe.model.get("dtype", "float32"),
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


__all__ = ["Memory", "Sharding", "estimate_memory", "memory_table", "recipe_memory"]
