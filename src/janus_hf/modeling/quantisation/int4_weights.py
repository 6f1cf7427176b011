"""Conversion of int4 weights between the order of a CPU's kernel in memory and torchao's plain order in files.

The int4 kernel of a CPU reads weights in an order that differs between processors, and torchao cannot save weights in
that order. In files int4 weights are therefore in torchao's plain order (two inputs to a byte, the first in its low
half; a scale and a zero point per group). They are packed for the processor when they are loaded and unpacked when
they are saved. Both conversions are exact.

In shapes, `N` is the number of outputs of a layer, `K` the number of its inputs, and `g` the number of inputs per
group.
"""

import copy
import importlib.util
import re
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ...errors import CheckpointError


if TYPE_CHECKING:
    from torchao.core.config import AOBaseConfig
    from torchao.prototype.quantization.int4 import Int4OpaqueTensor
    from torchao.quantization import Int4Tensor


def cpu_int4() -> ModuleType:
    """Import and return torchao's module for int4 weights on a CPU.

    The module is a prototype, so its names may change. It is needed because torchao's stable `Int4WeightOnlyConfig`
    has no packing format for a CPU.

    Raises:
        ImportError: If torchao is missing or older than 0.18.
    """
    try:
        from torchao.prototype.quantization import int4
    except ImportError as error:
        raise ImportError("int4 weights on a CPU need torchao 0.18 or newer: pip install -U torchao.") from error
    return int4


def layer_config(name: str, config: "AOBaseConfig | None") -> "AOBaseConfig | None":
    """Return the torchao config that applies to the layer `name`, or None if the layer is not quantised.

    A `FqnToConfig` has one config per layer name or pattern. The config of the exact name applies first, then that of
    the first pattern that matches, then the default. Any other config applies to all layers.

    Args:
        name: Name of the layer in the model, such as "language_model.layers.0.mlp.up_proj".
        config: The torchao config that the model is quantised with, or None.
    """
    # The class is compared by its name, so that torchao is not imported for models that it did not quantise.
    if config is None or type(config).__name__ != "FqnToConfig":
        return config
    configs, names = config.fqn_to_config, (f"{name}.weight", name)
    exact = (one for one in names if one in configs)
    patterns = (key for key in configs if key.startswith("re:"))
    fitting = (key for key in patterns if any(re.fullmatch(key.removeprefix("re:"), one) for one in names))
    return configs.get(next(exact, None) or next(fitting, "_default"))


@contextmanager
def portable_int4(model: PreTrainedModel) -> Iterator[None]:
    """Return a context in which the model's int4 weights are in an order that torchao can save.

    While the context is active, weights that were packed for a CPU are replaced by weights in torchao's plain order,
    and the model's quantisation config is replaced by one that names this order. Both are restored at the end. A model
    without int4 weights packed for a CPU is left unchanged.

    Raises:
        ValueError: If the weights are packed for a kernel that also quantises its inputs, because torchao has no other
            order for these.
    """
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and type(module.weight).__name__ == "Int4OpaqueTensor"
    }
    if not layers:
        yield
        return
    before = model.config.quantization_config
    packed: dict[str, Any] = {name: module.weight for name, module in layers.items()}
    for name, weight in packed.items():
        if weight.act_mapping_type is not None:
            raise ValueError(
                f"The weights must be in an order that torchao can save, got those of "
                f"{type(layer_config(name, before.quant_type)).__name__} ({name} and others), which are packed for "
                "this processor's kernel: quantise the unquantised checkpoint each time it is loaded, or take "
                "quantization_config='int4', which can be saved."
            )
    orders: dict[torch.Size, torch.Tensor] = {}
    try:
        for name, weight in packed.items():
            if weight.shape not in orders:
                orders[weight.shape] = _kernel_order(weight.shape)
            layers[name].weight = nn.Parameter(_unpack(weight, orders[weight.shape]), requires_grad=False)
        model.config.quantization_config = copy.copy(before)
        model.config.quantization_config.quant_type = _portable_config(before.quant_type)
        yield
    finally:
        model.config.quantization_config = before
        for name, weight in packed.items():
            layers[name].weight = weight


def _portable_config(config: "AOBaseConfig") -> "AOBaseConfig":
    """Return the quantisation config to write to files when a model was quantised with `config`.

    Int4 weights on a CPU are quantised with a prototype config of torchao, whose class torchao does not find when it
    reads a config from a file. The stable `Int4WeightOnlyConfig` replaces it. Other configs are returned unchanged.
    """
    from torchao.quantization import FqnToConfig, Int4WeightOnlyConfig

    if isinstance(config, FqnToConfig):
        return FqnToConfig({name: _portable_config(one) for name, one in config.fqn_to_config.items()})
    if type(config).__name__ == "PrototypeInt4WeightOnlyConfig":
        return Int4WeightOnlyConfig(config.group_size, set_inductor_config=False)
    return config


def pack_for_device(name: str, weight: torch.Tensor) -> torch.Tensor:
    """Return an int4 weight in the order that the kernel of its device reads. Return any other weight unchanged.

    Args:
        name: Name of the layer, for messages.
        weight: Weight `(N, K)` of a layer with `N` outputs and `K` inputs: a plain tensor or one of torchao's
            quantised tensors.

    Raises:
        CheckpointError: If the weight is int4 in an order for which its device has no kernel.
    """
    kind, device = type(weight).__name__, weight.device.type
    if kind == "Int4TilePackedTo4dTensor" and device == "cpu":
        raise CheckpointError(
            f"The int4 weights must be in torchao's plain order for the CPU, got weights packed for CUDA ({name} and "
            "others): load the checkpoint with device_map='cuda', or quantise the unquantised one for the CPU."
        )
    if kind != "Int4Tensor":
        return weight
    if device != "cpu":
        if importlib.util.find_spec("mslk"):
            return weight  # the package mslk has torchao's kernel for the plain order
        raise CheckpointError(
            f"The int4 weights must be packed for {device}, got torchao's plain order ({name} and others), for which "
            f"there is no kernel on {device} without mslk: pip install mslk, or quantise the unquantised checkpoint "
            f"with quantization_config='int4', device_map={device!r}."
        )
    return nn.Parameter(_pack(weight), requires_grad=False)


def _pack(weight: "Int4Tensor") -> "Int4OpaqueTensor":
    """Convert an int4 weight `(N, K)` from torchao's plain order to the order that the CPU's kernel reads."""
    values_NK = _nibbles(weight.qdata).view(weight.shape) ^ 8  # from two's complement to 0 ... 15
    return cpu_int4().Int4OpaqueTensor(
        _to_kernel_order(values_NK),
        torch.stack([weight.scale, weight.zero_point], dim=-1),  # (K / g, N, 2)
        weight.block_size,
        torch.Size(weight.shape),
        act_pre_scale=weight.act_pre_scale,
    )


def _unpack(weight: "Int4OpaqueTensor", order: torch.Tensor) -> "Int4Tensor":
    """Convert an int4 weight `(N, K)` from the order that the CPU's kernel reads to torchao's plain order.

    Args:
        weight: The packed weight.
        order: Result of `_kernel_order` for the weight's shape.

    Raises:
        RuntimeError: If packing the result does not give `weight` again.
    """
    from torchao.quantization import Int4Tensor

    values = torch.empty(weight.shape.numel(), dtype=torch.uint8)
    values[order] = _nibbles(weight.qdata)
    values_NK = values.view(weight.shape)
    if not torch.equal(_to_kernel_order(values_NK), weight.qdata):
        raise RuntimeError("This version of torch packs int4 weights in a way that cannot be undone here.")
    signed = values_NK ^ 8
    scale, zero_point = weight.scale_and_zero.unbind(dim=-1)
    return Int4Tensor(
        (signed[:, 1::2] << 4 | signed[:, ::2]).view(torch.int8),
        scale.contiguous(),
        zero_point.contiguous(),
        weight.block_size,
        list(weight.shape),
        act_pre_scale=weight.act_pre_scale,
    )


def _kernel_order(shape: torch.Size) -> torch.Tensor:
    """Return the order in which the CPU's int4 kernel reads the values of a weight with this shape `(N, K)`.

    Returns:
        `(N * K,)` int32: element `i` is the index, in the flattened weight, of the value that the kernel reads as its
        `i`-th.
    """
    # The order is documented nowhere. To find it, the indices of the values are packed, four bits at a time.
    count = shape.numel()
    indices_NK = torch.arange(count, dtype=torch.int32).view(shape)
    order = torch.zeros(count, dtype=torch.int32)
    for shift in range(0, (count - 1).bit_length(), 4):
        order |= _nibbles(_to_kernel_order((indices_NK >> shift) & 15)).int() << shift
    return order


def _to_kernel_order(values_NK: torch.Tensor) -> torch.Tensor:
    """Pack values `(N, K)` in [0, 16) into bytes, two to a byte, in the order that the CPU's int4 kernel reads."""
    # This operator of torch is private. torchao packs with it too, and offers no function that does only this.
    return torch.ops.aten._convert_weight_to_int4pack_for_cpu(values_NK.int(), 1)


def _nibbles(packed: torch.Tensor) -> torch.Tensor:
    """Unpack bytes of any shape to a flat uint8 tensor of values in [0, 16), two per byte.

    The low half of a byte comes first.
    """
    flat = packed.flatten().view(torch.uint8)
    return torch.stack([flat & 15, flat >> 4], dim=-1).flatten()


__all__ = ["cpu_int4", "layer_config", "pack_for_device", "portable_int4"]
