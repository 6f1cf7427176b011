"""Functions that estimate the GPU memory of a training run: weights, gradients, optimizer, activations and logits.

The estimates are computed, not measured. They leave out the fragmentation of the allocator, the CUDA context (about
0.5 GiB), the weights that FSDP gathers (those of one layer at a time, and those of the output heads for the whole
step), and the activations of the vision tower. Parameters are counted in the full model, which is built without
storage on the meta device.

`python -m janus_hf.training.memory recipes/*.yaml` prints a table of the estimates for recipe files. It neither loads
weights nor downloads anything.
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
# Bytes per weight. "4bit" counts 4 bits plus the double-quantised scales.
_BYTES = {"float32": 4.0, "bfloat16": 2.0, "8bit": 1.0, "4bit": 0.53}

# Configuration of the language model of Janus-Pro-7B, because the defaults of `JanusProConfig` are those of
# Janus-Pro-1B. The source is config.json of deepseek-ai/Janus-Pro-7B, which leaves most sizes of the language model to
# Llama's defaults.
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
# Number of GPUs (those of one machine) in the rows of the printed table that are for sharded training.
_SHARDED_OVER = 8


@dataclass(frozen=True)
class Memory:
    """Estimated memory on one GPU during training, in GiB, with one field for each use, such as the gradients."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    logits: float

    @property
    def total(self) -> float:
        """The sum of all fields, in GiB."""
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
    """Estimate the memory that one training step with AdamW takes on each GPU if it computes in bfloat16.

    Args:
        config: The model's configuration.
        stage: Name of the training stage (a key of `STAGES`), which decides which weights are trained.
        dtype: Dtype of the frozen weights, "float32" or "bfloat16". Trained weights are counted as float32.
        quantization: "4bit" or "8bit" if the linear layers of the language model are quantised, else None.
        sharding: "ddp" keeps everything on every GPU, "zero2" shards gradients and optimizer states over the GPUs,
            "zero3" and "fsdp2" shard the weights too.
        num_processes: Number of GPUs.
        tokens: Number of tokens per GPU and micro-batch, `per_device_train_batch_size * max_length`.
        checkpointing: Whether activations are recomputed layer by layer in the backward pass.
        lora_r: Rank of the adapters in LoRA stages.
        lora_vision_tower: Whether LoRA stages also add adapters to the vision tower.
        chunk_size: Number of positions whose logits are held at the same time.

    Returns:
        The estimates for one GPU, in GiB.

    Raises:
        ValueError: If `STAGES` has no such stage.
    """
    trained, frozen, adapters, quantised = _count_parameters(config, stage, lora_r, lora_vision_tower)
    if quantization:  # quantised weights are frozen, and their own size is added below
        frozen -= quantised
    weights = 4.0 * (trained + adapters) + _BYTES[dtype] * frozen
    weights += _BYTES[quantization] * quantised if quantization else 0.0
    gradients = 4.0 * (trained + adapters)
    weight_shards = num_processes if sharding in ("zero3", "fsdp2") else 1
    gradient_shards = num_processes if sharding != "ddp" else 1
    return Memory(
        weights=weights / weight_shards / GIB,
        gradients=gradients / gradient_shards / GIB,
        # AdamW keeps two moments, each as large as the gradients.
        optimizer=2 * gradients / gradient_shards / GIB,
        activations=_activations(config, tokens, checkpointing) / GIB,
        logits=_logits(config, min(tokens, chunk_size)) / GIB,
    )


def _count_parameters(config: JanusProConfig, stage: str, rank: int, tower: bool) -> tuple[int, int, int, int]:
    """Count the parameters of a model by how a training stage uses them.

    Args:
        config: The model's configuration.
        stage: Name of the training stage, a key of `STAGES`.
        rank: Rank of the adapters in LoRA stages.
        tower: Whether LoRA stages also add adapters to the vision tower.

    Returns:
        Four numbers: trained parameters without adapters, frozen parameters, parameters of the LoRA adapters, and
        parameters that quantisation would compress. The last are also counted in the first or the second number.
    """
    # The meta device is used, because there parameters have a size but no storage.
    with torch.device("meta"):
        model = JanusProForConditionalGeneration(config)
    adapters = copies = 0
    if find_stage(stage).lora:
        targets = f"({LANGUAGE_TARGETS}|{VISION_TARGETS})" if tower else LANGUAGE_TARGETS
        hits = [m for name, m in model.named_modules() if isinstance(m, nn.Linear) and re.fullmatch(targets, name)]
        adapters = sum(rank * (module.in_features + module.out_features) for module in hits)
        # PEFT trains a copy of each module in `modules_to_save`, and keeps the module itself, frozen, beside the copy.
        copies = sum(_num_parameters(model.get_submodule(PARTS[part])) for part in trained_parts(stage))
        model.requires_grad_(False)
    else:
        apply_stage(model, stage)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    layers = model.get_submodule(f"{PARTS['language_model']}.layers")
    linear = sum(m.weight.numel() for m in layers.modules() if isinstance(m, nn.Linear))
    return trained + copies, _num_parameters(model) - trained, adapters, linear


def _num_parameters(module: nn.Module) -> int:
    """Return the number of all parameters of a module, trained or not."""
    return sum(parameter.numel() for parameter in module.parameters())


def _activations(config: JanusProConfig, tokens: int, checkpointing: bool) -> float:
    """Return the size in bytes of the language model's activations that are kept for the backward pass.

    Each number takes 2 bytes.

    Without checkpointing, each layer keeps for every token the inputs and outputs of two norms, the queries, keys and
    values, the output of the attention, and four vectors of the MLP's inner width (gate, activated gate, up
    projection, and the product of the last two). With checkpointing, each layer keeps only its input, and the
    activations of one layer at a time are recomputed.

    Args:
        config: The model's configuration.
        tokens: Number of tokens per micro-batch.
        checkpointing: Whether activations are recomputed layer by layer in the backward pass.
    """
    text = config.text_config
    width, inner = text.hidden_size, text.intermediate_size
    per_layer = 2.0 * tokens * (8 * width + 4 * inner)
    if not checkpointing:
        return per_layer * text.num_hidden_layers
    return 2.0 * tokens * width * text.num_hidden_layers + per_layer


def _logits(config: JanusProConfig, rows: int) -> float:
    """Return the size in bytes of the logits of a number of positions.

    Each logit takes 10 bytes: 2 in bfloat16, 4 for its float32 copy and 4 for its gradient.

    Args:
        config: The model's configuration.
        rows: Number of positions.
    """
    # The text head and the image head run one after the other, so the one with more classes decides.
    classes = max(config.text_config.vocab_size, config.vq_config.num_embeddings)
    return rows * classes * (2.0 + 4.0 + 4.0)


def recipe_memory(
    recipe: "Recipe", config: JanusProConfig, *, sharding: Sharding = "ddp", num_processes: int = 1
) -> Memory:
    """Estimate the memory that one training step of a recipe takes on each GPU.

    Args:
        recipe: The recipe, which sets the stage, the dtype, the batch size and the LoRA options.
        config: Configuration of the recipe's model.
        sharding: How the training is sharded over the GPUs; see `estimate_memory`.
        num_processes: Number of GPUs.

    Returns:
        The estimates for one GPU, in GiB.
    """
    training = recipe.training
    dtype = recipe.model.get("dtype") or "auto"
    if dtype == "auto":  # the same choice as `run.py` makes on a device that computes in bfloat16
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
    """Return a Markdown table of memory estimates in GiB.

    Args:
        rows: Name of each row of the table -> its estimate.
    """
    lines = [
        "| recipe | weights | gradients | optimizer | activations | logits | total (GiB) |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, memory in rows.items():
        cells = (memory.weights, memory.gradients, memory.optimizer, memory.activations, memory.logits, memory.total)
        lines.append(f"| {name} | " + " | ".join(f"{cell:.1f}" for cell in cells) + " |")
    return "\n".join(lines)


def released_config(size: str) -> JanusProConfig:
    """Return the configuration of Janus-Pro-1B or Janus-Pro-7B without access to the Hub.

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
    """Return a Markdown table of the estimated memory per GPU of recipe files, in GiB.

    A recipe that trains LoRA adapters on the 1B model has a second row for the 7B model. A recipe without adapters has
    one row for data parallelism, with a copy of everything on every GPU (`ddp.yaml`), and one row for FSDP2 over eight
    GPUs (`fsdp2.yaml`).

    Args:
        paths: Recipe files. The `path` of the model in each of them must end with the model's size, 1B or 7B.

    Raises:
        ValueError: If the path of a recipe's model ends otherwise.
    """
    from .recipes import load_recipe  # imported here, because it needs the `train` extra and the estimates do not

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
