"""The function `why_not_capturable`: the reason why the steps of a model cannot be captured in a graph."""

from collections.abc import Sequence

import torch
from torch import nn
from transformers import PreTrainedConfig

from .graph_dependencies import tensors_of


def why_not_capturable(modules: Sequence[nn.Module], config: PreTrainedConfig, owner: object) -> str | None:
    """Return why the steps of a model cannot be captured in its present state, or None if they can.

    Args:
        modules: Modules that a step runs.
        config: Config of the language model.
        owner: The whole model that these modules belong to, whose attributes show whether it is offloaded; None if it
            is not known.
    """
    weights = [tensor for module in modules for tensor in tensors_of(module)]
    if reason := _why_not_on_one_device(modules, weights, owner):
        return reason
    if any(module.training for module in modules):
        return "the model is in training mode (model.eval() ends it)"
    if torch.is_grad_enabled() and any(weight.requires_grad for weight in weights):
        return "gradients are recorded (torch.no_grad() prevents it)"
    if torch.is_autocast_enabled(weights[0].device.type):
        # transformers' static cache has one dtype, and autocast makes keys and values of two.
        return "autocast is enabled (load the model in the dtype that it is to compute in)"
    if any(_has_hooks(module) for module in modules):
        return "layers have forward hooks, which a replay would not call"
    # `_attn_implementation`: transformers has a public setter for it, but no public getter.
    if config._attn_implementation != "sdpa":
        return f"the attention implementation is {config._attn_implementation!r}, and captured steps need 'sdpa'"
    return None


def _why_not_on_one_device(modules: Sequence[nn.Module], weights: Sequence[torch.Tensor], owner: object) -> str | None:
    """Return the reason if the weights are not whole on one device (offloaded, spread or sharded), otherwise None."""
    # accelerate's attribute `_hf_hook`: its public `has_offloaded_params` does not see the pipeline's CPU offload.
    # diffusers' attribute `_diffusers_hook`: it has no public way from a module to the hooks of group offloading.
    holders = [*modules, *([] if owner is None else [owner])]
    # `vars` is used because `hasattr` takes ten times as long if a module does not have the attribute.
    if any("_hf_hook" in vars(holder) or "_diffusers_hook" in vars(holder) for holder in holders):
        return "the model is offloaded, or moved between devices by hooks"
    # Marks of DeepSpeed's ZeRO-3, of tensors with a device mesh (FSDP2, tensor parallelism) and of FSDP.
    if (
        any(hasattr(weight, "ds_id") or hasattr(weight, "device_mesh") for weight in weights)
        or any(not weight.numel() for weight in weights)
        or any("_fsdp_wrapped_module" in module._modules for module in modules)
    ):
        return "the weights are sharded"
    devices = {str(weight.device) for weight in weights} | _devices_in_map(owner)
    if "meta" in devices:
        return "weights are not loaded (they are on the device 'meta')"
    if len(devices) > 1:
        return f"the model is spread over several devices ({', '.join(sorted(devices))})"
    return None


def _devices_in_map(owner: object) -> set[str]:
    """Return the names of the devices in the model's `hf_device_map`, or an empty set if there is only one.

    The map may name "disk" as well, which is no device of PyTorch.
    """
    device_map = getattr(owner, "hf_device_map", {})
    devices = {f"cuda:{device}" if isinstance(device, int) else str(device) for device in device_map.values()}
    return devices if len(devices) > 1 else set()


def _has_hooks(module: nn.Module) -> bool:
    """Return whether the module has forward hooks, other than those of transformers that collect hidden states.

    transformers leaves its hooks in place after `output_hidden_states=True`; without a collector they do nothing.
    """
    hooks = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
    return any(getattr(hook, "__module__", None) != "transformers.utils.output_capturing" for hook in hooks)


__all__ = ["why_not_capturable"]
