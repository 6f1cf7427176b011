"""Pictures <-> pixel tensors, bit for bit as deepseek-ai/Janus does it.

Pillow only, on purpose: the original resizes PIL images, and torchvision's bicubic on tensors differs from Pillow's by
1 to 5 of 255 levels (measured), so a second backend would make results depend on what happens to be installed.
"""

import math
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from PIL import Image
from transformers import BaseImageProcessor, BatchFeature
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from transformers.processing_utils import ImagesKwargs

from .pictures import flatten_pictures, load_picture


Mode: TypeAlias = Literal["understanding", "generation"]

# What the in-tree Janus files spell out and this class always does.
_FIXED = {"do_resize": True, "do_pad": True, "do_rescale": True, "do_convert_rgb": True, "resample": 3}
_FILE_KEYS = {"background_color", "image_processor_type", "processor_class", "feature_extractor_type", "auto_map"}


class JanusProImageKwargs(ImagesKwargs):
    """Settings that `from_pretrained` may override.

    image_size (`int`): Side of the square the model sees, in pixels.
    min_size (`int`): Smallest side after resizing, in pixels.
    """

    image_size: int
    min_size: int


class JanusProImageProcessor(BaseImageProcessor):
    """Turns pictures into `pixel_values` `(M, 3, S, S)` float32, and decoded pixels back into pictures.

    Two modes, for the two halves of the model:

    - "understanding": the long side becomes S, the short side follows (truncated, at least `min_size`), the rest of
      the square is filled with the mean colour; values are `(x / 255 - image_mean) / image_std`.
    - "generation", the input of the image codec: the short side becomes S, the long side is cropped around its
      centre; values are in [-1, 1] whatever `image_mean` says.

    Args:
        image_size: S, in pixels.
        min_size: Smallest side after resizing; keeps very thin pictures from vanishing.
        image_mean: Mean per channel, in [0, 1]. Also gives `background_color`, the padding colour.
        image_std: Standard deviation per channel.
        rescale_factor: Applied to the 8-bit values before normalising.
        do_normalize: `False` leaves "understanding" values in [0, 1].
        size: `{"height": S, "width": S}`, the in-tree Janus spelling of `image_size`.
        kwargs: Keys found in saved files. Those that would change the result raise `ValueError`, unknown ones
            `TypeError`; `background_color` is always derived from the mean, as in the original.
    """

    model_input_names = ["pixel_values"]
    valid_kwargs = JanusProImageKwargs

    def __init__(
        self,
        image_size: int = 384,
        min_size: int = 14,
        image_mean: list[float] | tuple[float, ...] | None = (0.5, 0.5, 0.5),
        image_std: list[float] | tuple[float, ...] | None = (0.5, 0.5, 0.5),
        rescale_factor: float = 1 / 255,
        do_normalize: bool = True,
        size: dict[str, int] | None = None,
        **kwargs: Any,
    ) -> None:
        for key, value in kwargs.items():
            if value is not None and _FIXED.get(key, value) != value:
                raise ValueError(f"Expected {key}={_FIXED[key]}, the only thing Janus does; got {value}. Remove it.")
        if unknown := set(kwargs) - _FILE_KEYS - set(JanusProImageKwargs.__annotations__):
            raise TypeError(f"Unknown settings {sorted(unknown)}. Check the spelling against the class's arguments.")
        if size is not None:
            if size["height"] != size["width"]:
                raise ValueError(f"Expected a square size, as Janus has; got {dict(size)}. Make both sides equal.")
            image_size = size["height"]
        if not 0 < min_size <= image_size:
            raise ValueError(
                f"Expected 0 < min_size <= image_size; got min_size={min_size}, image_size={image_size}. A larger "
                "min_size would make pictures larger than the model's input: lower it."
            )
        if do_normalize and (image_mean is None or image_std is None):
            raise ValueError("Expected image_mean and image_std; got None. Pass both, or do_normalize=False.")
        super().__init__()
        self.image_size = image_size
        self.min_size = min_size
        self.image_mean = None if image_mean is None else list(image_mean)
        self.image_std = None if image_std is None else list(image_std)
        self.rescale_factor = rescale_factor
        self.do_normalize = do_normalize
        self.background_color = [127, 127, 127] if image_mean is None else [int(mean * 255) for mean in image_mean]

    @property
    def size(self) -> dict[str, int]:
        """`{"height": S, "width": S}`, the in-tree spelling of `image_size`."""
        return {"height": self.image_size, "width": self.image_size}

    @classmethod
    def from_dict(cls, image_processor_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Settings of a file, replaced by those in `kwargs`; either may spell the size either way.

        A file that omits mean and std means CLIP's, which are the class defaults of the original and in-tree; every
        released file spells out 0.5, the default here.
        """
        settings = {"image_mean": OPENAI_CLIP_MEAN, "image_std": OPENAI_CLIP_STD, **image_processor_dict}
        if "image_size" in kwargs:
            settings.pop("size", None)
        return super().from_dict(settings, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """The contents of preprocessor_config.json, in the original's schema and under the original's class name."""
        return {**super().to_dict(), "image_processor_type": "VLMImageProcessor"}

    def preprocess(
        self, images: Any, *, mode: Mode = "understanding", return_tensors: str | None = "pt"
    ) -> BatchFeature:
        """Also `image_processor(images, ...)`.

        Args:
            images: A picture (anything `load_picture` takes), a batch array, or any nesting of lists of pictures;
                nested ones are flattened in reading order.
            mode: "understanding" or "generation", see the class.
            return_tensors: "pt" or "np"; `None` gives a list of arrays.

        Returns:
            A `BatchFeature` with `pixel_values` `(M, 3, S, S)`, float32.
        """
        prepare = {"understanding": self._prepare_understanding, "generation": self._prepare_generation}.get(mode)
        if prepare is None:
            raise ValueError(f"Expected mode 'understanding' or 'generation'; got {mode!r}.")
        pictures = flatten_pictures(images)
        if not pictures:
            raise ValueError("Expected at least one picture; got an empty list. Skip the call when there is none.")
        pixels = [prepare(load_picture(picture)) for picture in pictures]
        return BatchFeature({"pixel_values": pixels}, tensor_type=return_tensors)

    def postprocess(
        self, pixel_values: torch.Tensor | np.ndarray, output_type: Literal["pil", "np", "pt"] = "pil"
    ) -> list[Image.Image] | np.ndarray | torch.Tensor:
        """Decoded pixels -> pictures. The 8-bit values are TRUNCATED, as in the original, not rounded.

        Args:
            pixel_values: `(B, 3, H, W)`, any floating dtype, nominally in [-1, 1]; values outside are clipped.
            output_type: "pil": B RGB images. "np": `(B, H, W, 3)` float32 in [0, 1]. "pt": `(B, 3, H, W)` float32
                in [0, 1] on the CPU.
        """
        is_float = torch.is_tensor(pixel_values) or np.issubdtype(np.asarray(pixel_values).dtype, np.floating)
        pixels = torch.as_tensor(pixel_values).detach().cpu()
        if pixels.ndim != 4 or pixels.shape[1] != 3 or not (is_float and pixels.is_floating_point()):
            raise ValueError(
                f"Expected floating-point pixels (B, 3, H, W) in [-1, 1]; got shape {tuple(pixels.shape)}, dtype "
                f"{pixels.dtype}. Pass what the image decoder returns, with a batch axis."
            )
        if pixels.isnan().any():
            raise ValueError("Expected numbers; got NaN. In float16 the decoder overflows: use bfloat16 or float32.")
        pixels_BCHW = pixels.float().numpy()
        # Same order of operations as the original, so that truncation meets the same float32 values.
        if output_type == "pil":
            levels_BHWC = np.clip((pixels_BCHW.transpose(0, 2, 3, 1) + 1) / 2 * 255, 0, 255).astype(np.uint8)
            return [Image.fromarray(levels_HWC) for levels_HWC in levels_BHWC]
        unit_BCHW = np.clip((pixels_BCHW + 1) / 2, 0, 1)
        if output_type == "np":
            return unit_BCHW.transpose(0, 2, 3, 1)
        if output_type == "pt":
            return torch.from_numpy(unit_BCHW)
        raise ValueError(f"Expected output_type 'pil', 'np' or 'pt'; got {output_type!r}.")

    def _prepare_understanding(self, picture: Image.Image) -> np.ndarray:
        """RGB -> `(3, S, S)`: fit the long side, pad to a square."""
        long, side = max(picture.size), self.image_size
        # int(), not round(): the in-tree port rounds, and 47% of picture sizes then come out one pixel different.
        width, height = (max(int(length / long * side), self.min_size) for length in picture.size)
        square = Image.new("RGB", (side, side), tuple(self.background_color))
        resized = picture.resize((width, height), Image.Resampling.BICUBIC)
        square.paste(resized, ((side - width) // 2, (side - height) // 2))
        if not self.do_normalize:
            return _unit(square, self.rescale_factor)
        mean_C11, std_C11 = (np.array(s, np.float32)[:, None, None] for s in (self.image_mean, self.image_std))
        return (_unit(square, self.rescale_factor) - mean_C11) / std_C11

    def _prepare_generation(self, picture: Image.Image) -> np.ndarray:
        """RGB -> `(3, S, S)`: fit the short side, crop the long one (tech report 3.1; the repository has no code)."""
        short, side = min(picture.size), self.image_size
        width, height = (int(side * length / short) for length in picture.size)
        if math.prod((width, height)) > (Image.MAX_IMAGE_PIXELS or math.inf):
            raise ValueError(
                f"Expected a picture that can be cropped to a square; {picture.width}x{picture.height} (WxH) would "
                f"first become {width}x{height}. Crop it along its long side."
            )
        left, top = (round((length - side) / 2) for length in (width, height))
        resized = picture.resize((width, height), Image.Resampling.BICUBIC)
        return (_unit(resized.crop((left, top, left + side, top + side)), 1 / 255) - np.float32(0.5)) / np.float32(0.5)


def _unit(picture: Image.Image, factor: float) -> np.ndarray:
    """RGB -> `(3, H, W)` float32. The product is taken in float64, like transformers 4.48's `rescale`."""
    return (np.asarray(picture).transpose(2, 0, 1).astype(np.float64) * factor).astype(np.float32)
