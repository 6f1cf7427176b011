"""Order of int4 weights."""

import copy
import importlib.util
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ..errors import CheckpointError


@contextmanager
def portable_int4(model: Any) -> Iterator[None]:
    """While it lasts, int4 weights packed for a CPU lie in torchao's plain order, and the model's config says so.

    Raises:
        ValueError: If the kernel they are packed for rounds its inputs, too: torchao has no other order for those.
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
                f"torchao cannot save the weights of {type(_config_of(name, before.quant_type)).__name__} ({name} and "
                "others): they are packed for this processor's kernel. Quantise the unquantised checkpoint each time "
                "it is loaded, or take quantization_config='int4', which can be saved."
            )
    places: dict[torch.Size, torch.Tensor] = {}
    try:
        for name, weight in packed.items():
            if weight.shape not in places:
                places[weight.shape] = _places(weight.shape)
            layers[name].weight = nn.Parameter(_unpack(weight, places[weight.shape]), requires_grad=False)
        model.config.quantization_config = copy.copy(before)
        model.config.quantization_config.quant_type = _portable_config(before.quant_type)
        yield
    finally:
        model.config.quantization_config = before
        for name, weight in packed.items():
            layers[name].weight = weight


def _cpu_int4() -> Any:
    try:
        from torchao.prototype.quantization import int4
    except ImportError as error:
        raise ImportError("int4 weights on a CPU need torchao 0.18 or newer: pip install -U torchao.") from error
    return int4


def _config_of(name: str, config: Any) -> Any:
    """Torchao's config of the layer `name`, where `config` may be one by names; None if that leaves the layer plain.

    By the rules of `FqnToConfig`: exact names first, then the first pattern that fits, then the default.
    """
    if type(config).__name__ != "FqnToConfig":
        return config
    configs, names = config.fqn_to_config, (f"{name}.weight", name)
    exact = (one for one in names if one in configs)
    patterns = (key for key in configs if key.startswith("re:"))
    fitting = (key for key in patterns if any(re.fullmatch(key.removeprefix("re:"), one) for one in names))
    return configs.get(next(exact, None) or next(fitting, "_default"))


def _portable_config(config: Any) -> Any:
    """What files say instead: torchao does not find its config of a CPU's int4 when it reads them."""
    from torchao.quantization import FqnToConfig, Int4WeightOnlyConfig

    if isinstance(config, FqnToConfig):
        return FqnToConfig({name: _portable_config(one) for name, one in config.fqn_to_config.items()})
    if type(config).__name__ == "PrototypeInt4WeightOnlyConfig":
        return Int4WeightOnlyConfig(config.group_size, set_inductor_config=False)
    return config


def _pack(name: str, weight: Any) -> nn.Parameter:
    """Plain int4 weights in the order of a CPU's kernel; any others as they are."""
    kind, device = type(weight).__name__, weight.device.type
    if kind == "Int4TilePackedTo4dTensor" and device == "cpu":
        raise CheckpointError(
            f"The int4 weights of this checkpoint ({name} and others) are packed for CUDA. Load it with "
            "device_map='cuda', or quantise the unquantised checkpoint for the CPU."
        )
    if kind != "Int4Tensor":
        return weight
    if device != "cpu":
        if importlib.util.find_spec("mslk"):
            return weight  # torchao's own kernel for the plain order
        raise CheckpointError(
            f"The int4 weights of this checkpoint ({name} and others) are in torchao's plain order, for which there "
            f"is no kernel on {device} without mslk: pip install mslk, or quantise the unquantised checkpoint with "
            f"quantization_config='int4', device_map={device!r}."
        )
    values_NK = _nibbles(weight.qdata).view(weight.shape) ^ 8  # from two's complement to 0 ... 15
    return nn.Parameter(
        _cpu_int4().Int4OpaqueTensor(
            _to_kernel_order(values_NK),
            torch.stack([weight.scale, weight.zero_point], dim=-1),  # (K / g, N, 2)
            weight.block_size,
            torch.Size(weight.shape),
            act_pre_scale=weight.act_pre_scale,
        ),
        requires_grad=False,
    )


def _unpack(weight: Any, places: torch.Tensor) -> Any:
    """The reverse of `_pack`."""
    from torchao.quantization import Int4Tensor

    values = torch.empty(weight.shape.numel(), dtype=torch.uint8)
    values[places] = _nibbles(weight.qdata)
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


def _places(shape: torch.Size) -> torch.Tensor:
    """Where in a weight `(N, K)`, rows laid end to end, each value of the kernel's order stands.

    Found by packing the places themselves, four bits at a time.
    """
    count = shape.numel()
    numbers_NK = torch.arange(count, dtype=torch.int32).view(shape)
    places = torch.zeros(count, dtype=torch.int32)
    for shift in range(0, (count - 1).bit_length(), 4):
        places |= _nibbles(_to_kernel_order((numbers_NK >> shift) & 15)).int() << shift
    return places


def _to_kernel_order(values_NK: torch.Tensor) -> torch.Tensor:
    return torch.ops.aten._convert_weight_to_int4pack_for_cpu(values_NK.int(), 1)


def _nibbles(packed: torch.Tensor) -> torch.Tensor:
    """Bytes -> twice as many values in [0, 16), the low half of each byte first."""
    flat = packed.flatten().view(torch.uint8)
    return torch.stack([flat & 15, flat >> 4], dim=-1).flatten()
