"""FID, the Fréchet distance between the features of generated images and those of reference images.

It is torchmetrics' `FrechetInceptionDistance`, updated batch by batch, so that memory does not grow with the number of
images.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image, ImageOps
from transformers import PreTrainedModel, ProcessorMixin
from transformers.utils import logging

from ....arguments import checked
from ....rewards.loading import Pretrained, group_indices
from ...paper import look_up
from ...report import Report
from ...run_folder import environments, processes
from ...sharing import gather, share
from .image_folders import open_pictures


if TYPE_CHECKING:
    from torchmetrics.image.fid import FrechetInceptionDistance

logger = logging.get_logger(__name__)

# Smallest number of generated, and of reference, images without a warning. With far fewer images, the covariance of
# their features is a poor estimate.
ENOUGH = 10_000


class VisionFeatures(torch.nn.Module):
    """A transformers vision model (DINOv2, CLIP, SigLIP, ...) whose pooled features replace those of FID's Inception.

    Another network measures another distance. Published distances with another network, such as those with DINOv2
    (Stein et al., arXiv 2306.04675), are not FIDs either.

    Args:
        model: Name or folder of the model, or the loaded model.
        processor: Processor of the model, or its name or folder. None is the processor at the model's name.
        settings: `device` that the model is moved to, and `dtype` of its weights; see `Pretrained`.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | PreTrainedModel,
        processor: str | os.PathLike[str] | ProcessorMixin | None = None,
        **settings: Any,
    ) -> None:
        super().__init__()
        self.pretrained = Pretrained(model, processor, **settings)

    @property
    def name(self) -> str:
        """Name or folder of the vision model, or its class if it was passed as an object."""
        return self.pretrained.source

    @torch.no_grad()
    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Compute the features of images.

        Args:
            pixels: Images `(N, 3, height, width)` uint8. They may be on another device than the model.

        Returns:
            Features `(N, D)` float32 on the device of `pixels`.

        Raises:
            ValueError: If the model has no pooled features.
        """
        model, processor = self.pretrained.model, self.pretrained.processor
        images = [Image.fromarray(image) for image in pixels.permute(0, 2, 3, 1).cpu().numpy()]
        inputs = getattr(processor, "image_processor", processor)(images=images, return_tensors="pt")
        compute = getattr(model, "get_image_features", model)
        output = compute(pixel_values=inputs["pixel_values"].to(model.device, model.dtype))
        pooled = getattr(output, "pooler_output", None)
        if pooled is None:
            raise ValueError(f"{self.name} has no pooled features: choose a model like facebook/dinov2-large.")
        return pooled.flatten(start_dim=1).to(pixels.device, torch.float32)


@checked()
def evaluate_fid(
    pictures: Sequence[Path],
    reference: Sequence[Path],
    network: torch.nn.Module | None = None,
    *,
    size: int | None = None,
    batch_size: int = 32,
) -> Report:
    """Measure the Fréchet distance between generated images and reference images, and return the report.

    Args:
        pictures: Paths of the generated images.
        reference: Paths of the reference images.
        network: Module that maps images `(N, 3, height, width)` uint8 to features `(N, D)`. It must be on the CPU when
            it is passed, because torchmetrics determines D there. None is FID's Inception from torch-fidelity, which
            is downloaded.
        size: Side length in pixels to which the central square of every image is resized first (bicubic, antialiased).
            None leaves images as they are; Inception then squeezes them to 299 x 299.
        batch_size: Largest number of images in a batch. A batch for the network holds images of one size only.

    Returns:
        The report. Its metric is `fid`, or with another network `fid[name of the network]`. Its rows name the images.
        Images that cannot be read are in `failures`.

    Raises:
        ImportError: If torchmetrics is missing, or if torch-fidelity is missing and `network` is None.
        ValueError: If a number is out of range, or there are too few images.
    """
    if size is not None and size < 1:
        raise ValueError(f"`size` must be at least 1, got {size}: choose a larger one.")
    metric, name = _frechet_distance(network)
    device = torch.device("cpu") if processes().device.type == "mps" else processes().device  # MPS has no float64
    metric.to(device)
    rows, failures = [], []
    read_here = 0  # number of images that this process has read
    for side, paths in (("drawn", pictures), ("reference", reference)):

        def update(batch: Sequence[Path], side: str = side) -> tuple[list[dict[str, str]], list[str]]:
            nonlocal read_here
            images, unread = open_pictures(batch)
            squares = [_square(image, size) for image in images.values()]
            for same in group_indices(image.size for image in squares).values():
                pixels = np.stack([np.asarray(squares[index]) for index in same])
                # torchmetrics keeps sums of features per process, and combines the processes in `compute`.
                metric.update(torch.from_numpy(pixels).permute(0, 3, 1, 2).to(device), real=side == "reference")
            read_here += len(images)
            return [{"filename": str(path), "side": side} for path in images], unread

        found, failed = share(paths, update, batch_size=batch_size, title=side, unit="image")
        rows += found
        failures += failed
    rows.sort(key=lambda row: (row["side"], row["filename"]))
    counts = {side: sum(row["side"] == side for row in rows) for side in ("drawn", "reference")}
    # torchmetrics cannot combine the sums of the processes if one of them has seen no image.
    if min(counts.values()) < 2 or not min(gather([read_here])):
        raise ValueError(
            "FID needs at least two readable images on either side, and one for every process, got "
            f"{counts['drawn']} generated and {counts['reference']} reference images: add images, or use fewer "
            "processes."
        )
    settings = {"network": name, "size": size, "counts": counts, "environments": environments(None)}
    metrics = {"fid" if network is None else f"fid[{name}]": metric.compute().item()}
    protocol = _fid_protocol(counts, name, size, is_inception=network is None)
    return Report("fid", metrics, next(iter(metrics)), protocol, settings, rows, sorted(failures))


def _frechet_distance(network: torch.nn.Module | None) -> tuple["FrechetInceptionDistance", str]:
    """Return torchmetrics' FID metric with the given network (None: FID's Inception), and the name of the network.

    Raises:
        ImportError: If torchmetrics is missing, or if torch-fidelity is missing and `network` is None.
    """
    try:
        from torchmetrics.image.fid import FrechetInceptionDistance
    except ImportError as error:
        raise ImportError("FID needs torchmetrics, which is missing: pip install 'janus_hf[eval-metrics]'.") from error
    if network is not None:
        return FrechetInceptionDistance(network.eval()), getattr(network, "name", type(network).__name__)
    try:
        return FrechetInceptionDistance(), "inception-v3-compat"
    except ImportError as error:
        raise ImportError(
            "FID's Inception needs torch-fidelity, which is missing: pip install 'janus_hf[eval-metrics]', or choose "
            "another network (--network), which gives other numbers."
        ) from error


def _fid_protocol(counts: Mapping[str, int], name: str, size: int | None, *, is_inception: bool) -> str:
    """Return the sentences of the report that say how the distance was measured. Also warn if there are few images.

    Args:
        counts: Numbers of images, under the keys "drawn" (generated) and "reference".
        name: Name of the network that computed the features.
        size: Side length to which images were resized; None if they were left as they are.
        is_inception: Whether the network is FID's Inception.
    """
    sentences = [
        f"{counts['drawn']} generated images against {counts['reference']} reference images, features of {name}.",
        f"Cut to the central square, {size} x {size}." if size else "Images as they are.",
    ]
    if not is_inception:
        sentences.append("Not Inception's features: not comparable with published FIDs.")
    if min(counts.values()) < ENOUGH:
        few = f"Fewer than {ENOUGH} images on a side: the distance comes out too large, compare equal numbers only."
        sentences.append(few)
        if processes().is_main_process:
            logger.warning(f"{sentences[0]} {few}")
    return " ".join([*sentences, look_up("fid").protocol])


def _square(image: Image.Image, size: int | None) -> Image.Image:
    """Return the central square of an image, resized to `size` pixels a side; the image itself if `size` is None."""
    return image if size is None else ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)


__all__ = ["ENOUGH", "VisionFeatures", "evaluate_fid"]
