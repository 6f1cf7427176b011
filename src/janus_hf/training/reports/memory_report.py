"""`memory_report`, which compares the memory that a run will need with that of its card, before the first step."""

from typing import TYPE_CHECKING

import torch

from ..memory import GIB, Memory, Sharding, estimate_memory
from ..stages import base_model, find_stage


if TYPE_CHECKING:
    from accelerate import Accelerator
    from peft import PeftModel

    from ...modeling import JanusProForConditionalGeneration
    from ..trainers.sft_config import JanusProSFTConfig


def memory_report(
    args: "JanusProSFTConfig", model: "JanusProForConditionalGeneration | PeftModel", accelerator: "Accelerator"
) -> str | None:
    """Return a line with the estimated memory per GPU, the card's memory, and what to change if that is too little.

    Args:
        args: The configuration of the run.
        model: The model that is trained, with its adapters, before it is sharded.
        accelerator: The trainer's accelerator.

    Returns:
        The line, or None without a CUDA device.
    """
    if args.device.type != "cuda":
        return None
    card = torch.cuda.get_device_properties(args.device)
    return compare(args, estimate_run(args, model, accelerator), card.name, card.total_memory / GIB)


def estimate_run(
    args: "JanusProSFTConfig", model: "JanusProForConditionalGeneration | PeftModel", accelerator: "Accelerator"
) -> Memory:
    """Return the estimated memory per GPU of a run, as it was launched; the arguments are those of `memory_report`."""
    sharding, shards = _sharding(accelerator)
    base = base_model(model)
    frozen = [p.dtype for p in base.parameters() if not p.requires_grad and p.is_floating_point()]
    assert args.max_length is not None  # checked by the configuration
    return estimate_memory(
        base.config,
        args.stage,
        dtype="float32" if not frozen or torch.float32 in frozen else "bfloat16",
        quantization=_quantization(base),
        sharding=sharding,
        num_processes=shards,
        tokens=args.per_device_train_batch_size * args.max_length,
        length=args.max_length,
        checkpointing=bool(args.activation_checkpointing),
        lora_r=args.lora_r,
        lora_vision_tower=args.lora_vision_tower,
        lora_targets=args.lora_targets,
        train_generation_embeddings=args.train_generation_embeddings,
    )


def compare(args: "JanusProSFTConfig", memory: Memory, card: str, capacity: float) -> str:
    """Return the line of `memory_report`.

    Args:
        args: The configuration of the run.
        memory: The estimated memory per GPU.
        card: Name of the card.
        capacity: The card's memory in GiB.
    """
    parts = ", ".join(f"{name} {getattr(memory, name):.1f}" for name in memory.__dataclass_fields__)
    at_least = "" if args.bf16 else "more than "  # the estimate is for computation in bfloat16
    line = f"Estimated memory: {at_least}{memory.total:.1f} GiB per GPU ({parts}); the {card} has {capacity:.1f} GiB."
    if memory.total <= capacity:
        return line
    lora = find_stage(args.stage).lora
    advice = [
        (args.per_device_train_batch_size > 1, "lower training.per_device_train_batch_size"),
        (not args.activation_checkpointing, "set training.activation_checkpointing=true"),
        (not args.bf16, "set training.bf16=true"),
        (not args.sharded and not lora, "shard over several GPUs with accelerate_configs/fsdp2.yaml"),
        (not lora, "choose a lora_ stage"),
        (lora and not args.sharded, "set model.quantization=4bit"),
        (True, "lower training.max_length"),
    ]
    return f"WARNING: {line} That is too little: " + ", or ".join(text for applies, text in advice if applies) + "."


def _sharding(accelerator: "Accelerator") -> tuple[Sharding, int]:
    """Return how a run is sharded, and over how many processes."""
    state = accelerator.state
    if (plugin := state.deepspeed_plugin) is not None and plugin.zero_stage >= 2:
        return ("zero3" if plugin.zero_stage == 3 else "zero2"), accelerator.num_processes
    if (fsdp := getattr(state, "fsdp_plugin", None)) is None:
        return "ddp", 1
    sizes = accelerator.parallelism_config
    shards = sizes.dp_shard_size if sizes is not None and sizes.dp_shard_size > 1 else accelerator.num_processes
    return ("fsdp2" if fsdp.reshard_after_forward else "hsdp"), shards


def _quantization(model: "JanusProForConditionalGeneration") -> str | None:
    """Return "4bit" or "8bit" if the model is quantised, else None."""
    if not getattr(model, "is_quantized", False):
        return None
    return "4bit" if getattr(model, "is_loaded_in_4bit", False) else "8bit"


__all__ = ["compare", "estimate_run", "memory_report"]
