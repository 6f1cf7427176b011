"""Drawing loop and sampling: ids in, ids out."""

from .images import ImageGenerationMixin, ImageGenerationOutput, draw_reference


__all__ = ["ImageGenerationMixin", "ImageGenerationOutput", "draw_reference"]
