"""Generation of image tokens: prompt ids in, image token ids out.

Start with `images.py` (`generate_images`), then read `drawing.py` (one batch) and `sampling.py` (logits to tokens).
`decoders/` runs a step of the language model, plainly or compiled; `x86/` holds kernels for one kind of processor.
"""

from .images import ImageGenerationMixin, ImageGenerationOutput
from .reference import draw_reference


__all__ = ["ImageGenerationMixin", "ImageGenerationOutput", "draw_reference"]
