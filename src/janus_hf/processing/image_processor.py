"""The image processor: converts images to pixel tensors and back, with exactly the values of deepseek-ai/Janus.

Images are resized with Pillow only. deepseek-ai/Janus resizes PIL images, and torchvision's bicubic interpolation of
tensors differs from Pillow's by 1 to 5 of 255 levels (measured). A second backend would make results depend on which
libraries are installed.
"""

import inspect
import json
import os
import warnings
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
import torch
from PIL import Image
from transformers import BaseImageProcessor, BatchFeature
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from transformers.utils import IMAGE_PROCESSOR_NAME, PROCESSOR_NAME

from ..arguments import check_choice, describe
from ..hub.fetching import fetch_files, hub_arguments
from .image_steps import ImageSteps, JanusProImageKwargs, Mode
from .pictures import ImageBatch, flatten_images


# Settings that files of transformers' own Janus contain, each with the only value that this class supports.
_FIXED = {
    "do_resize": True,
    "do_pad": True,
    "do_rescale": True,
    "do_convert_rgb": True,
    "do_center_crop": False,
    "resample": 3,
    "data_format": "channels_first",
}
# Keys of saved files that have no effect: the background colour is computed from the mean, the others name classes.
_FILE_KEYS = {"background_color", "image_processor_type", "processor_class", "feature_extractor_type", "auto_map"}


class JanusProImageProcessor(BaseImageProcessor):
    """Converter of images to `pixel_values` `(M, 3, S, S)` float32, and of decoded pixels to images.

    `M` is the number of images and `S` the side of the model's square input. There are two modes:

    - "understanding", for the vision tower: the long side of an image is resized to S. The short side keeps the
      proportions (rounded down, at least `min_size`), and the rest of the square is filled with the mean colour.
      Values are `(x / 255 - image_mean) / image_std`.
    - "generation", for the image codec: the short side of an image is resized to S, and the long side is cropped
      around its centre. Values are in [-1, 1] for every `image_mean`.

    Args:
        image_size: S, in pixels.
        min_size: Smallest side after resizing, in pixels; keeps the short side of a very thin image above zero.
        image_mean: Mean per channel, in [0, 1]. It also determines `background_color`, the padding colour.
        image_std: Standard deviation per channel, in the units of `image_mean`.
        rescale_factor: Factor by which the 8-bit values are multiplied before they are normalised.
        do_normalize: `False` leaves the values of "understanding" in [0, 1].
        size: `{"height": S, "width": S}`, the form in which transformers' own Janus states `image_size`.
        kwargs: Further keys of saved files, which are accepted if they would not change the result. A given
            `background_color` is ignored and computed from the mean, as in deepseek-ai/Janus.

    Unknown keys of a file are kept in `unknown_settings`, saved again and have no other effect; `from_dict` warns of
    them.

    Raises:
        TypeError: If a setting is unknown.
        ValueError: If a setting is out of range, or a file asks for processing that Janus does not do.
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
                raise ValueError(f"`{key}` must be {_FIXED[key]}, as in every Janus model, got {value}: remove it.")
        if unknown := set(kwargs) - _FILE_KEYS - set(JanusProImageKwargs.__annotations__):
            raise TypeError(
                f"Settings must be arguments of {type(self).__name__}, got {sorted(unknown)}: check the spelling."
            )
        if size is not None:
            if size["height"] != size["width"]:
                raise ValueError(f"`size` must be square, got {dict(size)}: make both sides equal.")
            image_size = size["height"]
        if not 0 < min_size <= image_size:
            raise ValueError(
                f"`min_size` must be between 1 and `image_size`, got min_size={min_size}, image_size={image_size}: "
                "lower it, because resized images must not become larger than the model's input."
            )
        if do_normalize and (image_mean is None or image_std is None):
            raise ValueError("`image_mean` and `image_std` must be given, got None: pass both, or do_normalize=False.")
        super().__init__()
        self.image_size = image_size
        self.min_size = min_size
        self.image_mean = None if image_mean is None else list(image_mean)
        self.image_std = None if image_std is None else list(image_std)
        self.rescale_factor = rescale_factor
        self.do_normalize = do_normalize
        self.background_color = [127, 127, 127] if image_mean is None else [int(mean * 255) for mean in image_mean]
        self.unknown_settings: dict[str, Any] = {}  # Any: whatever the keys of a file hold

    @property
    def size(self) -> dict[str, int]:
        """Size of the model's input as `{"height": S, "width": S}`, the form that transformers' own Janus uses."""
        return {"height": self.image_size, "width": self.image_size}

    @classmethod
    def from_dict(cls, image_processor_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Build an image processor from the settings of a file. Settings in `kwargs` override those of the file.

        Both may name the input size `image_size` or `size`. A file without mean and standard deviation gets CLIP's,
        which are the class defaults of deepseek-ai/Janus and of transformers' own Janus. All released files state 0.5,
        which is the default of this class. Unknown keys are kept in `unknown_settings`, and a warning names them.
        """
        known = (
            set(inspect.signature(cls).parameters) | _FILE_KEYS | _FIXED.keys() | set(cls.valid_kwargs.__annotations__)
        )
        unknown = {key: value for key, value in image_processor_dict.items() if key not in known}
        if unknown:
            warnings.warn(
                'preprocessor_config.json, or "image_processor" in processor_config.json, must hold settings of '
                f"{cls.__name__}, got {sorted(unknown)} too: they are kept and saved again and have no other effect. "
                "Check their spelling, or whether a newer version of this package knows them.",
                stacklevel=2,
            )
        stated = {key: value for key, value in image_processor_dict.items() if key in known}
        settings = {"image_mean": OPENAI_CLIP_MEAN, "image_std": OPENAI_CLIP_STD, **stated}
        if "image_size" in kwargs:
            settings.pop("size", None)
        result = super().from_dict(settings, **kwargs)
        # With `return_unused_kwargs=True` the result is a tuple of the image processor and these arguments.
        (result[0] if isinstance(result, tuple) else result).unknown_settings = unknown
        return result

    @classmethod
    def from_json_file(cls, json_file: str | os.PathLike[str]) -> Any:
        """Build an image processor from a preprocessor_config.json, as `from_dict` does from its content."""
        with open(json_file, encoding="utf-8") as file:
            return cls.from_dict(json.load(file))

    @classmethod
    def get_image_processor_dict(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Read preprocessor_config.json, or the settings of the image processor in processor_config.json.

        Raises:
            OSError: If the Hub does not answer whether one of the two files exists. The method of transformers takes
                such a file for absent.
        """
        names = [IMAGE_PROCESSOR_NAME, PROCESSOR_NAME]
        fetch_files(pretrained_model_name_or_path, needed=names, **hub_arguments(kwargs))
        # Any: the contents of JSON files
        found: tuple[dict[str, Any], dict[str, Any]] = super().get_image_processor_dict(
            pretrained_model_name_or_path, **kwargs
        )
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return the content of preprocessor_config.json with the keys and the class name of deepseek-ai/Janus.

        Keys that were unknown when the image processor was loaded are added, with the values that they had.
        """
        content = super().to_dict()
        return {**content.pop("unknown_settings"), **content, "image_processor_type": "VLMImageProcessor"}

    def preprocess(
        self,
        images: Any,
        *,
        mode: Mode = "understanding",
        return_tensors: str | None = "pt",
        **settings: Any,
    ) -> BatchFeature:
        """Turn images into pixel tensors for the model. Calling the image processor object does the same.

        Args:
            images: An image in any form that `load_picture` takes, a 4-D array of images, or any nesting of lists of
                images, which is flattened in reading order.
            mode: "understanding" for the vision tower or "generation" for the image codec; see the class.
            return_tensors: "pt" or "np"; `None` gives a list of arrays.
            settings: Settings for this call in place of those of the image processor, as in transformers'
                `ImagesKwargs`: `do_resize`, `do_pad`, `do_rescale`, `rescale_factor`, `do_normalize`, `image_mean`,
                `image_std`, `size` or `image_size`, `min_size`, `pad_size`, `resample`, `data_format`,
                `input_data_format`. With `do_rescale=False` the values stay in [0, 255], those of float arrays in
                [0, 1]. In the mode "generation" only sizes, `resample` and the formats may be given.

        Returns:
            A `BatchFeature` with `pixel_values` `(M, 3, S, S)` float32: `M` images, each with sides of `image_size`
            pixels; `(M, S, S, 3)` with `data_format="channels_last"`.

        Raises:
            FileNotFoundError: If an image is given as a path that does not exist.
            TypeError: If an item of `images` cannot be an image, or a setting is unknown.
            ValueError: If there is no image, an image cannot be decoded or cropped, the mode is unknown, or a setting
                cannot be followed.
        """
        check_choice(mode, "mode", ("understanding", "generation"))
        if return_tensors is not None:
            check_choice(return_tensors, "return_tensors", ("pt", "np"))
        steps = ImageSteps.of_call(self, mode, settings)
        prepare = steps.understanding if mode == "understanding" else steps.generation
        sources = flatten_images(images)
        if not sources:
            raise ValueError("`images` must hold at least one image, got none: skip the call if there is none.")
        # Several questions about one image pass the same object several times.
        distinct = {id(source): source for source in sources}
        prepared = {key: prepare(source) for key, source in distinct.items()}
        pixels = [prepared[id(source)].copy() for source in sources]
        return BatchFeature({"pixel_values": pixels}, tensor_type=return_tensors)

    if TYPE_CHECKING:

        def __call__(
            self,
            images: Any,
            *,
            mode: Mode = "understanding",
            return_tensors: str | None = "pt",
            **settings: Any,
        ) -> BatchFeature:
            """Call `preprocess`; transformers' own signature hides the arguments."""
            ...

    @overload
    def postprocess(
        self, pixel_values: torch.Tensor | np.ndarray, output_type: Literal["pil"] = "pil"
    ) -> list[Image.Image]: ...

    @overload
    def postprocess(self, pixel_values: torch.Tensor | np.ndarray, output_type: Literal["np"]) -> np.ndarray: ...

    @overload
    def postprocess(self, pixel_values: torch.Tensor | np.ndarray, output_type: Literal["pt"]) -> torch.Tensor: ...

    @overload
    def postprocess(
        self, pixel_values: torch.Tensor | np.ndarray, output_type: Literal["pil", "np", "pt"]
    ) -> ImageBatch: ...

    def postprocess(
        self, pixel_values: torch.Tensor | np.ndarray, output_type: Literal["pil", "np", "pt"] = "pil"
    ) -> ImageBatch:
        """Convert the output pixels of the image codec to images.

        The 8-bit values of "pil" are TRUNCATED, as in deepseek-ai/Janus, not rounded.

        Args:
            pixel_values: `(B, 3, H, W)`, any floating dtype, nominally in [-1, 1]; values outside are clipped.
            output_type: "pil": B RGB images. "np": `(B, H, W, 3)` float32 in [0, 1]. "pt": `(B, 3, H, W)` float32 in
                [0, 1] on the CPU.

        Raises:
            TypeError: If `pixel_values` is neither a tensor nor an array.
            ValueError: If shape or dtype are wrong, a value is NaN, or `output_type` is unknown.
        """
        check_choice(output_type, "output_type", ("pil", "np", "pt"))
        if not isinstance(pixel_values, (torch.Tensor, np.ndarray)):
            raise TypeError(
                f"`pixel_values` must be a tensor or an array (B, 3, H, W), got {describe(pixel_values)}: pass the "
                "output of the image decoder."
            )
        is_float = torch.is_tensor(pixel_values) or np.issubdtype(np.asarray(pixel_values).dtype, np.floating)
        pixels = torch.as_tensor(pixel_values).detach().cpu()
        if pixels.ndim != 4 or pixels.shape[1] != 3 or not (is_float and pixels.is_floating_point()):
            raise ValueError(
                "`pixel_values` must be floating-point pixels (B, 3, H, W) in [-1, 1], got shape "
                f"{tuple(pixels.shape)}, dtype {pixels.dtype}: pass the output of the image decoder with a batch axis."
            )
        if pixels.isnan().any():
            raise ValueError(
                "`pixel_values` must be numbers, got NaN: decode in bfloat16 or float32, because float16 overflows."
            )
        pixels_BCHW = pixels.float().numpy()
        # The order of operations is that of deepseek-ai/Janus, so that the same float32 numbers are truncated.
        if output_type == "pil":
            levels_BHWC = np.clip((pixels_BCHW.transpose(0, 2, 3, 1) + 1) / 2 * 255, 0, 255).astype(np.uint8)
            return [Image.fromarray(levels_HWC) for levels_HWC in levels_BHWC]
        unit_BCHW = np.clip((pixels_BCHW + 1) / 2, 0, 1)
        if output_type == "np":
            return unit_BCHW.transpose(0, 2, 3, 1)
        return torch.from_numpy(unit_BCHW)
