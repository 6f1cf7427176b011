"""A function that checks the arguments of `JanusProPipeline.__call__` before anything is computed."""

from collections.abc import Iterable
from typing import Literal, get_args

import torch

from ..configuration import JanusProVQConfig
from ..processing.batching import check_texts


OutputType = Literal["pil", "np", "pt", "latent"]
# Names of the tensors that `callback_on_step_end` can receive.
CALLBACK_TENSORS = ("image_ids",)


def check_call_arguments(
    vq_config: JanusProVQConfig,
    prompt: str | list[str],
    negative_prompt: str | list[str] | None,
    *,
    height: int | None,
    width: int | None,
    num_images_per_prompt: int,
    generator: torch.Generator | list[torch.Generator] | None,
    image_ids: torch.Tensor | None,
    batch_size: int,
    output_type: str,
    callback_tensors: Iterable[str],
) -> tuple[list[str], list[str] | None]:
    """Check arguments of `JanusProPipeline.__call__` and repeat the prompts, so that there is one per image.

    Only the arguments that the pipeline uses itself are checked here. The model's `generate_images` checks the others.

    Args:
        vq_config: Config of the image codec, which states the size of the images that the model generates.
        callback_tensors: The argument `callback_on_step_end_tensor_inputs` of `JanusProPipeline.__call__`.
        prompt, negative_prompt, height, width, num_images_per_prompt, generator, image_ids, batch_size, output_type:
            As in `JanusProPipeline.__call__`.

    Returns:
        The prompts and the negative prompts, two lists with one string per image. Images of the same prompt follow
        each other. The second list is None if no negative prompt is given.

    Raises:
        ValueError, TypeError: If an argument is out of range or of the wrong type.
    """
    prompts = check_texts(prompt, "prompt")
    side = vq_config.image_size
    if height not in (None, side) or width not in (None, side):
        raise ValueError(
            f"`height` and `width` must be {side}, got {height} and {width}: this model generates {side}x{side} "
            f"images only ({vq_config.num_image_tokens} image tokens, the number it was trained on). Leave both out "
            "and resize the result."
        )
    if num_images_per_prompt < 1 or batch_size < 1:
        raise ValueError(
            "`num_images_per_prompt` and `batch_size` must be at least 1, got "
            f"{num_images_per_prompt} and {batch_size}: ask for one image or more."
        )
    if output_type not in get_args(OutputType):
        raise ValueError(
            f"`output_type` must be one of {get_args(OutputType)}, got {output_type!r}: choose one of them."
        )
    if unknown := set(callback_tensors) - set(CALLBACK_TENSORS):
        raise ValueError(
            f"`callback_on_step_end_tensor_inputs` must be among {list(CALLBACK_TENSORS)}, got {sorted(unknown)} too: "
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
    num_images = len(prompts) * num_images_per_prompt
    if isinstance(generator, (list, tuple)) and len(generator) != num_images:
        raise ValueError(
            f"`generator` must hold one generator per image: {len(prompts)} prompts x {num_images_per_prompt} = "
            f"{num_images}, got {len(generator)}: give one for each image, or a single generator."
        )
    if image_ids is not None and (image_ids.ndim != 2 or len(image_ids) != num_images):
        raise ValueError(
            f"`image_ids` must have one row of image tokens per image ({num_images}), got shape "
            f"{tuple(image_ids.shape)}: give the first tokens of every image."
        )

    def per_image(texts: list[str]) -> list[str]:
        return [text for text in texts for _ in range(num_images_per_prompt)]

    return per_image(prompts), None if negatives is None else per_image(negatives)


__all__ = ["CALLBACK_TENSORS", "OutputType", "check_call_arguments"]
