"""Functions that detect, without waiting for the device, whether a step would launch other kernels than before.

A captured graph contains the addresses of all weights and the results of all decisions of the Python code: which
modules run and with which settings, for example the scale of an adapter. A weight that is changed in place keeps its
address, so the graph reads its new values.
"""

from collections.abc import Hashable, Iterable, Iterator

import torch
from torch import nn
from transformers import PreTrainedConfig

from ...protocols import BareModel


# Attributes that are not compared. Every module has weights, buffers and children, which are read separately, and
# hooks and a training mode, with which steps are not captured. Gradient checkpointing has no effect on a step, and
# trainers switch it off and on around every generation.
_IGNORED = frozenset(vars(nn.Module())) | {"gradient_checkpointing", "_gradient_checkpointing_func"}


def step_modules(model: BareModel) -> Iterator[nn.Module]:
    """Iterate over all modules that a step of image generation runs.

    These are the embeddings and the aligner of image tokens, the language model without the embeddings of text, and
    the image head.
    """
    unused = set(model.language_model.get_input_embeddings().modules())
    for part in (model.generation_embeddings, model.generation_aligner, model.language_model, model.generation_head):
        yield from (module for module in part.modules() if module not in unused)


def tensors_of(module: nn.Module) -> list[torch.Tensor]:
    """Return the parameters and buffers of a module, without those of its children."""
    # The public `parameters(recurse=False)` and `buffers(recurse=False)` take twice as long.
    return [t for t in (*module._parameters.values(), *module._buffers.values()) if t is not None]


def fingerprint(modules: Iterable[nn.Module]) -> Hashable:
    """Return a value that changes whenever a step of these modules would launch other kernels or use other addresses.

    It consists of the classes, settings and children of the modules, and of the addresses, shapes and dtypes of their
    tensors. Computing it reads no values of tensors, so it does not wait for the device.
    """
    seen: dict[int, Hashable] = {}
    return tuple(
        (
            type(module),
            tuple(module._modules),
            tuple(map(_address, tensors_of(module))),
            _setting({name: value for name, value in vars(module).items() if name not in _IGNORED}, seen),
        )
        for module in modules
    )


def _address(tensor: torch.Tensor) -> Hashable:
    """Return where and how the values of a tensor are stored."""
    # A quantised weight is a subclass of tensors that wraps others, and `__tensor_flatten__` names them.
    if hasattr(tensor, "__tensor_flatten__"):
        names = tensor.__tensor_flatten__()[0]
        return (type(tensor), *(_address(getattr(tensor, name)) for name in names))
    return tensor.data_ptr(), tensor.dtype, tensor.device, tensor.shape, tensor.stride()


def _setting(value: object, seen: dict[int, Hashable]) -> Hashable:
    """Return an attribute of a module in a form that can be compared.

    Args:
        value: Value of the attribute.
        seen: Results for configs by their `id`, because all layers share one config.
    """
    if value is None or isinstance(value, (bool, int, float, str, torch.dtype, torch.device)):
        return value
    if isinstance(value, torch.Tensor):
        return _address(value)
    if isinstance(value, nn.Module):
        return type(value).__qualname__  # its contents are read where it is a child of a module
    if isinstance(value, dict):
        return tuple((key, _setting(item, seen)) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return tuple(_setting(item, seen) for item in value)
    if isinstance(value, (set, frozenset)):
        return frozenset(_setting(item, seen) for item in value)
    if isinstance(value, PreTrainedConfig):
        if id(value) not in seen:
            seen[id(value)] = id(value)  # for configs that contain themselves
            seen[id(value)] = _setting(vars(value), seen)
        return seen[id(value)]
    # A function itself is kept, because its `id` may be reused for another function after it is deleted.
    return value if callable(value) and isinstance(value, Hashable) else (type(value), id(value))


def kernel_settings() -> Hashable:
    """Return the settings of torch for the whole process that change which kernels a step launches."""
    cuda = torch.backends.cuda
    return (
        torch.are_deterministic_algorithms_enabled(),
        # Since torch 2.9 the older function raises an error if the newer attribute was set.
        getattr(cuda.matmul, "fp32_precision", None) or torch.get_float32_matmul_precision(),
        cuda.matmul.allow_bf16_reduced_precision_reduction,
        cuda.matmul.allow_fp16_reduced_precision_reduction,
        cuda.flash_sdp_enabled(),
        cuda.mem_efficient_sdp_enabled(),
        cuda.math_sdp_enabled(),
        cuda.cudnn_sdp_enabled(),
    )


__all__ = ["fingerprint", "kernel_settings", "step_modules", "tensors_of"]
