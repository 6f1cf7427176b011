"""The steps that turn an image into pixels for the model, and the settings of a call that change them.

`S` is the side of the model's square input in pixels.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, Self, TypeAlias

import numpy as np
import torch
from PIL import Image
from transformers.processing_utils import ImagesKwargs

from ..arguments import check_flag, check_integer, check_keywords, check_number, describe
from .pictures import ImageSource, load_picture


Mode: TypeAlias = Literal["understanding", "generation"]


class JanusProImageKwargs(ImagesKwargs, total=False):  # type: ignore[call-arg]
    """Settings of the image processor that a caller of `from_pretrained`, or of the image processor, may override.

    image_size (`int`): Side of the model's square input, in pixels.
    min_size (`int`): Smallest side of a resized image, in pixels.
    """

    image_size: int
    min_size: int


# Settings of `JanusProImageKwargs` that a call may change.
USED = frozenset(
    {
        "data_format",
        "default_to_square",
        "disable_grouping",
        "do_center_crop",
        "do_convert_rgb",
        "do_normalize",
        "do_pad",
        "do_rescale",
        "do_resize",
        "image_mean",
        "image_size",
        "image_std",
        "input_data_format",
        "min_size",
        "pad_size",
        "resample",
        "rescale_factor",
        "size",
    }
)
# Those that no call may give, with what to do instead.
REFUSED = {
    "crop_size": "images to be understood are padded, not cropped; mode='generation' crops to the input's size",
    "device": "images are prepared on the CPU; move the result with .to(device)",
    "image_seq_length": "the number of tokens of an image is the processor's num_image_tokens",
}
# Those with the only values that say what is done in any case.
_ONLY = {
    "do_convert_rgb": (True, "images are converted to RGB"),
    "do_center_crop": (False, "images to be understood are padded; mode='generation' crops"),
    "default_to_square": (True, "the input of the model is a square"),
    "disable_grouping": (True, "images are prepared one by one"),
}


class ImageDefaults(Protocol):
    """The settings of an image processor, which a call may replace; `JanusProImageProcessor` has these attributes."""

    image_size: int
    min_size: int
    image_mean: list[float] | None
    image_std: list[float] | None
    rescale_factor: float
    do_normalize: bool
    background_color: list[int]


@dataclass(frozen=True)
class ImageSteps:
    """The steps of one call.

    Args:
        side: `S`, in pixels.
        min_size: Smallest side after resizing, in pixels.
        mean, std: Per channel; None does not normalise.
        factor: Factor by which 8-bit values are multiplied; None leaves the values as they are given.
        do_resize: Whether to fit the long side to `S`; otherwise an image must fit already.
        do_pad: Whether to fill up the square; otherwise an image must fill it already.
        resample: Pillow's filter for resizing.
        background: Colour that fills up the square.
        channels_last: Whether pixels are `(S, S, 3)` instead of `(3, S, S)`.
        input_channels_last: How arrays are read; None tells it from their shape.
    """

    side: int
    min_size: int
    mean: Sequence[float] | None
    std: Sequence[float] | None
    factor: float | None
    do_resize: bool
    do_pad: bool
    resample: Image.Resampling
    background: tuple[int, ...]
    channels_last: bool
    input_channels_last: bool | None

    @classmethod
    def of_call(cls, defaults: ImageDefaults, mode: Mode, settings: Mapping[str, Any]) -> Self:
        """Return the steps for the settings of a call, with those of the image processor for all others.

        Args:
            defaults: The image processor.
            mode: "understanding" or "generation", whose pixels are in [-1, 1] whatever the settings are.
            settings: Settings of `JanusProImageKwargs`; None counts as left out.

        Raises:
            TypeError: If a setting is unknown or of the wrong type.
            ValueError: If a setting is out of range, or cannot be followed.
        """
        check_keywords(settings, "the image processor", passed_on=USED, refused=REFUSED)
        given = {name: value for name, value in settings.items() if value is not None}
        for name, (only, reason) in _ONLY.items():
            if check_flag(given.pop(name, only), name) is not only:
                raise ValueError(f"`{name}` must be {only}, got {not only}: {reason}, so leave it out.")
        if mode == "generation" and (others := sorted(given.keys() - _IN_BOTH_MODES)):
            raise ValueError(
                f"`{others[0]}` must be left out with mode='generation', got {describe(given[others[0]])}: the image "
                "codec reads whole squares with values in [-1, 1]."
            )
        side = _side(given, defaults.image_size)
        min_size = check_integer(given.get("min_size", defaults.min_size), "min_size", "give a number of pixels")
        if "min_size" in given and min_size > side:
            raise ValueError(f"`min_size` must be at most the input's size, {side}, got {min_size}: lower it.")
        mean = _channels(given.get("image_mean", defaults.image_mean), "image_mean")
        std = _channels(given.get("image_std", defaults.image_std), "image_std")
        background = [int(one * 255) for one in mean or ()] if "image_mean" in given else defaults.background_color
        if not check_flag(given.get("do_normalize", defaults.do_normalize), "do_normalize"):
            mean = std = None
        elif mean is None or std is None:
            raise ValueError("`image_mean` and `image_std` must be given, got None: pass both, or do_normalize=False.")
        advice = "leave it out for 1 / 255"
        factor = check_number(given.get("rescale_factor", defaults.rescale_factor), "rescale_factor", advice)
        if "pad_size" in given and _square(given["pad_size"], "pad_size") != side:
            raise ValueError(f"`pad_size` must be the input's size, {side}, got {given['pad_size']}: leave it out.")
        return cls(
            side=side,
            min_size=min(min_size, side),
            mean=mean,
            std=std,
            factor=factor if check_flag(given.get("do_rescale", True), "do_rescale") else None,
            do_resize=check_flag(given.get("do_resize", True), "do_resize"),
            do_pad=check_flag(given.get("do_pad", True), "do_pad"),
            resample=_filter(given.get("resample", Image.Resampling.BICUBIC)),
            background=tuple(background),
            channels_last=_is_last(given.get("data_format", "channels_first"), "data_format"),
            input_channels_last=_is_last(given["input_data_format"], "input_data_format")
            if "input_data_format" in given
            else None,
        )

    def understanding(self, source: ImageSource) -> np.ndarray:
        """Return an image as pixels for the vision tower, `(3, S, S)` float32.

        The long side is resized to `S`, the square is filled up with the background, and the values are rescaled and
        normalised.

        Raises:
            ValueError: If the image cannot be read, or does not fill the square without the steps that are left out.
        """
        image, side = self._load(source), self.side
        if self.do_resize:
            long = max(image.size)
            # int(), not round(): transformers' own Janus rounds, which changes 47% of image sizes by one pixel.
            width, height = (max(int(length / long * side), self.min_size) for length in image.size)
            image = image.resize((width, height), self.resample)
        wrong = max(image.size) > side or not (self.do_pad or image.size == (side, side))
        if wrong:
            raise ValueError(
                f"`do_resize` and `do_pad` must be True unless an image is {side}x{side} already, got one of "
                f"{image.width}x{image.height} (WxH) with do_resize={self.do_resize}, do_pad={self.do_pad}: leave "
                "them out."
            )
        square = Image.new("RGB", (side, side), self.background)
        square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
        pixels = unit(square, self._factor(source))
        if self.mean is not None and self.std is not None:
            mean_C11, std_C11 = (np.array(s, np.float32)[:, None, None] for s in (self.mean, self.std))
            pixels = (pixels - mean_C11) / std_C11
        return np.moveaxis(pixels, 0, -1) if self.channels_last else pixels

    def generation(self, source: ImageSource) -> np.ndarray:
        """Return an image as pixels for the image codec, `(3, S, S)` float32 in [-1, 1].

        The short side is resized to `S`, and the long side is cropped around its centre. The source is section 3.1 of
        the technical report; deepseek-ai/Janus has no code for it.

        Raises:
            ValueError: If the image cannot be read, or the resized image would exceed Pillow's limit on pixels.
        """
        image, side = self._load(source), self.side
        short = min(image.size)
        width, height = (int(side * length / short) for length in image.size)
        # Enlarging the short side of a long strip also enlarges its long side. Beyond Pillow's own limit on pixels the
        # resized image could exhaust memory.
        if math.prod((width, height)) > (Image.MAX_IMAGE_PIXELS or math.inf):
            raise ValueError(
                f"An image must be small enough to be cropped to a square, got {image.width}x{image.height} (WxH), "
                f"which would first become {width}x{height}: crop it along its long side."
            )
        left, top = (round((length - side) / 2) for length in (width, height))
        resized = image.resize((width, height), self.resample)
        pixels = unit(resized.crop((left, top, left + side, top + side)), 1 / 255)
        pixels = (pixels - np.float32(0.5)) / np.float32(0.5)
        return np.moveaxis(pixels, 0, -1) if self.channels_last else pixels

    def _load(self, source: ImageSource) -> Image.Image:
        """Return an image as RGB, with the axes of an array read as `input_data_format` says."""
        is_array = isinstance(source, (np.ndarray, torch.Tensor)) and source.ndim == 3
        if isinstance(source, torch.Tensor) and is_array and self.input_channels_last is not None:
            source = (source.float() if source.is_floating_point() else source).detach().cpu().numpy()
        if isinstance(source, np.ndarray) and is_array and self.input_channels_last is not None:
            source = np.ascontiguousarray(source if self.input_channels_last else np.moveaxis(source, 0, -1))
            if source.shape[-1] not in (1, 3, 4):
                raise ValueError(
                    "`input_data_format` must name the axis of the 1, 3 or 4 channels, got an array whose axis has "
                    f"{source.shape[-1]}: leave it out."
                )
        return load_picture(source)

    def _factor(self, source: ImageSource) -> float:
        """Return the factor for 8-bit values; without rescaling it brings back the values that an array was given."""
        if self.factor is not None:
            return self.factor
        is_unit = (isinstance(source, np.ndarray) and np.issubdtype(source.dtype, np.floating)) or (
            isinstance(source, torch.Tensor) and source.is_floating_point()
        )
        return 1 / 255 if is_unit else 1.0


# Settings that make sense in both modes.
_IN_BOTH_MODES = {"data_format", "image_size", "input_data_format", "resample", "size", "min_size"}


def _side(given: Mapping[str, Any], default: int) -> int:
    """Return the side of the square input from `size` and `image_size`, which must not contradict each other."""
    sides = {name: _square(given[name], name) for name in ("size", "image_size") if name in given}
    if len(set(sides.values())) > 1:
        raise ValueError(f"`size` and `image_size` must agree, got {sides}: pass one of them.")
    return next(iter(sides.values()), default)


def _square(size: Any, name: str) -> int:
    """Return the side of a square size: a number, `{"height", "width"}`, or a pair."""
    sides = list(size.values()) if isinstance(size, Mapping) else [size] if isinstance(size, int) else list(size)
    if isinstance(size, Mapping) and size.keys() != {"height", "width"}:
        raise ValueError(f"`{name}` must have the keys 'height' and 'width', got {sorted(size)}: give these.")
    if len(set(sides)) != 1:
        raise ValueError(f"`{name}` must be square, got {size}: make both sides equal.")
    return check_integer(sides[0], name, "give a number of pixels")


def _channels(value: Any, name: str) -> list[float] | None:
    """Return a mean or standard deviation with one number per channel; None stays None."""
    if value is None:
        return None
    values = list(value) if isinstance(value, (list, tuple)) else [value] * 3
    if len(values) != 3:
        raise ValueError(f"`{name}` must be one number or three, one per channel, got {value}: correct it.")
    return [check_number(one, name, "give numbers in [0, 1]") for one in values]


def _filter(value: Any) -> Image.Resampling:
    """Return Pillow's filter by its number."""
    try:
        return Image.Resampling(value)
    except ValueError as error:
        raise ValueError(
            f"`resample` must be a filter of PIL.Image.Resampling, got {describe(value)}: leave it out for bicubic."
        ) from error


def _is_last(value: Any, name: str) -> bool:
    """Return whether the name of a format of arrays, or transformers' enumeration of it, is "channels_last"."""
    text = getattr(value, "value", value)
    if text not in ("channels_first", "channels_last"):
        raise ValueError(f"`{name}` must be 'channels_first' or 'channels_last', got {describe(value)}: choose one.")
    return bool(text == "channels_last")


def unit(image: Image.Image, factor: float) -> np.ndarray:
    """Return the pixels of an RGB image as `(3, H, W)` float32, multiplied by `factor`.

    The product is computed in float64, as by `rescale` of transformers 4.48.
    """
    return (np.asarray(image).transpose(2, 0, 1).astype(np.float64) * factor).astype(np.float32)


__all__ = ["REFUSED", "USED", "ImageSteps", "JanusProImageKwargs", "Mode"]
