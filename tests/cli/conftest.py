"""Fixtures of the command line's tests; `run` is in the conftest of the folder above."""

import numpy as np
import pytest
import torch
from PIL import Image

from janus_hf import JanusProPipeline
from tiny import TINY_MODEL


@pytest.fixture(scope="session")
def pipe():
    """The tiny model as the command loads it with `FAST`. Tests share it and must not change it."""
    pipe = JanusProPipeline.from_pretrained(TINY_MODEL, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def image_path(tmp_path):
    """Path of an image of random pixels, 70 pixels wide and 40 high."""
    path = tmp_path / "image.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 70, 3), dtype=np.uint8)).save(path)
    return path
