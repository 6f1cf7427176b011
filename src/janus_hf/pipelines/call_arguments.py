"""Checks of the arguments of `JanusProPipeline` before anything is computed, and the types of some of them."""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from transformers import GenerationConfig

from ..arguments import (
    Value,
    check_callable,
    check_choice,
    check_integer,
    check_number,
    check_path,
    check_values,
    describe,
    of_kind,
)
from ..configuration import JanusProVQConfig
from ..generation.batch_sizes import BatchSize
from ..generation.generation_arguments import Generators, SamplingArguments, check_generators, check_integer_tensor
from ..hub.fetching import HUB_ARGUMENTS
from ..processing.batching import check_texts
from .diffusers_names import LOADING_ARGUMENTS, LORA_ARGUMENTS, refuse_arguments


OutputType = Literal["pil", "np", "pt", "latent"]
# Names of the tensors that `callback_on_step_end` can receive.
CALLBACK_TENSORS = ("image_ids",)
# A callback is called as `callback(pipe, step, step, tensors)`. If it returns a dict, tensors in it replace those of
# the same name; None changes nothing.
StepEndCallback = Callable[[Any, int, int, dict[str, torch.Tensor]], dict[str, torch.Tensor] | None]


# Arguments of `from_pretrained` whose wrong kinds transformers does not name.
_LOADING_KINDS = {
    "variant": str,
    "use_safetensors": bool,
    "adapter_kwargs": dict,
    "key_mapping": dict,
    "max_memory": dict,
    "generation_config": GenerationConfig,
}


_LOADED = "load a pipeline with JanusProPipeline.from_pretrained"
# The components of a pipeline. Models that PEFT or a compiler has wrapped have the methods too.
COMPONENTS: Mapping[str, Value] = {
    "model": of_kind("the model of a Janus-Pro", lambda value: hasattr(value, "generate_images"), None, _LOADED),
    "processor": of_kind(
        "the processor of a Janus-Pro", lambda value: hasattr(value, "prepare_image_generation"), None, _LOADED
    ),
}


class CallArguments(SamplingArguments, total=False):
    """Keyword arguments of `JanusProPipeline.__call__`, which describes them, that do not decide the result's type."""

    height: int | None
    width: int | None
    num_images_per_prompt: int
    batch_size: BatchSize
    callback_on_step_end: StepEndCallback | None
    callback_on_step_end_tensor_inputs: Sequence[str]
    parse_special_tokens: bool | None


def check_call_arguments(
    vq_config: JanusProVQConfig,
    prompt: str | list[str],
    negative_prompt: str | list[str] | None,
    *,
    height: int | None,
    width: int | None,
    num_images_per_prompt: int,
    generator: Generators,
    image_ids: torch.Tensor | None,
    batch_size: BatchSize,
    output_type: str,
    callback_on_step_end: StepEndCallback | None,
    callback_on_step_end_tensor_inputs: Sequence[str],
) -> tuple[list[str], list[str] | None]:
    """Check arguments of `JanusProPipeline.__call__` and return the prompts, repeated so that there is one per image.

    Only the arguments that the pipeline uses itself are checked here. The model's `generate_images` checks the others.

    Args:
        vq_config: Config of the image codec, which states the size of the images that the model generates.
        prompt, negative_prompt, height, width, num_images_per_prompt, generator, image_ids, batch_size, output_type,
            callback_on_step_end, callback_on_step_end_tensor_inputs: As in `JanusProPipeline.__call__`.

    Returns:
        The prompts and the negative prompts, two lists with one string per image. Images of the same prompt follow
        each other. The second list is None if no negative prompt is given.

    Raises:
        ValueError, TypeError: If an argument is out of range or of the wrong type.
    """
    prompts = check_texts(prompt, "prompt")
    side = vq_config.image_size
    sizes = [
        None if size is None else check_integer(size, name, f"this model generates {side}x{side} images only")
        for name, size in (("height", height), ("width", width))
    ]
    if not set(sizes) <= {None, side}:
        raise ValueError(
            f"`height` and `width` must be {side}, got {height} and {width}: this model generates {side}x{side} "
            f"images only ({vq_config.num_image_tokens} image tokens, the number it was trained on). Leave both out "
            "and resize the result."
        )
    repeats = check_integer(num_images_per_prompt, "num_images_per_prompt", "ask for one image or more", least=None)
    advice = "generate one image or more at a time, or pass 'auto'"
    at_a_time = 1 if batch_size == "auto" else check_integer(batch_size, "batch_size", advice, least=None)
    if repeats < 1 or at_a_time < 1:
        raise ValueError(
            f"`num_images_per_prompt` and `batch_size` must be at least 1, got {repeats} and {at_a_time}: ask for one "
            "image or more."
        )
    check_choice(output_type, "output_type", get_args(OutputType))
    check_callable(callback_on_step_end, "callback_on_step_end")
    if not isinstance(callback_on_step_end_tensor_inputs, (list, tuple)):
        raise TypeError(
            "`callback_on_step_end_tensor_inputs` must be a list of names, got "
            f"{describe(callback_on_step_end_tensor_inputs)}: write {list(CALLBACK_TENSORS)}."
        )
    if unknown := [one for one in callback_on_step_end_tensor_inputs if one not in CALLBACK_TENSORS]:
        raise ValueError(
            f"`callback_on_step_end_tensor_inputs` must be among {list(CALLBACK_TENSORS)}, got {unknown} too: "
            "leave these out."
        )
    negatives = None if negative_prompt is None else check_texts(negative_prompt, "negative_prompt")
    if negatives is not None and isinstance(negative_prompt, str):
        negatives = negatives * len(prompts)
    if negatives is not None and len(negatives) != len(prompts):
        raise ValueError(
            f"`negative_prompt` must be one string, or one per prompt ({len(prompts)}), got {len(negatives)}: give "
            "one for each prompt, or a single string."
        )
    num_images = len(prompts) * repeats
    if isinstance(generator, (list, tuple)) and len(generator) != num_images:
        raise ValueError(
            f"`generator` must hold one generator per image: {len(prompts)} prompts x {repeats} = {num_images}, got "
            f"{len(generator)}: give one for each image, or a single generator."
        )
    check_generators(generator, num_images)
    if image_ids is not None:
        check_integer_tensor(image_ids, "image_ids", f"({num_images}, p)")
    if image_ids is not None and (image_ids.ndim != 2 or len(image_ids) != num_images):
        raise ValueError(
            f"`image_ids` must have one row of image tokens per image ({num_images}), got shape "
            f"{tuple(image_ids.shape)}: give the first tokens of every image."
        )

    def per_image(texts: list[str]) -> list[str]:
        return [text for text in texts for _ in range(repeats)]

    return per_image(prompts), None if negatives is None else per_image(negatives)


def callback_tensors(callback: Any, names: Sequence[str]) -> Sequence[str]:
    """Return the names of the tensors that a callback is to receive.

    Args:
        callback: The argument `callback_on_step_end`. An object of diffusers' callback classes states the names.
        names: The argument `callback_on_step_end_tensor_inputs`.
    """
    states_names = isinstance(callback, (PipelineCallback, MultiPipelineCallbacks))
    return callback.tensor_inputs if states_names else names


def check_loading(
    model: object,
    processor: object,
    torch_dtype: torch.dtype | str | dict[str, torch.dtype | str] | None,
    kwargs: Mapping[str, Any],
) -> dict[str, Any]:
    """Check the arguments of `from_pretrained`, and return those that model or processor are loaded with.

    Args:
        model, processor: The arguments of these names; None to load them.
        torch_dtype: The argument of this name, which counts if `kwargs` has no `dtype`.
        kwargs: All other arguments.

    Raises:
        TypeError: If `model` or `processor` is none of Janus-Pro, or an argument would be accepted and ignored.
        ValueError: If `model` is given together with arguments that are used for loading a model, or an argument has
            no effect without `device_map`, or a dict of dtypes names a component that the pipeline does not have.
    """
    refuse_arguments(kwargs, LOADING_ARGUMENTS, "from_pretrained", strict=False)
    kwargs = {name: value for name, value in kwargs.items() if name not in LOADING_ARGUMENTS}
    if torch_dtype is not None:
        kwargs.setdefault("dtype", torch_dtype)
    for name, value in (("model", model), ("processor", processor)):
        if value is not None:
            COMPONENTS[name].check(value, name)
    if model is not None and (ignored := sorted(kwargs.keys() - set(HUB_ARGUMENTS))):
        raise ValueError(
            f"`model` must be left out where other arguments load one, got both it and {', '.join(ignored)}: pass "
            "either."
        )
    for name, kind in _LOADING_KINDS.items():
        if (value := kwargs.get(name)) is not None and not isinstance(value, kind):
            raise TypeError(f"`{name}` must be a {kind.__name__} or None, got {describe(value)}: leave it out.")
    for name in ("max_memory", "offload_folder", "offload_buffers"):
        if kwargs.get(name) and kwargs.get("device_map") is None:
            raise ValueError(
                f"`{name}` must come together with `device_map`, without which it has no effect, got "
                f"{describe(kwargs[name])} alone: set device_map='auto', or leave it out."
            )
    if isinstance(kwargs.get("dtype"), dict):
        kwargs["dtype"] = _model_dtype(kwargs["dtype"])
    return kwargs


def check_components(model: object, processor: object) -> None:
    """Raise a TypeError unless these are the model and the processor of a Janus-Pro."""
    check_values({"model": model, "processor": processor}, COMPONENTS)


def check_adapter_source(source: Any, adapter_name: Any, hub_kwargs: Mapping[str, Any]) -> None:
    """Check the arguments of `load_lora_weights`.

    Args:
        source: The argument `pretrained_model_name_or_path`.
        adapter_name: The argument of this name.
        hub_kwargs: All other arguments.

    Raises:
        TypeError: If an argument is of the wrong type or unknown.
        ValueError: If the source is a file or empty, or the adapter's name is empty or contains a dot.
    """
    meaning = "a folder or Hub repository with adapter_config.json"
    if isinstance(source, dict):
        raise TypeError(
            f"`pretrained_model_name_or_path` must be {meaning}, got a dict: save the weights with PEFT's "
            "save_pretrained, and name the folder."
        )
    path = check_path(source, "pretrained_model_name_or_path", meaning)
    if os.path.isfile(path):
        raise ValueError(
            f"`pretrained_model_name_or_path` must be {meaning}, got the file {path!r}: pass the folder that holds it."
        )
    others = {name: value for name, value in hub_kwargs.items() if name not in HUB_ARGUMENTS}
    refuse_arguments(others, LORA_ARGUMENTS, "load_lora_weights")
    if adapter_name is not None and not isinstance(adapter_name, str):
        raise TypeError(f"`adapter_name` must be a string or None, got {describe(adapter_name)}: name the adapter.")
    if adapter_name is not None and (not adapter_name or "." in adapter_name):
        raise ValueError(
            f"`adapter_name` must have at least one character and no dot, got {adapter_name!r}: choose another one."
        )


def check_scale(value: Any, name: str) -> float:
    """Return the scale of an adapter, the caller's argument `name`, as a float; None is 1.

    Raises:
        TypeError: If `value` is not a number.
        ValueError: If it is not finite.
    """
    advice = "give one number for all adapters, or a list with one for each"
    scale = 1.0 if value is None else check_number(value, name, advice)
    if math.isnan(scale):
        raise ValueError(f"`{name}` must be finite, got {value}: {advice}.")
    return scale


def check_scales(adapter_weights: Any, num_adapters: int) -> list[float]:
    """Return one scale per adapter from the argument `adapter_weights` of `set_adapters`; None, also in a list, is 1.

    Raises:
        TypeError: If a weight is not a number.
        ValueError: If a weight is not finite, or the number of weights is not the number of adapters.
    """
    given = adapter_weights if isinstance(adapter_weights, (list, tuple)) else [adapter_weights] * num_adapters
    if len(given) != num_adapters:
        raise ValueError(
            f"`adapter_weights` must have one weight per adapter, {num_adapters} in all, got {len(given)}: give one "
            "for each name, or a single number."
        )
    return [check_scale(weight, "adapter_weights") for weight in given]


def newest_tokens(changed: Any) -> torch.Tensor | None:
    """Return the newest image tokens from the result of the caller's `callback_on_step_end`.

    Args:
        changed: The callback's result: None, or a dict that may hold `image_ids` `(B, step + 1)`.

    Returns:
        The last column `(B,)` of `image_ids`, or None if the callback changed nothing.

    Raises:
        TypeError: If the result is neither None nor a dict, or its tokens are not integers.
        ValueError: If the dict has tensors of other names, or its tokens are not a tensor `(B, step + 1)`.
    """
    if changed is None:
        return None
    if not isinstance(changed, dict):
        raise TypeError(
            f"`callback_on_step_end` must return None or a dict, got {describe(changed)}: return the dict of tensors "
            "that it received, with the changed ones."
        )
    if unknown := [name for name in changed if name not in CALLBACK_TENSORS]:
        raise ValueError(
            f"`callback_on_step_end` must return tensors among {list(CALLBACK_TENSORS)}, got {unknown} too: leave "
            "these out."
        )
    if "image_ids" not in changed:
        return None
    image_ids = changed["image_ids"]
    is_tensor = isinstance(image_ids, torch.Tensor)
    if not is_tensor or image_ids.ndim != 2 or not image_ids.shape[1]:
        got = f"shape {tuple(image_ids.shape)}" if is_tensor else describe(image_ids)
        raise ValueError(
            "`callback_on_step_end` must return `image_ids` as a tensor of integers (B, step + 1), got "
            f"{got}: change the tensor that it received."
        )
    check_integer_tensor(image_ids, "image_ids", "(B, step + 1), as returned by `callback_on_step_end`")
    return image_ids[:, -1]


def _model_dtype(dtypes: dict[str, torch.dtype | str]) -> torch.dtype | str:
    """Return the dtype of the model from a diffusers dict that maps components (or "default") to dtypes.

    Raises:
        ValueError: If the dict names a component that the pipeline does not have.
    """
    if unknown := sorted(set(dtypes) - {"model", "processor", "default"}):
        raise ValueError(
            f"`torch_dtype` must name the components 'model' or 'default', got {unknown} too: leave it out."
        )
    return dtypes.get("model", dtypes.get("default", torch.float32))


__all__ = [
    "CALLBACK_TENSORS",
    "COMPONENTS",
    "CallArguments",
    "OutputType",
    "StepEndCallback",
    "callback_tensors",
    "check_adapter_source",
    "check_call_arguments",
    "check_components",
    "check_loading",
    "check_scale",
    "check_scales",
    "newest_tokens",
]
