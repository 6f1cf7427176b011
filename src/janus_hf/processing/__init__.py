"""The processor of Janus-Pro, its image processor and `load_picture`, which loads an image from any source.

They turn text and images into batches for the model, and the model's outputs into text and images.
"""

from .image_processor import JanusProImageProcessor
from .pictures import load_picture
from .processor import JanusProProcessor
from .registration import register


__all__ = ["JanusProImageProcessor", "JanusProProcessor", "load_picture", "register"]
