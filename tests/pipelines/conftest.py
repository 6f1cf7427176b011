"""Pipelines in float32 that write no progress bar, and an image."""

import numpy as np
import pytest
from PIL import Image
from tiny_pipes import copy_of, load, silent

from janus_hf import JanusProPipeline, JanusProProcessor


@pytest.fixture(scope="session")
def pipe():
    """The tiny model. Tests share it and must not change it."""
    return load()


@pytest.fixture
def own_pipe(pipe):
    """A copy of the tiny model that the test may change."""
    return copy_of(pipe)


@pytest.fixture(scope="session")
def golden_pipe(golden_model, golden_checkpoint):
    """The model whose outputs the original code recorded. Tests share it and must not change it."""
    return silent(JanusProPipeline(golden_model, JanusProProcessor.from_pretrained(golden_checkpoint)))


@pytest.fixture(scope="session")
def image():
    """An image of random pixels, 70 pixels wide and 40 high."""
    levels = np.random.default_rng(0).integers(0, 256, (40, 70, 3), dtype=np.uint8)
    return Image.fromarray(levels)
