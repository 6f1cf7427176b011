"""Quantisation of the language model's weights: which modules are quantised, and for which device's kernels."""

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import TorchAoConfig
from transformers.quantizers import AutoQuantizationConfig
from transformers.quantizers.quantizers_utils import should_convert_module
from transformers.utils import is_torchao_available

from ...generation.devices import DeviceMap, devices_of, has_bfloat16, has_float8
from .int4_weights import cpu_int4, layer_config, pack_for_device


if TYPE_CHECKING:
    from torchao.core.config import AOBaseConfig
    from transformers.utils.quantization_config import QuantizationConfigMixin

# Modules that stay in full precision when the language model is quantised: they are small, and errors in them harm
# generated images first. Quantisers match these regular expressions from the start of a module's name. The last one
# excludes LoRA adapters that are loaded with the model, because their ranks are too small for the quantised kernels.
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
# Names that `quantization_config` takes.
KINDS = ("int8", "int4", "fp8")
INT4_GROUP_SIZE = 64  # divides all layer widths of the released models and of this package's small test model
# Fields in which the configs of transformers' quantisers list modules to skip.
_SKIP_FIELDS = ("llm_int8_skip_modules", "modules_to_not_convert", "skip_modules")


def weight_only_config(bits: str, device_map: DeviceMap = None) -> TorchAoConfig:
    """Return a torchao configuration that quantises weights to 8 or 4 bits.

    Int4 weights are packed for the kernels of the device that the model is loaded to.

    Args:
        bits: "int8", with one scale per output; "int4", with a scale and a zero point for every `INT4_GROUP_SIZE`
            inputs of an output; or "fp8", 8-bit floating point (float8_e4m3fn) with one scale per output. On a CPU
            int4 is fast in bfloat16 and very slow in float32, and fp8 saves memory but no time.
        device_map: The argument `device_map` of `from_pretrained`, which names the device.

    Raises:
        ValueError: If `bits` has another value, or the device does not support it.
        ImportError: If torchao is missing or too old.
    """
    if bits not in KINDS:
        raise ValueError(
            f"quantization_config must be {', '.join(map(repr, KINDS))} or a configuration of transformers' "
            f"quantisers, got {bits!r}."
        )
    if not is_torchao_available():
        raise ImportError(f"{bits} weights need torchao: pip install 'janus_hf[quant]'.")
    from torchao.quantization import Float8WeightOnlyConfig, Int4WeightOnlyConfig, Int8WeightOnlyConfig

    # `set_inductor_config=True`, the default, would change how everything else in the process is compiled.
    if bits == "int8":
        return TorchAoConfig(Int8WeightOnlyConfig(set_inductor_config=False))
    kinds = _device_kinds(device_map)
    if bits == "fp8":
        _check_float8(device_map, kinds)
        return TorchAoConfig(Float8WeightOnlyConfig(torch.float8_e4m3fn, set_inductor_config=False))
    if kinds == {"cpu"}:
        return TorchAoConfig(cpu_int4().PrototypeInt4WeightOnlyConfig(INT4_GROUP_SIZE, set_inductor_config=False))
    if kinds == {"cuda"}:
        if not all(map(has_bfloat16, devices_of(device_map))):
            raise ValueError(
                f"quantization_config must be 'int8' on a GPU without bfloat16, got {bits!r}, whose kernel needs a "
                "compute capability of 8.0 or higher."
            )
        return TorchAoConfig(
            Int4WeightOnlyConfig(INT4_GROUP_SIZE, set_inductor_config=False, int4_packing_format="tile_packed_to_4d")
        )
    raise ValueError(
        f"device_map must name a CPU or CUDA for int4 weights, got {sorted(kinds)}: int4 weights are packed for the "
        "kernel of a CPU or of CUDA. Load the model to one of the two, or use 'int8'."
    )


def _check_float8(device_map: DeviceMap, kinds: set[str]) -> None:
    """Raise a ValueError if a model with fp8 weights should not be loaded to the devices of a `device_map`.

    Weights in float8 could be read on any GPU by converting them, but PyTorch's compiler refuses that on GPUs without
    instructions for float8, where int8 takes the same memory with smaller errors.

    Args:
        device_map: The argument `device_map` of `from_pretrained`.
        kinds: Its types of devices, as `_device_kinds` returns them.
    """
    if not kinds <= {"cpu", "cuda", "disk"}:
        raise ValueError(
            f"device_map must name a CPU or CUDA for fp8 weights, got {sorted(kinds)}: PyTorch may not convert float8 "
            "elsewhere. Load the model to one of the two, or use 'int8', which takes the same memory."
        )
    lacking = next((device for device in devices_of(device_map) if not has_float8(device)), None)
    if lacking is not None:
        major, minor = torch.cuda.get_device_capability(lacking)
        others = "'int8' or 'int4'" if has_bfloat16(lacking) else "'int8'"
        raise ValueError(
            f"quantization_config must be {others} on {lacking} (compute capability {major}.{minor}), got 'fp8', "
            "which needs 8.9 or higher (RTX 40, L4, H100): take 'int8', which needs the same memory."
        )


def _device_kinds(device_map: DeviceMap) -> set[str]:
    """Return the types of the devices, such as "cpu" or "cuda", that a `device_map` puts modules on.

    Modules that are offloaded to the disk add the type "disk".
    """
    to_disk = isinstance(device_map, Mapping) and "disk" in device_map.values()
    return {device.type for device in devices_of(device_map)} | ({"disk"} if to_disk else set())


def skip_all_but_language_model(
    quantization_config: "QuantizationConfigMixin | dict[str, Any]",
) -> "QuantizationConfigMixin":
    """Return a copy of a quantisation config that skips all modules but the language model's layers.

    A config that already lists modules to skip is returned as it is.

    Args:
        quantization_config: The config of one of transformers' quantisers, or its dictionary.

    Raises:
        ValueError: If the quantisation method cannot skip modules by their path.
    """
    if isinstance(quantization_config, dict):
        quantization_config = AutoQuantizationConfig.from_dict(quantization_config)
    state = vars(quantization_config)
    fields = [name for name in _SKIP_FIELDS if name in state] or ["modules_to_not_convert"]
    if "skip_modules" in state and state["skip_modules"] in (None, ["lm_head"]):
        raise ValueError(
            "quantization_config must be able to skip the vision tower, codec and heads, got one of HQQ. HQQ "
            "compares whole layer names and not their paths: use bitsandbytes, torchao or quanto, or name "
            "skip_modules yourself."
        )
    if any(state.get(name) not in (None, [], ["lm_head"]) for name in fields):  # some methods' default is the last
        return quantization_config
    changed = copy.copy(quantization_config)
    changed.__dict__.update({name: list(NOT_QUANTISED) for name in fields})
    return changed


def settle_quantised(model: nn.Module) -> None:
    """Pack the int4 weights of a loaded model for its device's kernel, and check that torchao skipped no layer.

    A model that was not quantised by torchao is left unchanged.

    Raises:
        CheckpointError: If the int4 weights are stored in an order for which this device has no kernel.
        ValueError: If torchao left a layer in full precision because the config's group size does not divide its
            number of inputs. A layer that a config by names (torchao's `FqnToConfig`) leaves out on purpose is no
            error.
    """
    quantiser: Any = getattr(model, "hf_quantizer", None)  # Any: quantisers share no base class with these fields
    config = getattr(quantiser, "quantization_config", None)
    if not isinstance(config, TorchAoConfig):
        return
    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    for name, module in linears.items():
        module.weight = pack_for_device(name, module.weight)
    if quantiser.pre_quantized or config.modules_to_not_convert != list(NOT_QUANTISED):
        return  # a quantised file is loaded as it was saved, and a caller's list may skip any layer
    layers = [name for name in linears if should_convert_module(name, config.modules_to_not_convert)]
    _check_none_skipped(config.quant_type, {name: linears[name].weight for name in layers})


def _check_none_skipped(config: "AOBaseConfig", weights: dict[str, torch.Tensor]) -> None:
    """Raise a ValueError if torchao silently skipped a layer whose number of inputs the group size does not divide.

    Args:
        config: The torchao config that was applied.
        weights: Weight of every layer that was to be quantised, by name of the layer.
    """
    wanted = {name: one for name in weights if getattr(one := layer_config(name, config), "group_size", None)}
    left = [name for name in wanted if type(weights[name].data) is torch.Tensor]
    if not left:
        return
    outputs, inputs = weights[left[0]].shape
    applied: Any = wanted[left[0]]  # Any: torchao's configs with groups share no base class that has group_size
    raise ValueError(
        f"group_size must divide the inputs of every layer that is quantised, got {type(applied).__name__}("
        f"group_size={applied.group_size}), with which torchao left {len(left)} of the {len(wanted)} weights as they "
        f"were: {left[0]}, for one, has {inputs} inputs and {outputs} outputs. Choose a group_size (32, 64 or 128) "
        "that divides the inputs, or take int8."
    )


__all__ = [
    "INT4_GROUP_SIZE",
    "KINDS",
    "NOT_QUANTISED",
    "settle_quantised",
    "skip_all_but_language_model",
    "weight_only_config",
]
