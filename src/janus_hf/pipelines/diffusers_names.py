"""What diffusers' pipelines have and this one has not: arguments, methods and attributes, each refused by name.

Users come from diffusion pipelines, whose examples set these names. Janus-Pro generates an image token by token: it
has no denoising steps, no noise, no text encoder and no scheduler. Each table maps a name to the reason and to what to
do instead. Tests compare the tables with the installed diffusers, so that a new name cannot be accepted and ignored.
"""

from collections.abc import Mapping
from typing import Any, NoReturn, Self

from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from ..arguments import by_name, describe


_STEPS = (
    "an image is generated token by token, not by denoising; `temperature`, `top_k` and `top_p` change the sampling"
)
_NOISE = "there is no noise to start from; `image_ids` takes the first image tokens of every image"
_TEXT = "the language model reads the prompt itself, as text; pass `prompt` and `negative_prompt`"
_ONE_PROMPT = "there is one text model; write the whole description in `prompt` or `negative_prompt`"
_GUIDANCE = "there is one kind of guidance; set `guidance_scale`"
_IMAGES = "images are generated from text alone; `ask` answers questions about images, `encode` returns their tokens"
_SIZE = "the model generates images of one size; resize the result"
_ATTENTION = "`set_adapters(names, weights)` scales adapters, and `cache_implementation` chooses the attention cache"
_CALLBACK = "pass `callback_on_step_end`, which is called after every image token"
_AS_IT_IS = "the prompt is used as it is; change its text before"
_STILL = "single images are generated; `num_images_per_prompt` sets their number"

# Keyword arguments of the text-to-image pipelines of diffusers, and of deepseek-ai/Janus' own code.
CALL_ARGUMENTS = by_name(
    {
        _STEPS: (
            "num_inference_steps timesteps sigmas eta denoising_end mu std prior_timesteps "
            "prior_num_inference_steps decoder_timesteps original_inference_steps guidance_schedule "
            "pyramid_num_inference_steps_list strength"
        ),
        _NOISE: (
            "latents image_latents fake_image_latents add_noise_to_image_latents image_noise_sigma_min "
            "image_noise_sigma_max prior_token_ids prior_token_image_ids source_image_grid_thw noise"
        ),
        _TEXT: (
            "prompt_embeds negative_prompt_embeds pooled_prompt_embeds negative_pooled_prompt_embeds "
            "prompt_embeds_pooled negative_prompt_embeds_pooled prompt_embeds_2 negative_prompt_embeds_2 "
            "prompt_embeds_mask negative_prompt_embeds_mask prompt_attention_mask prompt_attention_mask_2 "
            "negative_prompt_attention_mask negative_prompt_attention_mask_2 attention_mask clip_skip "
            "negative_attention_mask text_encoder_out_layers max_sequence_length tokenizer_max_length"
        ),
        _ONE_PROMPT: "prompt_2 prompt_3 negative_prompt_2 negative_prompt_3",
        _GUIDANCE: (
            "guidance_rescale true_cfg_scale pag_scale pag_adaptive_scale cfg_normalization cfg_truncation "
            "cfg_trunc_ratio prior_guidance_scale decoder_guidance_scale guess_mode skip_guidance_layers "
            "skip_layer_guidance_scale skip_layer_guidance_stop use_zero_init skip_layer_guidance_start "
            "zero_steps cfg_weight"
        ),
        _IMAGES: (
            "image images mask_image control_image control_mode controlnet_conditioning_scale "
            "control_guidance_start control_guidance_end controlnet_pooled_projections ip_adapter_image "
            "ip_adapter_image_embeds negative_ip_adapter_image negative_ip_adapter_image_embeds"
        ),
        _SIZE: (
            "original_size target_size crops_coords_top_left negative_original_size negative_target_size "
            "negative_crops_coords_top_left use_resolution_binning max_area _auto_resize output_resolution"
        ),
        _ATTENTION: (
            "cross_attention_kwargs attention_kwargs joint_attention_kwargs scaling_watershed "
            "proportional_attn use_kv_cache"
        ),
        _CALLBACK: "callback callback_steps prior_callback_on_step_end prior_callback_on_step_end_tensor_inputs",
        _AS_IT_IS: (
            "clean_caption complex_human_instruction caption_upsample_temperature prompt_upsampling "
            "prompt_upsampling_temperature system_prompt skip_text_cleaning"
        ),
        _STILL: (
            "num_frames num_videos_per_prompt video video_latents add_noise_to_video_latents "
            "video_noise_sigma_min video_noise_sigma_max history_sizes num_latent_frames_per_chunk "
            "keep_first_frame is_skip_first_chunk is_amplify_first_chunk parallel_size num_images"
        ),
        "the result holds the image tokens always, as `image_ids`": "return_index",
        "write generator=torch.Generator().manual_seed(seed)": "seed",
    }
)

_PARTS = "the pipeline has the components `model` and `processor`; pass these, or change them in place"
_PLACE = "pass `device_map` or call `pipe.enable_model_cpu_offload()`"
# Arguments of `from_pretrained` in diffusers, or those that transformers accepts and ignores.
LOADING_ARGUMENTS = by_name(
    {
        _PARTS: (
            "vae unet transformer text_encoder text_encoder_2 text_encoder_3 tokenizer tokenizer_2 scheduler "
            "safety_checker feature_extractor image_encoder requires_safety_checker components"
        ),
        "a repository holds one Janus-Pro, and no code of it is run; name the repository and its `revision`": (
            "custom_pipeline custom_revision load_connected_pipeline dduf_file"
        ),
        "weights are read by PyTorch, from safetensors or .bin files": (
            "use_onnx provider provider_options sess_options use_flashpack from_tf from_flax"
        ),
        f"loading saves memory always; {_PLACE}": "low_cpu_mem_usage offload_state_dict _fast_init",
        "set the environment variable HF_ENDPOINT for another Hub": "mirror resume_download",
        "a pipeline is returned; load its model alone with JanusProForConditionalGeneration": "output_loading_info",
    }
)
# Values that say what is done anyway.
_ALWAYS: dict[str, bool | str] = {"from_tf": False, "from_flax": False, "use_onnx": False, "use_flashpack": False}
_ALWAYS |= {"load_connected_pipeline": False, "output_loading_info": False, "offload_state_dict": False}
_ALWAYS |= {"requires_safety_checker": False, "resume_download": True, "_fast_init": True}
_ALWAYS |= {"weight_name": "adapter_model.safetensors", "low_cpu_mem_usage": True, "use_safetensors": True}
_ALWAYS |= {"hotswap": False, "return_lora_metadata": False}

_WHERE = "a PEFT adapter is a folder or repository whose files have fixed names; name it, and its `subfolder`"
# Keyword arguments of `load_lora_weights` in diffusers.
LORA_ARGUMENTS = by_name(
    {
        _WHERE: "weight_name use_safetensors variant",
        "the adapter's adapter_config.json states what it changes and how it is scaled": (
            "prefix network_alphas network_alpha unet_config metadata load_into_transformer_2 "
            "load_into_transformer_ref return_lora_metadata return_alphas"
        ),
        "load the new adapter beside the old one and choose with `set_adapters`": "hotswap",
        "an adapter is loaded straight to the model's device": "low_cpu_mem_usage",
    }
)

_MEMORY = "attention needs little memory here; lower `batch_size`, or call `pipe.enable_model_cpu_offload()`"
_KERNEL = "load with attn_implementation='sdpa', the default, or 'flash_attention_2'"
_CODEC = "images are decoded batch by batch; lower `batch_size`"
_UNET = "the model is a language model and has no such layers"
_EXTRA = "the pipeline loads LoRA adapters alone (`load_lora_weights`)"
# Methods that diffusers' base classes have, and that would do nothing, or fail in words of their own.
METHODS = by_name(
    {
        _MEMORY: "enable_attention_slicing set_attention_slice",
        _KERNEL: "enable_xformers_memory_efficient_attention set_use_memory_efficient_attention_xformers",
        "a configuration has no weights; call `from_pretrained`, or JanusProPipeline(model, processor)": "from_config",
        LORA_ARGUMENTS["hotswap"]: "enable_lora_hotswap",
        "adapters stay on the model's device; call `delete_adapters` to free memory": "set_lora_device",
        "call `load_lora_weights`, and take the weights from `pipe.model`": "lora_state_dict",
        "call `save_lora_weights`": "write_lora_layers",
    }
)
# Methods and attributes of single pipelines of diffusers. Reading them is an AttributeError, so `hasattr` is False.
ABSENT = by_name(
    {
        _CODEC: "enable_vae_slicing disable_vae_slicing enable_vae_tiling disable_vae_tiling upcast_vae",
        _UNET: "enable_freeu disable_freeu fuse_qkv_projections unfuse_qkv_projections",
        _EXTRA: (
            "load_ip_adapter set_ip_adapter_scale unload_ip_adapter load_textual_inversion "
            "unload_textual_inversion maybe_convert_prompt set_pag_applied_layers load_lora_into_unet"
        ),
        "name the folder or repository in `from_pretrained`": "from_single_file",
        _TEXT: "encode_prompt",
        _NOISE: "prepare_latents",
        _PARTS: "vae unet transformer text_encoder text_encoder_2 tokenizer_2 scheduler image_encoder",
        "it is `pipe.processor.tokenizer`": "tokenizer",
        "it is `pipe.processor.image_processor`": "image_processor",
        "guidance is the same for all tokens of an image; pass `guidance_scale` to the call": (
            "guidance_scale _guidance_scale guidance_rescale _guidance_rescale do_classifier_free_guidance"
        ),
        _STEPS: "num_timesteps _num_timesteps _current_timestep clip_skip _clip_skip",
        _ATTENTION: "_cross_attention_kwargs _joint_attention_kwargs _attention_kwargs",
    }
)


# Any: values of arguments.
def refuse_arguments(given: Mapping[str, Any], table: Mapping[str, str], where: str, *, strict: bool = True) -> None:
    """Raise a TypeError for the first argument that says something and that a method does not have.

    Args:
        given: Keyword arguments by name. None says nothing, and neither does a value that names what is done anyway.
        table: One of the tables of this module.
        where: Name of the method, for the message.
        strict: Whether names that the table lacks are refused as well.
    """
    for name, value in given.items():
        usual = _ALWAYS.get(name)
        says_nothing = value is None or (type(value) is type(usual) and value == usual)
        if name in table and not says_nothing:
            raise TypeError(f"`{name}` must be left out of `{where}`, got {describe(value)}: {table[name]}.")
        if strict and name not in table:
            raise TypeError(
                f"`{name}` must be an argument of `{where}`, got {describe(value)} for a name that is none: leave it "
                "out, or check its spelling."
            )


class DiffusersNamesMixin(DiffusionPipeline):
    """Refuse what diffusers' pipelines have and this one has not, instead of doing nothing."""

    # Any: every attribute of a pipeline is set by this method.
    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute, or raise a ValueError if no code here would read it; None, which turns off, is allowed."""
        if name in ABSENT and value is not None:
            raise ValueError(f"`{name}` must not be set, got {describe(value)}: {ABSENT[name]}.")
        super().__setattr__(name, value)

    # Any: as in diffusers, which finds entries of its configuration here.
    def __getattr__(self, name: str) -> Any:
        """Raise an AttributeError that says what to use instead of an attribute of other pipelines."""
        if name in ABSENT:
            raise AttributeError(f"{type(self).__name__} has no `{name}`: {ABSENT[name]}.", name=name, obj=self)
        return super().__getattr__(name)

    # Any: the signature of diffusers.
    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move the pipeline to a device, a dtype, or both, as in diffusers, and return it.

        Raises:
            TypeError: If a keyword argument is none of `device`, `dtype` and `silence_dtype_warnings`.
        """
        known = ("device", "dtype", "silence_dtype_warnings")
        refuse_arguments({name: value for name, value in kwargs.items() if name not in known}, {}, "to")
        return super().to(*args, **kwargs)

    def enable_attention_slicing(self, slice_size: str | int | None = "auto") -> None:
        """Raise a ValueError, unless `slice_size` is None, which is no slicing."""
        self.set_attention_slice(slice_size, name="enable_attention_slicing")

    def set_attention_slice(self, slice_size: str | int | None, *, name: str = "set_attention_slice") -> None:
        """Raise a ValueError that names the method, unless `slice_size` is None, which is no slicing."""
        if slice_size is not None:
            _refuse_method(name)

    # Any: an operator of xformers.
    def enable_xformers_memory_efficient_attention(self, attention_op: Any = None) -> None:
        """Raise a ValueError that says how to choose the kernels of attention."""
        _refuse_method("enable_xformers_memory_efficient_attention")

    # Any: an operator of xformers.
    def set_use_memory_efficient_attention_xformers(self, valid: bool, attention_op: Any = None) -> None:
        """Raise a ValueError that says how to choose the kernels of attention, unless `valid` is False."""
        if valid:
            _refuse_method("set_use_memory_efficient_attention_xformers")

    @classmethod
    def from_config(cls, *args: Any, **kwargs: Any) -> NoReturn:  # Any: diffusers' signature
        """Raise a ValueError, because a configuration has no weights."""
        _refuse_method("from_config")

    def enable_lora_hotswap(self, **kwargs: Any) -> None:  # Any: diffusers' signature
        """Raise a ValueError that says how to change adapters."""
        _refuse_method("enable_lora_hotswap")

    def set_lora_device(self, *args: Any, **kwargs: Any) -> None:  # Any: diffusers' signature
        """Raise a ValueError, because adapters stay on the model's device."""
        _refuse_method("set_lora_device")

    @classmethod
    def lora_state_dict(cls, *args: Any, **kwargs: Any) -> NoReturn:  # Any: diffusers' signature
        """Raise a ValueError that says how to load an adapter."""
        _refuse_method("lora_state_dict")

    @staticmethod
    def write_lora_layers(*args: Any, **kwargs: Any) -> NoReturn:  # Any: diffusers' signature
        """Raise a ValueError that says how to save an adapter."""
        _refuse_method("write_lora_layers")


def _refuse_method(name: str) -> NoReturn:
    """Raise a ValueError that says why a method of the table `METHODS` has no effect, and what to do."""
    raise ValueError(f"`{name}` must not be called on this pipeline, which it would not change: {METHODS[name]}.")


__all__ = [
    "ABSENT",
    "CALL_ARGUMENTS",
    "LOADING_ARGUMENTS",
    "LORA_ARGUMENTS",
    "METHODS",
    "DiffusersNamesMixin",
    "refuse_arguments",
]
