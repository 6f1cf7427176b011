"""FID of pictures that are there already."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from PIL import Image, ImageOps
from transformers.utils import logging

from ....rewards.loading import Pretrained, alike
from ...paper import look_up
from ...report import Report
from ...run_folder import environments, processes
from .image_folders import open_pictures, own_batches


logger = logging.get_logger(__name__)

ENOUGH = 10_000  # pictures on either side of a FID: far fewer, and their features' covariance is a poor estimate


class VisionFeatures(torch.nn.Module):
    """A vision model of transformers in the place of FID's Inception: DINOv2, CLIP, SigLIP and others that pool.

    Another network measures another distance. Its published values, such as those with DINOv2 (Stein et al., arXiv
    2306.04675), are not FIDs either.

    Args:
        model: Name, folder or model.
        processor, device, dtype: As for `Pretrained`.
    """

    def __init__(self, model: Any, processor: Any = None, **settings: Any) -> None:
        super().__init__()
        self.pretrained = Pretrained(model, processor, **settings)

    @property
    def name(self) -> str:
        """Where the model is from."""
        return self.pretrained.source

    @torch.no_grad()
    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pictures as `(N, 3, height, width)` uint8 to features `(N, D)` float32, on the pictures' device: the model
        may be on another.

        Raises:
            ValueError: If the model gives no pooled features.
        """
        model, processor = self.pretrained.model, self.pretrained.processor
        images = [Image.fromarray(image) for image in pixels.permute(0, 2, 3, 1).cpu().numpy()]
        inputs = getattr(processor, "image_processor", processor)(images=images, return_tensors="pt")
        see = getattr(model, "get_image_features", model)
        output = see(pixel_values=inputs["pixel_values"].to(model.device, model.dtype))
        pooled = getattr(output, "pooler_output", None)
        if pooled is None:
            raise ValueError(f"{self.name} has no pooled features: choose a model like facebook/dinov2-large.")
        return pooled.flatten(start_dim=1).to(pixels.device, torch.float32)


def evaluate_fid(
    pictures: Sequence[Path],
    reference: Sequence[Path],
    network: torch.nn.Module | None = None,
    *,
    size: int | None = None,
    batch_size: int = 32,
) -> Report:
    """Fréchet distance between drawn pictures and pictures of reference.

    Args:
        pictures: Drawn ones.
        reference: What they are to be like.
        network: Takes uint8 pictures `(N, 3, height, width)`, gives features `(N, D)`; on the CPU when it is handed
            over, as torchmetrics asks it for D there. By default FID's Inception, by torch-fidelity, which is
            downloaded.
        size: Cut every picture to its central square and bring it to so many pixels a side (bicubic, antialiased)
            first. By default the network gets pictures as they are; Inception squeezes them to 299 x 299.
        batch_size: Pictures at a time. Only pictures of one size share a batch.

    Returns:
        `fid`, or with another network `fid[its name]`; rows are pictures. Those that cannot be read are in `failures`.

    Raises:
        ImportError: If torchmetrics is missing, or torch-fidelity without another network.
        ValueError: If a number is out of range, or there are too few pictures.
    """
    if size is not None and size < 1:
        raise ValueError(f"size must be at least 1, got {size}.")
    metric, name = _frechet_distance(network)
    device = torch.device("cpu") if processes().device.type == "mps" else processes().device  # MPS has no float64
    metric.to(device)
    rows, failures = [], []
    for side, paths in (("drawn", pictures), ("reference", reference)):
        for batch in own_batches(paths, batch_size, side):
            images, unread = open_pictures(batch)
            squares = [_square(image, size) for image in images.values()]
            for same in alike(image.size for image in squares).values():
                pixels = np.stack([np.asarray(squares[index]) for index in same])
                metric.update(torch.from_numpy(pixels).permute(0, 3, 1, 2).to(device), real=side == "reference")
            rows += [{"filename": str(path), "side": side} for path in images]
            failures += unread
    least = min(gather_object([len(rows)]))
    rows = sorted(gather_object(rows), key=lambda row: (row["side"], row["filename"]))
    counts = {side: sum(row["side"] == side for row in rows) for side in ("drawn", "reference")}
    if min(counts.values()) < 2 or not least:
        raise ValueError(
            "FID needs at least two readable pictures on either side, and one for every process; read "
            f"{counts['drawn']} drawn ones and {counts['reference']} of reference."
        )
    settings = {"network": name, "size": size, "counts": counts, "environments": environments(None)}
    metrics = {"fid" if network is None else f"fid[{name}]": metric.compute().item()}
    protocol = _fid_protocol(counts, name, size, is_inception=network is None)
    return Report("fid", metrics, next(iter(metrics)), protocol, settings, rows, sorted(gather_object(failures)))


def _frechet_distance(network: torch.nn.Module | None) -> tuple[Any, str]:
    """torchmetrics' metric, and what its network is called."""
    try:
        from torchmetrics.image.fid import FrechetInceptionDistance
    except ImportError as error:
        raise ImportError("FID is torchmetrics', which is missing: pip install 'janus_hf[eval-metrics]'.") from error
    if network is not None:
        return FrechetInceptionDistance(network.eval()), getattr(network, "name", type(network).__name__)
    try:
        return FrechetInceptionDistance(), "inception-v3-compat"
    except ImportError as error:
        raise ImportError(
            "FID's Inception is torch-fidelity's, which is missing: pip install 'janus_hf[eval-metrics]', or "
            "choose another network (--network), which gives other numbers."
        ) from error


def _fid_protocol(counts: Mapping[str, int], name: str, size: int | None, *, is_inception: bool) -> str:
    sentences = [
        f"{counts['drawn']} drawn pictures against {counts['reference']} of reference, features of {name}.",
        f"Cut to the central square, {size} x {size}." if size else "Pictures as they are.",
    ]
    if not is_inception:
        sentences.append("Not Inception's features: not comparable with published FIDs.")
    if min(counts.values()) < ENOUGH:
        few = f"Fewer than {ENOUGH} pictures on a side: the distance comes out too large, compare equal numbers only."
        sentences.append(few)
        if processes().is_main_process:
            logger.warning(f"{sentences[0]} {few}")
    return " ".join([*sentences, look_up("fid").protocol])


def _square(image: Image.Image, size: int | None) -> Image.Image:
    return image if size is None else ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)



__all__ = ["ENOUGH", "VisionFeatures", "evaluate_fid"]
