"""Functions that estimate the GPU memory of a training run: weights, gradients, optimizer, activations and logits.

The estimates are computed; which activations are kept was measured on the CPU (`tests/training/test_memory.py`). They
leave out the fragmentation of the allocator, the CUDA context (about 0.5 GiB), the weights of a layer that ZeRO-3
gathers, gradients of a unit that FSDP2 has not sharded yet, and the activations of the vision tower.
Parameters are counted in the full model, which is built without storage on the meta device.

`python -m janus_hf.training.memory recipes/*.yaml` prints a table of the estimates for recipe files. It neither loads
weights nor downloads anything.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..configuration import JanusProConfig
from ..modeling.loss import CHUNK_SIZE
from .reports.parameter_counts import count_parameters
from .stages import find_stage


if TYPE_CHECKING:
    from .recipes import Recipe

Sharding = Literal["ddp", "zero2", "zero3", "fsdp2", "hsdp"]
GIB = 2**30
# Bytes per weight. "4bit" counts 4 bits plus the double-quantised scales.
_BYTES = {"float32": 4.0, "bfloat16": 2.0, "8bit": 1.0, "4bit": 0.53}


@dataclass(frozen=True)
class _Kept:
    """Activations of a layer of the language model that are kept for the backward pass, for every token.

    Args:
        residual: Bytes of a number between two layers, which activation checkpointing keeps.
        float32: Number of vectors of the model's width in float32: inputs, and outputs, of the two norms.
        bfloat16: Number of vectors of the model's width in bfloat16: the inputs of the linear layers, queries, keys,
            values, and the output of the attention.
        inner: Number of vectors of the MLP's inner width in bfloat16: gate, activated gate, up projection, and the
            product of the last two.
    """

    residual: int
    float32: int
    bfloat16: int
    inner: int


# What is done with the weights of the layers, and their dtype in the forward pass -> what a layer keeps. Under
# autocast, each linear layer keeps its own copy of a float32 input. PEFT converts the input of each adapter to
# float32, so autocast makes such copies there too. Frozen linear layers keep no input.
_KEPT = {
    ("trained", "float32"): _Kept(residual=4, float32=4, bfloat16=9, inner=4),
    ("trained", "bfloat16"): _Kept(residual=2, float32=2, bfloat16=8, inner=4),
    ("adapters", "float32"): _Kept(residual=4, float32=2, bfloat16=10, inner=4),
    ("adapters", "bfloat16"): _Kept(residual=2, float32=2, bfloat16=10, inner=4),
    ("frozen", "float32"): _Kept(residual=4, float32=2, bfloat16=4, inner=3),
    ("frozen", "bfloat16"): _Kept(residual=2, float32=2, bfloat16=4, inner=3),
}


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
    """Estimated memory on one GPU during training, in GiB, with one field for each use, such as the gradients.

    `copies` are those of weights: the bfloat16 copies that autocast keeps of float32 weights, or the weights that
    FSDP2 gathers in bfloat16, and the codec, which FSDP2 does not shard.
    """

    weights: float
    gradients: float
    optimizer: float
    copies: float
    activations: float
    logits: float

    @property
    def total(self) -> float:
        """The sum of all fields, in GiB."""
        return sum(astuple(self))


def estimate_memory(
    config: JanusProConfig,
    stage: str,
    *,
    dtype: str = "float32",
    quantization: str | None = None,
    sharding: Sharding = "ddp",
    num_processes: int = 1,
    tokens: int = 4096,
    length: int = 4096,
    checkpointing: bool = True,
    lora_r: int = 16,
    lora_vision_tower: bool = False,
    lora_targets: str | None = None,
    train_generation_embeddings: bool | None = None,
    chunk_size: int = CHUNK_SIZE,
) -> Memory:
    """Estimate the memory that one training step with AdamW takes on each GPU if it computes in bfloat16.

    Args:
        config: The model's configuration.
        stage: Name of the training stage (a key of `STAGES`), which decides which weights are trained.
        dtype: Dtype of the frozen weights, "float32" or "bfloat16". Trained weights are counted as float32.
        quantization: "4bit" or "8bit" if the linear layers of the language model are quantised, else None.
        sharding: "ddp" keeps everything on every GPU, "zero2" shards gradients and optimizer states over the GPUs,
            "zero3" and "fsdp2" shard the weights too. "hsdp" shards as "fsdp2" does, over the GPUs of one machine, and
            keeps the gathered weights between the forward and the backward pass, as `multi_node.yaml` does.
        num_processes: Number of GPUs over which is sharded.
        tokens: Number of tokens per GPU and micro-batch, `per_device_train_batch_size * max_length`.
        length: Number of tokens of a pack, `max_length`.
        checkpointing: Whether activations are recomputed layer by layer in the backward pass.
        lora_r: Rank of the adapters in LoRA stages.
        lora_vision_tower: Whether LoRA stages also add adapters to the vision tower.
        lora_targets: Regular expression for names of modules with adapters; None for the language model's projections.
        train_generation_embeddings: Whether to train the embeddings of the image codes; None for the stage's default.
        chunk_size: Number of positions whose logits are held at the same time.

    Returns:
        The estimates for one GPU, in GiB.

    Raises:
        ValueError: If `STAGES` has no such stage.
    """
    parts = count_parameters(config, stage, lora_r, lora_vision_tower, lora_targets, train_generation_embeddings)
    trained, frozen = parts.trained + parts.adapters, parts.frozen
    if quantization:  # quantised weights are frozen, and their own size is added below
        frozen -= parts.linear
    weights = 4.0 * trained + _BYTES[dtype] * frozen
    weights += _BYTES[quantization] * parts.linear if quantization else 0.0
    gradients = 4.0 * trained
    fsdp = sharding in ("fsdp2", "hsdp")
    weight_shards = num_processes if fsdp or sharding == "zero3" else 1
    gradient_shards = num_processes if sharding != "ddp" else 1
    use = "adapters" if parts.adapters else "frozen" if parts.frozen_linear else "trained"
    # FSDP2 gathers weights in bfloat16, and quantised ones are multiplied in bfloat16. Trained ones are float32.
    wide = (dtype == "float32" or use == "trained") and not fsdp and not quantization
    kept = _KEPT[use, "float32" if wide else "bfloat16"]
    if not fsdp:
        # autocast keeps its copies of trained weights to the end of the forward pass. The backward pass needs those of
        # all weights of layers that are not computed again.
        copies = 2.0 * (parts.trained_matrices + parts.adapters)
        if wide and not checkpointing:
            copies += 2.0 * parts.frozen_linear
    else:
        # The unit outside the layers stays gathered for the whole step; of the layers, one and the next.
        units = parts.layers if sharding == "hsdp" else 2 * parts.largest_layer
        copies = 2.0 * (parts.outside_layers + units) + 4.0 * parts.codec * (1 - 1 / num_processes)
    return Memory(
        weights=weights / weight_shards / GIB,
        # DDP reduces gradients in place (`gradient_as_bucket_view`), so there is no second copy of them.
        gradients=gradients / gradient_shards / GIB,
        # AdamW keeps two moments, each as large as the gradients.
        optimizer=2 * gradients / gradient_shards / GIB,
        copies=copies / GIB,
        activations=_activations(config, tokens, length, checkpointing, kept) / GIB,
        logits=_logits(config, min(tokens, chunk_size)) / GIB,
    )


def _activations(config: JanusProConfig, tokens: int, length: int, checkpointing: bool, kept: _Kept) -> float:
    """Return the size in bytes of the language model's activations that are kept for the backward pass.

    Without checkpointing, each layer keeps for every token the vectors that `kept` counts, and a row of the mask of
    the attention, which has a bfloat16 number for each token of the pack. With checkpointing, each layer keeps only
    its input, and the activations of one layer at a time are recomputed.

    Args:
        config: The model's configuration.
        tokens: Number of tokens per micro-batch.
        length: Number of tokens of a pack.
        checkpointing: Whether activations are recomputed layer by layer in the backward pass.
        kept: What a layer keeps, which depends on the dtypes.
    """
    text = config.text_config
    width, inner = text.hidden_size, text.intermediate_size
    per_layer = tokens * ((4.0 * kept.float32 + 2.0 * kept.bfloat16) * width + 2.0 * kept.inner * inner + 2.0 * length)
    if not checkpointing:
        return per_layer * text.num_hidden_layers
    return kept.residual * tokens * width * text.num_hidden_layers + per_layer


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
        deepspeed = sharding in ("zero2", "zero3")
        dtype = "bfloat16" if find_stage(training["stage"]).lora and not deepspeed else "float32"
    # The defaults below are those of JanusProSFTConfig, which needs the `train` extra and is not imported here.
    return estimate_memory(
        config,
        training["stage"],
        dtype=dtype,
        quantization=recipe.model.get("quantization"),
        sharding=sharding,
        num_processes=num_processes,
        tokens=training.get("per_device_train_batch_size", 8) * training.get("max_length", 4096),
        length=training.get("max_length", 4096),
        checkpointing=training.get("activation_checkpointing", True),
        lora_r=training.get("lora_r", 16),
        lora_vision_tower=training.get("lora_vision_tower", False),
        lora_targets=training.get("lora_targets"),
        train_generation_embeddings=training.get("train_generation_embeddings"),
    )


def memory_table(rows: dict[str, Memory]) -> str:
    """Return a Markdown table of memory estimates in GiB.

    Args:
        rows: Name of each row of the table -> its estimate.
    """
    lines = [
        "| recipe | weights | gradients | optimizer | copies | activations | logits | total (GiB) |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, memory in rows.items():
        cells = (*astuple(memory), memory.total)
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
    one row for data parallelism, with a copy of everything on every GPU (`ddp.yaml`), one row for FSDP2 over eight
    GPUs (`fsdp2.yaml`), and for the 1B one for HSDP, sharded over the eight GPUs of each machine (`multi_node.yaml`).

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
            sharded: tuple[Sharding, ...] = () if lora else ("fsdp2", "hsdp") if size == "1b" else ("fsdp2",)
            for sharding in sharded:
                rows[f"{name}, {sharding.upper()} over {_SHARDED_OVER}"] = recipe_memory(
                    recipe, config, sharding=sharding, num_processes=_SHARDED_OVER
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
