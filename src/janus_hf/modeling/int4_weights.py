"""Order of int4 weights in memory and in files.

A CPU's int4 kernel reads weights in an order of its own, which differs between processors, and torchao does not save
that order. In files int4 weights lie in torchao's plain order (two inputs to a byte, the first in its low half; a
scale and a zero point per group); they are packed for the processor when they are loaded and unpacked when they are
saved. Both ways are exact.

`N` outputs and `K` inputs of a layer, `g` inputs to a group.
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

from ..errors import CheckpointError


if TYPE_CHECKING:
    from torchao.core.config import AOBaseConfig
    from torchao.prototype.quantization.int4 import Int4OpaqueTensor
    from torchao.quantization import Int4Tensor


def cpu_int4() -> ModuleType:
    """Import torchao's module for int4 weights on a CPU. Raise an ImportError if torchao is older than 0.18.

    The module is a prototype, so its names may move. torchao's stable `Int4WeightOnlyConfig` has no packing format
    for a CPU.
    """
    try:
        from torchao.prototype.quantization import int4
    except ImportError as error:
        raise ImportError("int4 weights on a CPU need torchao 0.18 or newer: pip install -U torchao.") from error
    return int4


def layer_config(name: str, config: "AOBaseConfig | None") -> "AOBaseConfig | None":
    """Return the torchao config of the layer `name`, or None if the layer is not quantised.

    If `config` is a `FqnToConfig`, which has one config per name or pattern, its rules apply: exact names first, then
    the first pattern that fits, then the default. Any other config is that of all layers.
    """
    # Compared by name, so that torchao is not imported for models that it did not quantise.
    if config is None or type(config).__name__ != "FqnToConfig":
        return config
    configs, names = config.fqn_to_config, (f"{name}.weight", name)
    exact = (one for one in names if one in configs)
    patterns = (key for key in configs if key.startswith("re:"))
    fitting = (key for key in patterns if any(re.fullmatch(key.removeprefix("re:"), one) for one in names))
    return configs.get(next(exact, None) or next(fitting, "_default"))


@contextmanager
def portable_int4(model: PreTrainedModel) -> Iterator[None]:
    """While the context lasts, keep int4 weights packed for a CPU in torchao's plain order, in which they are saved.

    The model's quantisation config names the plain order meanwhile. Both are restored at the end. Models without such
    weights are left alone.

    Raises:
        ValueError: If the weights are packed for a kernel that rounds its inputs too: torchao has no other order for
            those.
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
    """Return the config that is written to files: when torchao reads one, it does not find its config of a CPU."""
    from torchao.quantization import FqnToConfig, Int4WeightOnlyConfig

    if isinstance(config, FqnToConfig):
        return FqnToConfig({name: _portable_config(one) for name, one in config.fqn_to_config.items()})
    if type(config).__name__ == "PrototypeInt4WeightOnlyConfig":
        return Int4WeightOnlyConfig(config.group_size, set_inductor_config=False)
    return config


def pack_for_device(name: str, weight: torch.Tensor) -> torch.Tensor:
    """Return an int4 weight in the order of its device's kernel. Any other weight is returned as it is.

    Args:
        name: Name of the layer, for messages.
        weight: Weight `(N, K)`, plain or of one of torchao's classes.

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
            return weight  # torchao's own kernel for the plain order is in this package
        raise CheckpointError(
            f"The int4 weights must be packed for {device}, got torchao's plain order ({name} and others), for which "
            f"there is no kernel on {device} without mslk: pip install mslk, or quantise the unquantised checkpoint "
            f"with quantization_config='int4', device_map={device!r}."
        )
    return nn.Parameter(_pack(weight), requires_grad=False)


def _pack(weight: "Int4Tensor") -> "Int4OpaqueTensor":
    """Convert a weight `(N, K)` from torchao's plain order to that of the CPU's kernel."""
    values_NK = _nibbles(weight.qdata).view(weight.shape) ^ 8  # from two's complement to 0 ... 15
    return cpu_int4().Int4OpaqueTensor(
        _to_kernel_order(values_NK),
        torch.stack([weight.scale, weight.zero_point], dim=-1),  # (K / g, N, 2)
        weight.block_size,
        torch.Size(weight.shape),
        act_pre_scale=weight.act_pre_scale,
    )


def _unpack(weight: "Int4OpaqueTensor", order: torch.Tensor) -> "Int4Tensor":
    """Convert a weight `(N, K)` from the order of the CPU's kernel, given by `_kernel_order`, to the plain order."""
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
    """Return the order in which the CPU's kernel reads the values of a weight of this shape `(N, K)`.

    Returns:
        `(N * K,)` int32: for each value in the kernel's order, its index in the weight with rows laid end to end.
    """
    # The order is nowhere documented, so the indices themselves are packed, four bits at a time.
    count = shape.numel()
    indices_NK = torch.arange(count, dtype=torch.int32).view(shape)
    order = torch.zeros(count, dtype=torch.int32)
    for shift in range(0, (count - 1).bit_length(), 4):
        order |= _nibbles(_to_kernel_order((indices_NK >> shift) & 15)).int() << shift
    return order


def _to_kernel_order(values_NK: torch.Tensor) -> torch.Tensor:
    """Pack values in [0, 16) for the CPU's kernel, two to a byte."""
    # A private operator of torch: torchao packs with it too, and has no function of its own that does only this.
    return torch.ops.aten._convert_weight_to_int4pack_for_cpu(values_NK.int(), 1)


def _nibbles(packed: torch.Tensor) -> torch.Tensor:
    """Unpack bytes to twice as many values in [0, 16), the low half of each byte first."""
    flat = packed.flatten().view(torch.uint8)
    return torch.stack([flat & 15, flat >> 4], dim=-1).flatten()


__all__ = ["cpu_int4", "layer_config", "pack_for_device", "portable_int4"]
