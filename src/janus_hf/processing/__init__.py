"""Text and pictures to batches, and back."""

from .image_processor import JanusProImageProcessor
from .pictures import load_picture
from .processor import JanusProProcessor
from .registration import register


__all__ = ["JanusProImageProcessor", "JanusProProcessor", "load_picture", "register"]
