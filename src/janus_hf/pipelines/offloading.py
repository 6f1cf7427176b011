"""A function that moves a pipeline's offloaded model to the device that it runs on."""

import torch
from accelerate.hooks import CpuOffload
from diffusers.pipelines.pipeline_utils import DiffusionPipeline


def bring_in(pipe: DiffusionPipeline) -> torch.device:
    """Return the device that the pipeline's model runs on, after moving the model there if it is offloaded.

    The model's inputs must be moved to this device too. After `enable_model_cpu_offload`, the model is on the CPU
    between uses, and a hook moves it only when `model.forward` is called. The pipeline methods that generate, encode
    and decode images call other methods of the model, so they call this function first. Without offloading, nothing is
    moved.
    """
    # accelerate has no public way from a module to its hook: `UserCpuOffloadHook` can only offload and remove.
    hook = getattr(pipe.model, "_hf_hook", None)
    if isinstance(hook, CpuOffload):
        hook.pre_forward(pipe.model)
    # The public `pipe.device` is "meta" or "cpu" while weights are offloaded.
    return pipe._execution_device


__all__ = ["bring_in"]
