"""Functions that let DeepSpeed's ZeRO keep weights, gradients and communication in float32."""

from typing import TYPE_CHECKING

from torch import nn


if TYPE_CHECKING:
    from accelerate.utils import DeepSpeedPlugin


def keep_float32(plugin: "DeepSpeedPlugin", *, bf16: bool) -> None:
    """Change the configuration of DeepSpeed, in place, so that ZeRO computes what an unsharded run computes.

    With DeepSpeed's option `bf16`, micro-batches and ranks are summed in bfloat16, frozen weights are rounded, and the
    weights that are saved for the next stage are bfloat16. Here all weights, sums and messages are float32, and the
    forward pass runs under bfloat16 autocast, as on one GPU. Options that the configuration states itself are kept.

    Args:
        plugin: accelerate's plugin, or one that transformers made from a file.
        bf16: Whether the forward pass runs under bfloat16 autocast.
    """
    config = plugin.deepspeed_config
    # Without these sections, transformers does not compare them with `bf16` of the run's configuration either.
    config.pop("bf16", None)
    config.pop("fp16", None)
    # Without safe modules, linear layers communicate in float32 like all others.
    autocast = {"enabled": bf16, "dtype": "bfloat16", "lower_precision_safe_modules": []}
    config.setdefault("torch_autocast", autocast)
    config.setdefault("communication_data_type", "fp32")
    config.setdefault("data_types", {"grad_accum_dtype": "fp32"})


def all_in_float32(model: nn.Module) -> None:
    """Convert all weights of a model to float32, in place, as ZeRO requires without its own mixed precision.

    Raises:
        ValueError: If the weights are quantised.
    """
    if getattr(model, "is_quantized", False):
        raise ValueError(
            "`model` must not be quantised with DeepSpeed, which shards float32 weights, got a quantised one: train "
            "it with accelerate_configs/ddp.yaml, or leave the quantisation out."
        )
    model.float()


__all__ = ["all_in_float32", "keep_float32"]
