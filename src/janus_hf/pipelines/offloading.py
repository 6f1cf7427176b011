"""Where the model of a pipeline runs when its weights wait on the CPU or the disk between uses."""

import torch
from accelerate.hooks import CpuOffload
from diffusers.pipelines.pipeline_utils import DiffusionPipeline


def bring_in(pipe: DiffusionPipeline) -> torch.device:
    """Move the pipeline's offloaded model to the device it runs on, and return that device, which inputs belong on.

    `enable_model_cpu_offload` moves the model by a hook before `model.forward`. Generating, encoding and decoding
    images call other methods of the model, so they call this function first. Without offloading, nothing is moved.
    """
    # accelerate has no public way from a module to its hook: `UserCpuOffloadHook` only offloads and removes.
    hook = getattr(pipe.model, "_hf_hook", None)
    if isinstance(hook, CpuOffload):
        hook.pre_forward(pipe.model)
    # The public `pipe.device` is "meta" or "cpu" while weights are offloaded.
    return pipe._execution_device


__all__ = ["bring_in"]
