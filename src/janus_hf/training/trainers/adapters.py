"""Functions that set a model up for its training stage, with LoRA adapters if the stage has them."""

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from torch import nn
from transformers import set_seed

from ...modeling import JanusProForConditionalGeneration
from ..stages import apply_stage, find_stage, lora_config
from .sft_config import JanusProSFTConfig


if TYPE_CHECKING:
    from peft import PeftModel


def set_up_stage(
    model: JanusProForConditionalGeneration, args: JanusProSFTConfig, *, revision: str | None
) -> "JanusProForConditionalGeneration | PeftModel":
    """Prepare a model for the training stage `args.stage`, and return the model to train.

    In a stage without adapters, set which parameters require gradients, and return the model itself. In a LoRA stage,
    add adapters, whose random weights follow from `args.seed`, and return the model inside PEFT's wrapper.

    Args:
        model: The model; changed in place.
        args: The configuration of the run.
        revision: Revision of the model's Hub repository, which the adapters' configuration states.

    Raises:
        ValueError: See `lora_config`.
    """
    if not find_stage(args.stage).lora:
        apply_stage(model, args.stage, train_generation_embeddings=args.train_generation_embeddings)
        return model
    from peft import get_peft_model

    adapters = lora_config(
        model,
        args.stage,
        rank=args.lora_r,
        alpha=args.lora_alpha,
        dropout=args.lora_dropout,
        vision_tower=args.lora_vision_tower,
        targets=args.lora_targets,
        train_generation_embeddings=args.train_generation_embeddings,
        revision=revision,
    )
    set_seed(args.seed)
    wrapped = get_peft_model(model, adapters)
    if args.activation_checkpointing:
        # A recomputed layer has gradients only if its input has, and the embeddings, which are its input, are frozen.
        wrapped.enable_input_require_grads()
    return wrapped


def offload_activations(model: nn.Module, args: JanusProSFTConfig) -> AbstractContextManager[object]:
    """Return the context of every training step: TRL's offloading of activations to the CPU, if `args` ask for it."""
    if not args.activation_offloading:
        return nullcontext()
    from trl.models import get_act_offloading_ctx_manager

    offloading: AbstractContextManager[object] = get_act_offloading_ctx_manager(model=model)
    return offloading


__all__ = ["offload_activations", "set_up_stage"]
