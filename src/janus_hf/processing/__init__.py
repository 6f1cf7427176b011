"""Turn text and images into batches for the model, and the model's outputs back into text and images."""

from .image_processor import JanusProImageProcessor
from .pictures import load_picture
from .processor import JanusProProcessor
from .registration import register


__all__ = ["JanusProImageProcessor", "JanusProProcessor", "load_picture", "register"]
