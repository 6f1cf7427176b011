"""The tiny untrained checkpoint that tests load where any complete checkpoint will do (`make_tiny_checkpoint.py`)."""

from pathlib import Path


TINY_MODEL = str(Path(__file__).parent / "goldens" / "tiny-janus-pro")
