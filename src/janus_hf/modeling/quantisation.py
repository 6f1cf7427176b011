"""Fewer bits for the language model's weights: of which modules, by which kernels, and what files hold of them.

A CPU's int4 kernel reads weights in an order of its own, which differs between processors, and which torchao therefore
does not save. In files int4 weights lie in torchao's plain order (two inputs to a byte, the first in its low half; a
scale and a zero point per group), and they are packed for the processor when they are loaded. Both ways are exact.

`N` outputs and `K` inputs of a layer, `g` inputs to a group.
"""

import copy
from typing import Any

import torch
from torch import nn
from transformers import TorchAoConfig
from transformers.quantizers import AutoQuantizationConfig
from transformers.quantizers.quantizers_utils import should_convert_module
from transformers.utils import is_torchao_available

from .int4_weights import _config_of, _cpu_int4, _pack


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


__all__ = [
    "INT4_GROUP_SIZE",
    "NOT_QUANTISED",
    "settle_quantised",
    "skip_all_but_language_model",
    "weight_only_config",
]
