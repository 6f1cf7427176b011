"""Fewer bits for the language model's weights: of which modules, by which kernels, and what files hold of them.

A CPU's int4 kernel reads weights in an order of its own, which differs between processors, and which torchao therefore
does not save. In files int4 weights lie in torchao's plain order (two inputs to a byte, the first in its low half; a
scale and a zero point per group), and they are packed for the processor when they are loaded. Both ways are exact.

`N` outputs and `K` inputs of a layer, `g` inputs to a group.
"""

import copy
import importlib.util
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import TorchAoConfig
from transformers.quantizers import AutoQuantizationConfig
from transformers.quantizers.quantizers_utils import should_convert_module
from transformers.utils import is_torchao_available

from ..errors import CheckpointError


# Kept in full precision when the language model is quantised: they are small, and drawing suffers first from errors
# here. Quantisers match these as patterns from the start of a module's name. An adapter that is loaded with the model
# passes the quantiser, too; its ranks are below what the kernels take.
NOT_QUANTISED = tuple(
    rf"(model\.)?{part}"
    for part in (
        "vision_model",
        "aligner",
        "vqmodel",
        "generation_embeddings",
        "generation_aligner",
        "generation_head",
        "lm_head",
        r".*\.lora_\w+",
    )
)
INT4_GROUP_SIZE = 64  # divides every width of the released models, and of the small one in the package
_SKIP_FIELDS = ("llm_int8_skip_modules", "modules_to_not_convert", "skip_modules")
_STRATEGIES = ("auto", "balanced", "balanced_low_0", "sequential")  # of device_map


def weight_only_config(bits: str, device_map: Any = None) -> TorchAoConfig:
    """The quantiser's configuration for weights of so many bits, by the kernels of the device they are loaded to.

    Args:
        bits: "int8", with a scale per output; or "int4", with a scale and a zero point for every `INT4_GROUP_SIZE`
            inputs of an output. On a CPU int4 is fast in bfloat16 and very slow in float32.
        device_map: As given to `from_pretrained`.

    Raises:
        ValueError: If `bits` is another word, or int4 has no kernel there.
        ImportError: If torchao is missing or too old.
    """
    if bits not in ("int8", "int4"):
        raise ValueError(
            f"quantization_config must be 'int8', 'int4' or a configuration of transformers' quantisers, got {bits!r}."
        )
    if not is_torchao_available():
        raise ImportError(f"{bits} weights need torchao: pip install 'janus_hf[quant]'.")
    from torchao.quantization import Int4WeightOnlyConfig, Int8WeightOnlyConfig

    # `set_inductor_config` would change how everything else in the process is compiled.
    if bits == "int8":
        return TorchAoConfig(Int8WeightOnlyConfig(set_inductor_config=False))
    kinds = _device_kinds(device_map)
    if kinds == {"cpu"}:
        return TorchAoConfig(_cpu_int4().PrototypeInt4WeightOnlyConfig(INT4_GROUP_SIZE, set_inductor_config=False))
    if kinds == {"cuda"}:
        return TorchAoConfig(
            Int4WeightOnlyConfig(INT4_GROUP_SIZE, set_inductor_config=False, int4_packing_format="tile_packed_to_4d")
        )
    raise ValueError(
        f"int4 weights are packed for the kernel of a CPU or of CUDA, and the model goes to {sorted(kinds)}. Load it "
        "to one of the two, or use 'int8'."
    )


def _device_kinds(device_map: Any) -> set[str]:
    places = device_map.values() if isinstance(device_map, dict) else [device_map]
    kinds = set()
    for place in places:
        if place is None:
            kinds.add(torch.get_default_device().type)
        elif place in _STRATEGIES:
            accelerator = torch.accelerator.current_accelerator(check_available=True)
            kinds.add("cpu" if accelerator is None else accelerator.type)
        else:
            kinds.add(place if place == "disk" else torch.device(place).type)
    return kinds


def _cpu_int4() -> Any:
    try:
        from torchao.prototype.quantization import int4
    except ImportError as error:
        raise ImportError("int4 weights on a CPU need torchao 0.18 or newer: pip install -U torchao.") from error
    return int4


def skip_all_but_language_model(quantization_config: Any) -> Any:
    """A copy of the config that skips all but the language model's layers, unless it names what to skip itself.

    Args:
        quantization_config: Of one of transformers' quantisers, or its dictionary.

    Raises:
        ValueError: If the method cannot be told what to skip.
    """
    if isinstance(quantization_config, dict):  # what the field is called depends on the method
        quantization_config = AutoQuantizationConfig.from_dict(quantization_config)
    state = vars(quantization_config)
    fields = [name for name in _SKIP_FIELDS if name in state] or ["modules_to_not_convert"]
    if "skip_modules" in state and state["skip_modules"] in (None, ["lm_head"]):
        raise ValueError(
            "HQQ compares whole layer names and not their paths, so it cannot be told to leave the vision tower, "
            "codec and heads alone. Use bitsandbytes, torchao or quanto, or name skip_modules yourself."
        )
    if any(state.get(name) not in (None, [], ["lm_head"]) for name in fields):  # the last is some methods' default
        return quantization_config
    changed = copy.copy(quantization_config)
    changed.__dict__.update({name: list(NOT_QUANTISED) for name in fields})
    return changed


def settle_quantised(model: nn.Module) -> None:
    """Called once after loading: pack int4 weights for the device they lie on, and see that nothing was left out.

    Raises:
        CheckpointError: If the file's int4 weights have no kernel on this device.
        ValueError: If weights that the config wants in groups, of a size that does not fit them, were left as they
            were. What a config by names (torchao's `FqnToConfig`) leaves plain on purpose is no fault.
    """
    quantiser: Any = getattr(model, "hf_quantizer", None)
    config = getattr(quantiser, "quantization_config", None)
    if not isinstance(config, TorchAoConfig):
        return
    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    for name, module in linears.items():
        module.weight = _pack(name, module.weight)
    if quantiser.pre_quantized or config.modules_to_not_convert != list(NOT_QUANTISED):
        return  # a file's layers are as they were saved
    layers = [name for name in linears if should_convert_module(name, config.modules_to_not_convert)]
    _check_nothing_left(config.quant_type, {name: linears[name].weight for name in layers})


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


def _check_nothing_left(config: Any, weights: dict[str, Any]) -> None:
    """That torchao quantised what it was asked to: weights that its groups do not fit it leaves without a word."""
    asked = {name: _config_of(name, config) for name in weights}
    wanted = [name for name, one in asked.items() if getattr(one, "group_size", None)]
    left = [name for name in wanted if type(weights[name].data) is torch.Tensor]
    if not left:
        return
    outputs, inputs = weights[left[0]].shape
    raise ValueError(
        f"torchao left {len(left)} of the {len(wanted)} weights that it should quantise as they were: {left[0]}, for "
        f"one, has {inputs} inputs and {outputs} outputs, which do not suit {type(asked[left[0]]).__name__}("
        f"group_size={asked[left[0]].group_size}). Choose a group_size (32, 64 or 128) that divides the inputs, or "
        "take int8."
    )


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


__all__ = [
    "INT4_GROUP_SIZE",
    "NOT_QUANTISED",
    "portable_int4",
    "settle_quantised",
    "skip_all_but_language_model",
    "weight_only_config",
]
