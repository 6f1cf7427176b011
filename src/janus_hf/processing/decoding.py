"""`OutputDecoding`, the methods of the processor that turn the model's outputs into texts and images."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
import torch
from PIL import Image
from transformers.tokenization_utils_tokenizers import TokenizersBackend

from .image_processor import JanusProImageProcessor
from .pictures import ImageBatch


class OutputDecoding:
    """Base class of `JanusProProcessor` with `post_process_images`, and the types of transformers' `decode`."""

    image_processor: JanusProImageProcessor
    tokenizer: TokenizersBackend

    if TYPE_CHECKING:

        @overload
        def decode(self, token_ids: list[list[int]], **kwargs: Any) -> list[str]: ...

        @overload
        def decode(self, token_ids: int | Sequence[int] | np.ndarray | torch.Tensor, **kwargs: Any) -> str: ...

        def decode(self, token_ids: Any, **kwargs: Any) -> str | list[str]:
            """Return the text of token ids `(T,)`, as the tokenizer does; `kwargs` are those of its `decode`."""
            ...

        def batch_decode(
            self, sequences: Sequence[Sequence[int]] | np.ndarray | torch.Tensor, **kwargs: Any
        ) -> list[str]:
            """Return the texts of token ids `(B, T)`, as the tokenizer does; `kwargs` are those of its `decode`."""
            ...

    @overload
    def post_process_images(
        self, pixel_values: torch.Tensor | np.ndarray, output_type: Literal["pil"] = "pil"
    ) -> list[Image.Image]: ...

    @overload
    def post_process_images(
        self, pixel_values: torch.Tensor | np.ndarray, output_type: Literal["np"]
    ) -> np.ndarray: ...

    @overload
    def post_process_images(
        self, pixel_values: torch.Tensor | np.ndarray, output_type: Literal["pt"]
    ) -> torch.Tensor: ...

    @overload
    def post_process_images(
        self, pixel_values: torch.Tensor | np.ndarray, output_type: Literal["pil", "np", "pt"]
    ) -> ImageBatch: ...

    def post_process_images(
        self, pixel_values: torch.Tensor | np.ndarray, output_type: Literal["pil", "np", "pt"] = "pil"
    ) -> ImageBatch:
        """Convert the image codec's output pixels `(B, 3, H, W)` in [-1, 1] to images.

        `output_type` chooses PIL images, a numpy array or a tensor; see `JanusProImageProcessor.postprocess`.
        """
        return self.image_processor.postprocess(pixel_values, output_type=output_type)


__all__ = ["OutputDecoding"]
