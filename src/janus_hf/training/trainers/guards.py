"""Corrections of what transformers and accelerate would do silently: process counts, float32 sums, FSDP2 units."""

import dataclasses
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from accelerate.utils import FullyShardedDataParallelPlugin
from torch import nn

from .sft_config import JanusProSFTConfig


def check_processes(accelerator: Accelerator, args: JanusProSFTConfig, *, is_fsdp_enabled: bool) -> None:
    """Raise unless the run is distributed as requested and keeps packed documents apart.

    Args:
        accelerator: The trainer's accelerator.
        args: The configuration.
        is_fsdp_enabled: Whether the trainer found FSDP active.

    Raises:
        ValueError: If the launcher started another number of processes, FSDP was requested and is not active, FSDP is
            of version 1, or context or sequence parallelism is on.
    """
    # The launcher sets WORLD_SIZE. Without a launcher there is one process.
    found, launched = accelerator.num_processes, int(os.environ.get("WORLD_SIZE", "1"))
    if found != launched:
        raise ValueError(
            f"The launcher started {launched} processes but this one works with {found}: check the launcher's "
            "settings and `use_cpu`."
        )
    if args.wants_fsdp and not is_fsdp_enabled:
        raise ValueError(
            "FSDP was asked for but is not active: without a GPU accelerate leaves it out silently. Train without "
            "it, or on GPUs."
        )
    if is_fsdp_enabled and accelerator.state.fsdp_plugin.fsdp_version != 2:
        raise ValueError("`fsdp_version` must be 2, got 1: set it as accelerate_configs/fsdp2.yaml does.")
    parallel = accelerator.parallelism_config
    if parallel is not None and (parallel.cp_enabled or parallel.sp_enabled):
        raise ValueError("Context and sequence parallelism drop the mask between packed documents: turn them off.")


@contextmanager
def root_unit_text_head(model: nn.Module) -> Iterator[None]:
    """Hide the text head from accelerate's FSDP2 sharding, so that it falls into the root unit.

    accelerate makes FSDP2 units of the layers that the model names as its input and output embeddings. A unit
    communicates with the other ranks at every call (it gathers weights, it sums gradients), and the text head is
    called once per chunk of labels: ranks with different numbers of chunks would wait for each other forever. The
    root unit communicates once per step. The image head is not named, so it belongs to the root unit anyway.
    """
    # An attribute of the instance hides the method of the class, and can be deleted again.
    model.__dict__["get_output_embeddings"] = lambda: None
    try:
        yield
    finally:
        del model.__dict__["get_output_embeddings"]


def sum_gradients_in_float32(plugin: FullyShardedDataParallelPlugin) -> None:
    """Change an FSDP2 plugin to sum gradients in float32 and to leave the loss in float32.

    By default accelerate's mixed precision sums gradients over ranks and micro-batches in bfloat16, and converts the
    loss to bfloat16.
    """
    policy = plugin.mixed_precision_policy
    if policy is not None:
        plugin.mixed_precision_policy = dataclasses.replace(policy, reduce_dtype=torch.float32, output_dtype=None)


def keep_trained_in_float32(model: nn.Module, *, autocast: bool) -> None:
    """Convert the parameters that require gradients to float32, in place.

    bfloat16 holds 8 significant bits: an update smaller than 1/256 of a weight would be rounded away.

    Args:
        model: The model, its frozen parameters already frozen.
        autocast: Whether the forward pass runs under bfloat16 autocast, which allows float32 parameters beside
            bfloat16 ones.

    Raises:
        ValueError: If a trained parameter is not float32 and the forward pass would then mix dtypes.
    """
    narrow = [p for p in model.parameters() if p.requires_grad and p.is_floating_point() and p.dtype != torch.float32]
    if narrow and not autocast:
        raise ValueError(
            f"Trained weights must be float32, got {narrow[0].dtype}: load the model with dtype float32, or set "
            "bf16=True, which keeps trained weights in float32 and computes in bfloat16."
        )
    # Through `.data`: the optimizer and the hooks must keep the same Parameter objects.
    for parameter in narrow:
        parameter.data = parameter.data.float()


__all__ = ["check_processes", "keep_trained_in_float32", "root_unit_text_head", "sum_gradients_in_float32"]
