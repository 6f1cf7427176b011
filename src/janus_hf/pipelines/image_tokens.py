"""The pipeline methods `encode` and `decode`, which turn images into image tokens and back."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, overload

import numpy as np
import PIL.Image
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from ..arguments import check_choice
from ..generation.generation_arguments import check_integer_tensor
from ..processing.pictures import ImageBatch, ImageSource
from .offloading import move_to_device


if TYPE_CHECKING:
    from ..modeling import JanusProForConditionalGeneration
    from ..processing import JanusProProcessor


class ImageTokensMixin(DiffusionPipeline):
    """Add the methods `encode` and `decode` to a diffusers pipeline with the components `model` and `processor`."""

    model: "JanusProForConditionalGeneration"
    processor: "JanusProProcessor"

    @overload
    def decode(self, image_ids: torch.Tensor, output_type: Literal["pil"] = "pil") -> list[PIL.Image.Image]: ...

    @overload
    def decode(self, image_ids: torch.Tensor, output_type: Literal["np"]) -> np.ndarray: ...

    @overload
    def decode(self, image_ids: torch.Tensor, output_type: Literal["pt"]) -> torch.Tensor: ...

    @overload
    def decode(self, image_ids: torch.Tensor, output_type: Literal["pil", "np", "pt"]) -> ImageBatch: ...

    def decode(self, image_ids: torch.Tensor, output_type: Literal["pil", "np", "pt"] = "pil") -> ImageBatch:
        """Decode image tokens to images.

        Args:
            image_ids: `(N, P)` integers: the `P` image tokens of each of `N` images.
            output_type: "pil", "np" or "pt".

        Returns:
            The `N` images in the form that `JanusProPipelineOutput.images` has for the same `output_type`.

        Raises:
            TypeError: If `image_ids` is no tensor of integers.
            ValueError: If its shape is another one, a token lies outside the codebook, or `output_type` is unknown.
            FloatingPointError: If the codec's pixels are not finite.
        """
        check_choice(output_type, "output_type", ("pil", "np", "pt"))
        check_integer_tensor(image_ids, "image_ids", "(N, P)")
        device = move_to_device(self)
        pixel_values = self.model.decode_image_ids(image_ids.to(device))
        return self.processor.post_process_images(pixel_values, output_type=output_type)

    def encode(self, images: ImageSource | Sequence[ImageSource]) -> torch.Tensor:
        """Encode `N` images and return their image tokens `(N, P)` int64, from which `decode` reconstructs them.

        Args:
            images: One image or a list of images, each a PIL image, path, URL or array; or a 4-D array or tensor of
                images. The short side is resized to the model's image size and the centre is cropped.

        Raises:
            FileNotFoundError: If an image is given as a path that does not exist.
            TypeError: If an item cannot be an image.
            ValueError: If there is no image, or an image cannot be read.
            FloatingPointError: If the codec's latents are not finite.
        """
        device = move_to_device(self)
        pixel_values = self.processor.image_processor(images, mode="generation", return_tensors="pt").pixel_values
        return self.model.encode_image_ids(pixel_values.to(device))


__all__ = ["ImageTokensMixin"]
