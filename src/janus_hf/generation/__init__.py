"""Generation of image tokens: a mixin that adds `generate_images` to a model, and a simple reference for tests.

`generate_images` takes the token ids of prompts and returns the image tokens (codebook entries of the image codec)
that the model samples. Start with `images.py`, then read `drawing.py` (the state of one batch) and `sampling.py` (from
logits to tokens). `decoders/` runs one step of the generation loop, operator by operator or as a compiled graph;
`kernels/` holds the kernels of single operators that are faster than those of PyTorch. `text/` generates text with the
same decoders.
"""

from .images import ImageGenerationMixin, ImageGenerationOutput
from .reference import draw_reference


__all__ = ["ImageGenerationMixin", "ImageGenerationOutput", "draw_reference"]
