"""GenEval's detector: Mask2Former, as mmdet runs it.

Pictures are resized as its test pipeline does it, raw logits are post-processed as its fusion head does it. One thing
is not the same: the weights of `facebook/mask2former-swin-small-coco-instance` are another training run of the same
network, so scores near a threshold differ from the official ones.

Shapes: `Q` queries, `C` classes, `N` instances, `H W` pixels of the picture.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from .detectors import PretrainedDetector
from .geneval_rules import Detection
from .loading import group_indices


# COCO's 80 classes in COCO's order, by the names that GenEval's prompts use (its evaluation/object_names.txt).
COCO_NAMES = tuple(
    """person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, stop sign,
    parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella,
    handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard,
    surfboard, tennis racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange,
    broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, tv, laptop,
    computer mouse, tv remote, computer keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, book,
    clock, vase, scissors, teddy bear, hair drier, toothbrush""".replace("\n    ", " ").split(", ")
)
SCALE = (1333, 800)  # the longer and the shorter side may be at most so long
SIZE_DIVISOR = 32
# ImageNet's, of RGB in [0, 255]
MEAN = torch.tensor([123.675, 116.28, 103.53])
STD = torch.tensor([58.395, 57.12, 57.375])


def fit(image: Image.Image, scale: tuple[int, int] = SCALE) -> tuple[torch.Tensor, tuple[int, int]]:
    """Resize, normalise and pad a picture as mmdet's test pipeline does.

    The picture is enlarged or shrunk, in its own proportions, until it just fits into `scale`. Like OpenCV's, the
    bilinear resize does not smooth what it shrinks, and rounds to whole levels.

    Args:
        image: RGB.
        scale: The longer and the shorter side may be at most so long.

    Returns:
        `(3, H, W)` float32, padded with zeros below and on the right to multiples of 32, and the `(height, width)`
        without the padding.
    """
    width, height = image.size
    factor = min(max(scale) / max(width, height), min(scale) / min(width, height))
    size = int(height * factor + 0.5), int(width * factor + 0.5)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float()
    pixels = _resize(pixels, size).round()
    pixels = (pixels - MEAN[:, None, None]) / STD[:, None, None]
    down, right = (-side % SIZE_DIVISOR for side in size)
    return F.pad(pixels, (0, right, 0, down)), size


def _resize(maps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """`(N, H, W)` to `(N, *size)`, bilinear."""
    return F.interpolate(maps[None], size=size, mode="bilinear", align_corners=False)[0]


class Instances(NamedTuple):
    """Things found in one picture.

    Args:
        labels: `(N,)` int64, classes.
        scores: `(N,)` float32 in [0, 1].
        boxes: `(N, 4)` float32 `(x1, y1, x2, y2)`; the last two lie one pixel beyond the mask. Zeros if it is empty.
        masks: `(N, H, W)` bool.
    """

    labels: torch.Tensor
    scores: torch.Tensor
    boxes: torch.Tensor
    masks: torch.Tensor


def post_process_instances(
    class_queries_logits: torch.Tensor,
    masks_queries_logits: torch.Tensor,
    image_size: tuple[int, int],
    resized_size: tuple[int, int],
    padded_size: tuple[int, int],
    max_per_image: int = 100,
) -> Instances:
    """Mask2Former's instances in one picture, as mmdet 2.27's `MaskFormerFusionHead` has them.

    transformers' own `post_process_instance_segmentation` is no substitute: it works at 384 x 384, gives every query
    one label, and lets instances cover each other.

    Args:
        class_queries_logits: `(Q, C + 1)`, the last class being "nothing".
        masks_queries_logits: `(Q, h, w)` at the resolution of the network's output.
        image_size: `(height, width)` of the picture.
        resized_size: The same after resizing, without padding.
        padded_size: The same with padding: what the network saw.
        max_per_image: So many of the most probable pairs of query and class are instances: a query may be several.

    Returns:
        The instances by falling class probability. Their score is that probability times the mean probability of the
        mask's pixels.
    """
    probabilities = class_queries_logits.float().softmax(dim=-1)[:, :-1]
    num_classes = probabilities.shape[1]
    top, indices = probabilities.flatten().topk(min(max_per_image, probabilities.numel()))
    queries, of_query = (indices // num_classes).unique(return_inverse=True)

    logits = _resize(masks_queries_logits[queries].float(), padded_size)
    logits = _resize(logits[:, : resized_size[0], : resized_size[1]], image_size)
    masks = logits > 0
    mask_scores = (logits.sigmoid() * masks).sum(dim=(1, 2)) / (masks.sum(dim=(1, 2)) + 1e-6)
    return Instances(
        indices % num_classes, top * mask_scores[of_query], _tight_boxes(masks)[of_query], masks[of_query]
    )


def _tight_boxes(masks: torch.Tensor) -> torch.Tensor:
    """`(N, H, W)` bool to `(N, 4)`: the first and one past the last column and row that a mask touches."""
    firsts, ends = [], []
    for other in (1, 2):
        touched = masks.any(dim=other).int()
        firsts.append(touched.argmax(dim=1))
        ends.append(touched.shape[1] - touched.flip(1).argmax(dim=1))
    return torch.stack([*firsts, *ends], dim=1).float() * masks.flatten(1).any(dim=1, keepdim=True)


class Mask2FormerDetector(PretrainedDetector):
    """GenEval's detector: Mask2Former with a small Swin, trained on COCO's instances.

    It needs no processor: pictures are prepared by `fit`, outputs by `post_process_instances`.

    Args:
        model: Name, folder or `Mask2FormerForUniversalSegmentation`.
        names: What its classes are called, in their order. By default COCO's by GenEval's names.
        min_score: Detections at or below it are left out. The official rules look at none below 0.3.
        max_per_image: See `post_process_instances`.
        scale: See `fit`.
        colors, device, dtype, batch_size: As for `PretrainedDetector`. Only pictures of one size share a batch, so a
            picture's detections do not depend on its company.

    Raises:
        ImportError: If SciPy is missing, without which transformers does not build a Mask2Former.
        ValueError: If the model has another number of classes than there are names.
    """

    model_class, title = "Mask2FormerForUniversalSegmentation", "Mask2Former"
    needs_processor = False

    def __init__(
        self,
        model: Any = "facebook/mask2former-swin-small-coco-instance",
        *,
        names: Sequence[str] = COCO_NAMES,
        min_score: float = 0.05,
        max_per_image: int = 100,
        scale: tuple[int, int] = SCALE,
        batch_size: int = 4,
        **settings: Any,
    ) -> None:
        super().__init__(model, batch_size=batch_size, **settings)
        self.names, self.min_score, self.max_per_image, self.scale = tuple(names), min_score, max_per_image, scale

    def _load(self, name: str | os.PathLike[str], dtype: torch.dtype) -> Any:
        from transformers.utils import is_scipy_available

        if not is_scipy_available():
            raise ImportError("transformers builds a Mask2Former only where SciPy is installed: pip install scipy")
        return super()._load(name, dtype)

    @torch.no_grad()
    def _find(self, images: list[Image.Image], metadata: Sequence[Mapping[str, Any]] | None) -> list[list[Detection]]:
        num_labels = self.model.config.num_labels
        if num_labels != len(self.names):
            raise ValueError(
                f"The model tells {num_labels} classes apart, but there are {len(self.names)} names for them: pass "
                "names=[...] in the order of the model's classes."
            )
        found: list[list[Detection]] = [[] for _ in images]
        for (width, height), indices in group_indices(image.size for image in images).items():
            for batch in self._batches(len(indices)):
                prepared = [fit(images[index], self.scale) for index in indices[batch]]
                pixel_values = self._place(torch.stack([pixels for pixels, _ in prepared]))
                outputs = self.model(pixel_values=pixel_values)
                for index, classes, masks in zip(
                    indices[batch], outputs.class_queries_logits, outputs.masks_queries_logits, strict=True
                ):
                    padded = pixel_values.shape[-2], pixel_values.shape[-1]
                    instances = post_process_instances(
                        classes, masks, (height, width), prepared[0][1], padded, self.max_per_image
                    )
                    found[index] = self._detections(instances)
        return found

    def _detections(self, instances: Instances) -> list[Detection]:
        kept = Instances(*(values[instances.scores > self.min_score].cpu() for values in instances))
        return [
            Detection(self.names[label], score, tuple(box), mask=mask)
            for label, score, box, mask in zip(
                kept.labels.tolist(), kept.scores.tolist(), kept.boxes.tolist(), kept.masks.numpy(), strict=True
            )
        ]


__all__ = [
    "COCO_NAMES",
    "Instances",
    "Mask2FormerDetector",
    "fit",
    "post_process_instances",
]
