"""Functions that check or correct what transformers and accelerate would otherwise do silently.

They concern the trainers' arguments, the number of processes, the sharding of the text head by FSDP2, the dtypes of
gradients and weights, and TRL's replacement of the model's `forward`.
"""

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import FullyShardedDataParallelPlugin
from torch import nn

from ...arguments import describe, or_none
from ...data import JanusProCollator
from ...modeling import JanusProForConditionalGeneration
from ...processing import JanusProProcessor
from .option_tables import KEYWORD_VALUES, SFT_KEYWORDS, SFT_REFUSED, changed, refuse_keywords
from .sft_config import JanusProSFTConfig


# Any: arguments of any kind, and those of transformers' trainer.
def check_arguments(
    model: object,
    args: object,
    data_collator: object,
    processing_class: object,
    kwargs: Mapping[str, Any],
    train_dataset: object,
    facts: object,
) -> None:
    """Check that the arguments of a trainer of Janus-Pro are of the right kind and have an effect.

    Args:
        model, args, data_collator, processing_class: The arguments of these names.
        kwargs: All further arguments of transformers' trainer.
        train_dataset, facts: The arguments of these names.

    Raises:
        TypeError: If an argument is of the wrong kind, unknown or refused.
        ValueError: If the configuration states another `caption_drop` than the collator, which alone drops captions.
    """
    if not isinstance(model, JanusProForConditionalGeneration) or not isinstance(args, JanusProSFTConfig):
        raise TypeError(
            "`model` and `args` must be a loaded JanusProForConditionalGeneration and a JanusProSFTConfig, got "
            f"{type(model).__name__} and {type(args).__name__}: load the model with from_pretrained first."
        )
    if not callable(data_collator):
        raise TypeError(
            f"`data_collator` must be a function from rows to a batch, got {describe(data_collator)}: pass "
            "janus_hf.data's JanusProCollator, which builds the joint ids that this trainer expects."
        )
    if not isinstance(processing_class, JanusProProcessor):
        raise TypeError(
            f"`processing_class` must be the model's JanusProProcessor, got {describe(processing_class)}: load it "
            "with from_pretrained from where the model is."
        )
    refuse_keywords(kwargs, SFT_REFUSED, SFT_KEYWORDS)
    KEYWORD_VALUES["train_dataset"].check(train_dataset, "train_dataset")
    or_none(KEYWORD_VALUES["facts"]).check(facts, "facts")
    share = data_collator.caption_drop if isinstance(data_collator, JanusProCollator) else None
    if share not in (None, args.caption_drop) and changed(args, "caption_drop"):
        raise ValueError(
            f"`caption_drop` must be that of the collator, {share}, got {args.caption_drop}, which has no effect: "
            "give it to JanusProCollator."
        )


# Any: arguments of any kind.
def check_card_arguments(args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Raise a TypeError if an argument of `create_model_card` says something, except for `model_name`.

    TRL gives `model_name` when it calls the method. The card takes the name of the repository.
    """
    said = {"language": args[0]} if args else {}
    said |= {name: value for name, value in kwargs.items() if name != "model_name"}
    for name, value in said.items():
        if value is not None:
            raise TypeError(
                f"`{name}` must be left out of the model card, got {describe(value)}: the card states what the run "
                "knows; edit README.md, and your text is kept."
            )


def check_processes(accelerator: Accelerator, args: JanusProSFTConfig, *, is_fsdp_enabled: bool) -> None:
    """Raise unless the run is distributed as requested, and in a way that does not mix the documents of a row.

    A row of a training batch contains several documents (tokenized examples), which must not attend to each other.

    Args:
        accelerator: The trainer's accelerator.
        args: The configuration of the run.
        is_fsdp_enabled: Whether FSDP is active in the trainer.

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
    """Let FSDP2 shard the text head with the root module if accelerate shards the model inside the `with` block.

    FSDP2 shards a model in units: modules whose weights are gathered, and whose gradients are summed, together.
    accelerate makes a unit of each module that the model returns as its input or output embeddings; so the text head
    would be one. A unit communicates with the other ranks at every call. The text head is called once per chunk of
    labels, so ranks with different numbers of chunks would wait for each other forever. The root unit, which holds
    everything outside other units, communicates once per step. The image head belongs to it anyway, because the model
    does not return it as output embeddings.
    """
    # An attribute of the instance hides the method of the class, and can be deleted afterwards.
    model.__dict__["get_output_embeddings"] = lambda: None
    try:
        yield
    finally:
        del model.__dict__["get_output_embeddings"]


def sum_gradients_in_float32(plugin: FullyShardedDataParallelPlugin) -> None:
    """Change the mixed precision of accelerate's FSDP2 plugin, in place, so that gradients and loss stay in float32.

    By default the plugin sums gradients over ranks and micro-batches in bfloat16, and converts the loss to bfloat16.
    """
    policy = plugin.mixed_precision_policy
    if policy is not None:
        plugin.mixed_precision_policy = dataclasses.replace(policy, reduce_dtype=torch.float32, output_dtype=None)


def keep_trained_in_float32(model: nn.Module, *, autocast: bool) -> None:
    """Convert the parameters that require gradients to float32, in place.

    bfloat16 has only 8 significant bits, so an update smaller than 1/256 of a weight would be lost in rounding.

    Args:
        model: The model, in which `requires_grad` is already False for frozen parameters.
        autocast: Whether the forward pass runs under bfloat16 autocast, which allows float32 parameters beside
            bfloat16 ones.

    Raises:
        ValueError: If a trained parameter is not float32 and there is no autocast, so that dtypes would be mixed.
    """
    narrow = [p for p in model.parameters() if p.requires_grad and p.is_floating_point() and p.dtype != torch.float32]
    if narrow and not autocast:
        raise ValueError(
            f"Trained weights must be float32, got {narrow[0].dtype}: load the model with dtype float32, or set "
            "bf16=True, which keeps trained weights in float32 and computes in bfloat16."
        )
    # The data are replaced through `.data`, because the optimizer and the hooks must keep the same Parameter objects.
    for parameter in narrow:
        parameter.data = parameter.data.float()


def restore_forward(model: nn.Module, forward: Callable[..., object] | None) -> None:
    """Undo TRL's replacement of `model.forward`, in place.

    Args:
        model: The model whose `forward` TRL's constructor replaced.
        forward: The `forward` that was set on the model instance before, for example by accelerate's hooks; None if
            the instance had none of its own.
    """
    model.__dict__.pop("forward", None)
    if forward is not None:
        model.__dict__["forward"] = forward


__all__ = [
    "check_arguments",
    "check_card_arguments",
    "check_processes",
    "keep_trained_in_float32",
    "restore_forward",
    "root_unit_text_head",
    "sum_gradients_in_float32",
]
