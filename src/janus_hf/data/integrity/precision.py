"""`float32_codec`, which makes the codec compute in float32: image codes of data are the same in whatever dtype it is.

A codec in bfloat16 gives other codes than one in float32 for some positions of an image. So the codes of training data
are always computed in float32, and `meta.json` records that.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import nn
from transformers.utils import logging


logger = logging.get_logger(__name__)

PRECISION = "float32"


@contextmanager
def float32_codec(codec: nn.Module) -> Iterator[None]:
    """Hold the weights of a codec in float32 and compute in float32 until the `with` block ends, also under autocast.

    Afterwards the codec has its own weights again, the same tensors as before.

    Raises:
        ValueError: If the weights are offloaded and not in float32.
    """
    tensors = [*codec.parameters(), *codec.buffers()]
    held = [
        (tensor, tensor.data) for tensor in tensors if tensor.is_floating_point() and tensor.dtype != torch.float32
    ]
    if any(data.is_meta for _, data in held):
        raise ValueError(
            f"The codec must be in memory for image codes to be computed in {PRECISION}, got offloaded weights in "
            f"{held[0][1].dtype}: load the model with dtype=torch.float32, or without offloading."
        )
    device = next((tensor.device.type for tensor in tensors), "cpu")
    try:
        for tensor, data in held:
            tensor.data = data.float()
        with torch.autocast("cpu" if device == "meta" else device, enabled=False), _exact_float32():
            yield
    finally:
        for tensor, data in held:
            tensor.data = data


@contextmanager
def _exact_float32() -> Iterator[None]:
    """Forbid the short formats (TF32, bfloat16) that devices may multiply float32 numbers in, until the block ends."""
    backends: Any = torch.backends  # Any: which settings it has depends on the version of torch
    # Since torch 2.9 each kind of operation has a setting of its own; before, there were two for Nvidia's devices.
    if hasattr(backends.cudnn, "conv"):
        places = [backends.cudnn.conv, backends.cuda.matmul, backends.mkldnn.conv, backends.mkldnn.matmul]
        name, exact = "fp32_precision", cast("str | bool", "ieee")
    else:
        places, name, exact = [backends.cudnn, backends.cuda.matmul], "allow_tf32", False
    before = [getattr(place, name) for place in places]
    try:
        for place in places:
            setattr(place, name, exact)
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            setattr(place, name, value)


def warn_of_precision(meta: Mapping[str, Any], name: str) -> None:
    """Log a warning if prepared rows have image codes that were not computed in float32, or may not have been.

    Args:
        meta: Content of `meta.json`; early versions of this package did not record the precision.
        name: Name of the data, for the message.
    """
    if (found := meta.get("code_precision")) == PRECISION:
        return
    stated = "does not state their precision" if found is None else f"states {found!r}"
    logger.warning(
        f"The image codes in {name} should have been computed in {PRECISION}, but its meta.json {stated}: some codes "
        "of an image may differ from those of this version. The rows are used as they are; prepare the source again "
        "into another folder to have the same codes."
    )


__all__ = ["PRECISION", "float32_codec", "warn_of_precision"]
