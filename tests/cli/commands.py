"""Arguments and expectations that the tests of several commands share."""

import numpy as np
import torch

from tiny import TINY_MODEL


FAST = ("-m", TINY_MODEL, "--dtype", "float32")  # bfloat16, the stored dtype, takes a CPU several times as long


def expected_image(pipe, prompt, seed, **kwargs):
    """Return the pixels `(H, W, 3)` uint8 of the image that the pipeline generates with a seed."""
    return np.asarray(pipe(prompt, generator=torch.Generator().manual_seed(seed), **kwargs).images[0])
