"""Functions that estimate the memory of a model's weights, and warn before loading if a device has too little."""

import logging
import re

import torch
from torch import nn

from ...configuration import JanusProConfig
from ...generation.batch_sizes import bytes_per_image, codec_bytes
from ...generation.devices import DeviceMap, devices_of, free_memory, has_bfloat16
from .weight_only import NOT_QUANTISED


logger = logging.getLogger(__name__)

# Bits per weight of a quantised layer, with scales and zero points.
_BITS = {"int8": 8.1, "int4": 4.5, "fp8": 8.1}


def weight_bytes(
    model: nn.Module, dtype: torch.dtype, quantization: str | None = None, codec_dtype: torch.dtype | None = None
) -> int:
    """Return the number of bytes that the weights of a model take once they are loaded.

    Args:
        model: The model, for example on the meta device.
        dtype: Dtype in which it is loaded.
        quantization: "int8", "int4" or "fp8" for the language model's layers, or None.
        codec_dtype: Dtype of the image codec, if it is another one.
    """
    kept = re.compile("|".join(NOT_QUANTISED))
    total = 0.0
    for name, parameter in model.named_parameters():
        is_codec = "vqmodel." in name
        bits = 8.0 * (codec_dtype if codec_dtype and is_codec else dtype).itemsize
        if quantization is not None and ".layers." in name and parameter.ndim == 2 and not kept.match(name):
            bits = _BITS[quantization]
        total += parameter.numel() * bits / 8
    return int(total)


def warn_if_too_large(
    model: nn.Module,
    config: JanusProConfig,
    device_map: DeviceMap,
    dtype: torch.dtype,
    quantization: str | None = None,
    codec_dtype: torch.dtype | None = None,
) -> None:
    """Log a warning if the weights and the generation of one image need more memory than a device has free.

    The warning names the settings with which they fit. Nothing is logged for a CPU, for a model that is spread over
    several devices, and for a device whose free memory is unknown.

    Args:
        model: The model on the meta device.
        config: Its config.
        device_map: The argument `device_map` of `from_pretrained`.
        dtype: Dtype in which the model is loaded.
        quantization: "int8", "int4", "fp8" or None.
        codec_dtype: Dtype of the image codec, if it is another one.
    """
    devices = devices_of(device_map)
    free = free_memory(devices[0]) if len(devices) == 1 and devices[0].type != "cpu" else None
    if free is None:
        return
    device = devices[0]

    def need(dtype: torch.dtype, quantization: str | None) -> int:
        image = max(bytes_per_image(config, dtype), codec_bytes(config, codec_dtype or dtype))
        return weight_bytes(model, dtype, quantization, codec_dtype) + image

    if need(dtype, quantization) <= free:
        return
    half = torch.bfloat16 if has_bfloat16(device) else torch.float16
    name = str(half).removeprefix("torch.")
    int4 = device.type == "cuda" and has_bfloat16(device)  # weight_only_config refuses it elsewhere
    ways = {f"dtype={name!r}": need(half, None)}
    for bits in ("int8", "int4") if int4 else ("int8",):
        ways[f"dtype={name!r}, quantization_config={bits!r}"] = need(half, bits)
    fitting = [f"{way} ({_gib(size)})" for way, size in ways.items() if size <= free]
    advice = f"pass {' or '.join(fitting)}; or l" if fitting else "l"
    wanted = str(dtype).removeprefix("torch.") + (f" with {quantization} weights" if quantization else "")
    logger.warning(
        f"The model and one image need about {_gib(need(dtype, quantization))} in {wanted}, but {device} has "
        f"{_gib(free)} free, so loading or generating will run out of memory: {advice}oad it without "
        "`device_map` and call the pipeline's "
        "enable_model_cpu_offload or enable_sequential_cpu_offload."
    )


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.1f} GiB"


__all__ = ["warn_if_too_large", "weight_bytes"]
