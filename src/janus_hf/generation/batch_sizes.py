"""Functions that estimate the memory of image generation, choose a batch size by it, and generate in batches."""

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, TypeVar

import torch
from accelerate.utils.memory import should_reduce_batch_size
from transformers import PreTrainedConfig
from transformers.utils import logging

from .devices import free_memory
from .generation_arguments import Generators


logger = logging.get_logger(__name__)

BatchSize = int | Literal["auto"]
Result = TypeVar("Result")

LARGEST = 128  # largest number of images at once that "auto" chooses
_UNKNOWN = 8  # number of images at once if the free memory is unknown: the default of `batch_size`
_CODEC_AT_ONCE = 8  # number of images that the codec decodes at once
_PROMPT = 128  # number of tokens that a prompt is assumed to have
_SHARE = 0.8  # share of the free memory that is used: kernels and the allocator need the rest


def bytes_per_image(config: PreTrainedConfig, dtype: torch.dtype, *, guided: bool = True) -> int:
    """Return about how many bytes one more image of a batch takes while image tokens are generated.

    The estimate adds up the key-value cache of the image's rows (two with guidance) for prompt and image, a second
    cache and the activations of the prompt alone, and the logits and noise of one step.

    Args:
        config: Config of the model.
        dtype: Dtype of the language model.
        guided: Whether the image is generated with guidance.
    """
    text, vq = config.text_config, config.vq_config
    rows = 2 if guided else 1
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    cached = 2 * text.num_hidden_layers * heads * width * dtype.itemsize  # bytes per row and position
    positions = -(-(_PROMPT + vq.num_image_tokens) // 64) * 64  # compiled steps round the length up to 64
    activations = 4 * (text.hidden_size + text.intermediate_size) * dtype.itemsize
    # The float32 logits of each row, and eight more tensors of float32 or int32 and the same size after guidance.
    logits = (rows + 8) * vq.num_embeddings * 4
    return rows * (cached * positions + (cached + activations) * _PROMPT) + logits


def codec_bytes(config: PreTrainedConfig, dtype: torch.dtype, num_images: int = 1) -> int:
    """Return about how many bytes the image codec takes while it decodes images.

    Args:
        config: Config of the model.
        dtype: Dtype of the codec.
        num_images: Number of images; the codec decodes at most eight of them at once.
    """
    vq = config.vq_config
    # Decoding an image of 384 x 384 pixels in float32 takes 0.5 GB (measured): seven times its largest activation.
    return 7 * vq.image_size**2 * vq.base_channels * dtype.itemsize * min(num_images, _CODEC_AT_ONCE)


def largest_batch(
    config: PreTrainedConfig, dtype: torch.dtype, codec_dtype: torch.dtype, device: torch.device, *, guided: bool
) -> int:
    """Return the number of images for which the free memory of a device suffices: a power of two, from 1 to `LARGEST`.

    Args:
        config: Config of the model.
        dtype: Dtype of the language model.
        codec_dtype: Dtype of the image codec.
        device: Device that the model runs on. If its free memory is unknown, the result is 8.
        guided: Whether the images are generated with guidance.
    """
    free = free_memory(device)
    if free is None:
        return _UNKNOWN
    each, size = bytes_per_image(config, dtype, guided=guided), 1
    while size < LARGEST and 2 * size * each + codec_bytes(config, codec_dtype, 2 * size) <= _SHARE * free:
        size *= 2
    return size


def run_in_batches(
    count: int,
    batch_size: BatchSize,
    work: Callable[[slice], Result],
    *,
    choose: Callable[[], int],
    generator: Generators,
    device: torch.device,
) -> Iterator[Result]:
    """Split `count` images into batches, call `work` for each batch, and yield the results in order.

    With "auto", if a batch runs out of memory, it is repeated with half the size, and all later batches have this size
    too; a warning states it. The states of the random generators are restored first, so that the images are the same
    as those of the larger batch.

    Args:
        count: Number of images.
        batch_size: Number of images at once, or "auto".
        work: Function that generates the images of one batch, given as a slice of `range(count)`.
        choose: Function that returns the first batch size for "auto".
        generator: Random generators that `work` uses, as in `generate_images`.
        device: Device of the model, whose global generator is used if `generator` is None.

    Raises:
        RuntimeError: If the memory does not suffice for a batch of `batch_size` images, or with "auto" not even for
            one image; on CUDA it is a `torch.OutOfMemoryError`.
    """
    size = min(choose(), count) if isinstance(batch_size, str) else batch_size
    start = 0
    while start < count:
        part = slice(start, start + size)
        restore = _remember_state(generator, device) if batch_size == "auto" else None
        try:
            result = work(part)
        # torch.OutOfMemoryError is a RuntimeError; some devices raise a plain RuntimeError, known by its message.
        except RuntimeError as error:
            if restore is None or size == 1 or not should_reduce_batch_size(error):
                raise
        else:
            yield result
            start += size
            continue
        # Not inside `except`, where the error's traceback still holds the tensors of the failed batch.
        restore()
        _empty_cache(device)
        size = -(-size // 2)
        logger.warning(f"{device} ran out of memory: generating {size} image(s) at once from now on.")


def _remember_state(generator: Generators, device: torch.device) -> Callable[[], None]:
    """Return a function that restores the present state of the random generators."""
    if generator is None:
        module = torch if device.type == "cpu" else torch.get_device_module(device)
        state = module.get_rng_state() if device.type == "cpu" else module.get_rng_state(device)
        return lambda: module.set_rng_state(state) if device.type == "cpu" else module.set_rng_state(state, device)
    generators: Sequence[torch.Generator] = [generator] if isinstance(generator, torch.Generator) else generator
    states = [one.get_state() for one in generators]

    def restore() -> None:
        for one, state in zip(generators, states, strict=True):
            one.set_state(state)

    return restore


def _empty_cache(device: torch.device) -> None:
    """Free the memory that PyTorch has reserved on a device and does not use."""
    if device.type != "cpu":
        torch.get_device_module(device).empty_cache()


__all__ = ["LARGEST", "BatchSize", "bytes_per_image", "codec_bytes", "largest_batch", "run_in_batches"]
