"""A function that moves a pipeline's offloaded model to the device that it runs on."""

import torch
from accelerate.hooks import CpuOffload
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from transformers.utils import logging

from ..generation.devices import has_bfloat16


logger = logging.get_logger(__name__)


def move_to_device(pipe: DiffusionPipeline) -> torch.device:
    """Move an offloaded model to the device that it runs on, and return this device.

    The caller must move the model's inputs to the device too. After `enable_model_cpu_offload`, the model is on the
    CPU between uses, and a hook moves it only when `model.forward` is called. The pipeline's methods call other
    methods of the model, so they call this function first. Without offloading, nothing is moved. If the model is in
    bfloat16 and the device has no bfloat16 units, a warning is logged once.
    """
    # accelerate has no public way from a module to its hook: `UserCpuOffloadHook` can only offload and remove.
    hook = getattr(pipe.model, "_hf_hook", None)
    if isinstance(hook, CpuOffload):
        hook.pre_forward(pipe.model)
    # The public `pipe.device` is "meta" or "cpu" while weights are offloaded.
    device = pipe._execution_device
    if pipe.model.dtype == torch.bfloat16 and not has_bfloat16(device):
        logger.warning_once(
            f"{device} has no bfloat16 and computes it by conversions, which is slow: load the model with "
            "device_map='cuda', which takes float16 there and float32 for the image codec."
        )
    return device


__all__ = ["move_to_device"]
