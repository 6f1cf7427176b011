"""`JanusProPipelineOutput`, the result of a call of `JanusProPipeline`, which a notebook shows as images."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic

import numpy as np
import PIL.Image
import torch
from diffusers.utils import BaseOutput
from typing_extensions import TypeVar

from ..image_grid import image_grid
from ..processing.pictures import ImageBatch
from ..summaries import ShortRepr


# An annotation `JanusProPipelineOutput` without a type in brackets means PIL images, the default of `output_type`.
Images = TypeVar("Images", bound=ImageBatch, default=list[PIL.Image.Image])

_MAX_SHOWN = 16  # images in the grid of a notebook
_MAX_SIDE = 256  # pixels of the longer side of an image in a grid of several


@dataclass(repr=False)
class JanusProPipelineOutput(ShortRepr, BaseOutput, Generic[Images]):
    """The `N` images that one call of `JanusProPipeline` has generated, each from `P` image tokens.

    A notebook shows PIL images as a grid (at most the first 16), everything else as one line with shapes.

    Args:
        images: The images in the form that `output_type` names: a list of PIL images ("pil"), an array
            `(N, H, W, 3)` float32 in [0, 1] ("np"), a tensor `(N, 3, H, W)` in [0, 1] ("pt"), or the image tokens
            `(N, P)` int64 ("latent").
        image_ids: `(N, P)` int64: the image tokens, for every `output_type`.
    """

    images: Images
    image_ids: torch.Tensor

    def _repr_html_(self) -> str | None:
        """Return HTML that shows the images, or None if they are not PIL images or there are none.

        IPython calls this method for the last expression of a notebook's cell. For None it shows `repr(self)`.
        """
        images = self.images
        if not isinstance(images, list) or not all(isinstance(image, PIL.Image.Image) for image in images):
            return None
        if not images:
            return None
        shown = [image.copy() for image in images[:_MAX_SHOWN]]
        if len(shown) > 1:
            for image in shown:
                image.thumbnail((_MAX_SIDE, _MAX_SIDE))
        buffer = io.BytesIO()
        image_grid(shown).save(buffer, format="PNG")
        source = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
        note = f"<p>The first {len(shown)} of {len(images)} images.</p>" if len(images) > len(shown) else ""
        return f'<img src="{source}" alt="{len(shown)} generated images">{note}'


def join_images(parts: Sequence[Any]) -> Any:
    """Concatenate the images of all batches, which are either tensors, arrays, or lists of PIL images."""
    if isinstance(parts[0], torch.Tensor):
        return torch.cat(list(parts))
    if isinstance(parts[0], np.ndarray):
        return np.concatenate(parts)
    return [image for part in parts for image in part]


__all__ = ["Images", "JanusProPipelineOutput", "join_images"]
