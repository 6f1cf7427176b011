"""Mask2Former, the object detector of the GenEval benchmark, with the pre- and post-processing of mmdet.

Images are resized as in mmdet's test pipeline, and raw logits are post-processed as in its fusion head
(`MaskFormerFusionHead`). One difference remains: the weights of `facebook/mask2former-swin-small-coco-instance` come
from another training run of the same network, so scores near a threshold differ from the official ones.

In the shapes of tensors, `Q` is the number of object queries, `C` of classes and `N` of instances (detected objects);
`H` and `W` are the height and width of the image.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import PreTrainedModel

from .detectors import PretrainedDetector
from .geneval_rules import Detection
from .loading import ModelSource, group_indices


# COCO's 80 classes in COCO's order, with the names that GenEval's prompts use (its evaluation/object_names.txt).
COCO_NAMES = tuple(
    """person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, stop sign,
    parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella,
    handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard,
    surfboard, tennis racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange,
    broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, tv, laptop,
    computer mouse, tv remote, computer keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, book,
    clock, vase, scissors, teddy bear, hair drier, toothbrush""".replace("\n    ", " ").split(", ")
)
SCALE = (1333, 800)  # upper bounds in pixels on the longer and the shorter side of a resized image
SIZE_DIVISOR = 32  # the sides of padded images are multiples of this number of pixels
# ImageNet's mean and standard deviation of RGB in [0, 255].
MEAN = torch.tensor([123.675, 116.28, 103.53])
STD = torch.tensor([58.395, 57.12, 57.375])


def fit(image: Image.Image, scale: tuple[int, int] = SCALE) -> tuple[torch.Tensor, tuple[int, int]]:
    """Resize, normalise and pad an image as mmdet's test pipeline does.

    The image is resized, with its aspect ratio kept, to the largest size within the bounds `scale`. The bilinear
    interpolation is OpenCV's: it does not antialias an image that it shrinks, and rounds to integer pixel values.

    Args:
        image: RGB image.
        scale: Upper bounds in pixels on the longer and the shorter side.

    Returns:
        The normalised pixels `(3, H', W')` float32 of the resized image, padded with zeros at the bottom and on the
        right to multiples of 32, and the `(height, width)` of the resized image without the padding.
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
    """Resize N channels or masks `(N, H, W)` to `(N, *size)` by bilinear interpolation without antialiasing."""
    return F.interpolate(maps[None], size=size, mode="bilinear", align_corners=False)[0]


class Instances(NamedTuple):
    """The N objects found in one image, in descending order of class probability.

    Args:
        labels: Class indices `(N,)` int64.
        scores: Scores `(N,)` float32 in [0, 1].
        boxes: Boxes `(N, 4)` float32 as `(x1, y1, x2, y2)` in pixels, where x2 and y2 lie one pixel beyond the mask.
            The box of an empty mask is all zeros.
        masks: Masks `(N, H, W)` bool over the whole image.
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
    """Turn Mask2Former's outputs for one image into detected objects as mmdet 2.27's `MaskFormerFusionHead` does.

    transformers' own `post_process_instance_segmentation` cannot be used instead: it works at 384 x 384 pixels, gives
    every query only one label, and lets instances overwrite each other's pixels.

    Args:
        class_queries_logits: Class logits `(Q, C + 1)` of Q object queries; the last class is "no object".
        masks_queries_logits: Mask logits `(Q, h, w)` at the resolution of the network's output.
        image_size: `(height, width)` of the image.
        resized_size: `(height, width)` of the resized image, without padding.
        padded_size: `(height, width)` of the resized image with padding, which is the network's input.
        max_per_image: Maximum number of instances. Each instance is a pair of a query and a class, and the most
            probable pairs are taken, so one query may give several instances of different classes.

    Returns:
        The instances in descending order of class probability. An instance's score is its class probability times the
        mean probability of the pixels inside its mask.
    """
    probabilities = class_queries_logits.float().softmax(dim=-1)[:, :-1]
    num_classes = probabilities.shape[1]
    top, indices = probabilities.flatten().topk(min(max_per_image, probabilities.numel()))
    queries, of_query = (indices // num_classes).unique(return_inverse=True)

    # Instances of the same query share its mask, so each query's mask is resized only once: first to the network's
    # input, then, without the padding, to the image.
    logits = _resize(masks_queries_logits[queries].float(), padded_size)
    logits = _resize(logits[:, : resized_size[0], : resized_size[1]], image_size)
    masks = logits > 0
    mask_scores = (logits.sigmoid() * masks).sum(dim=(1, 2)) / (masks.sum(dim=(1, 2)) + 1e-6)
    return Instances(
        indices % num_classes, top * mask_scores[of_query], _tight_boxes(masks)[of_query], masks[of_query]
    )


def _tight_boxes(masks: torch.Tensor) -> torch.Tensor:
    """Return the bounding boxes `(N, 4)` float32 of masks `(N, H, W)` bool; the box of an empty mask is all zeros.

    A box is `(x1, y1, x2, y2)`: x1 and y1 are the first column and row that contain a pixel of the mask, and x2 and y2
    are one past the last.
    """
    firsts, ends = [], []
    for other in (1, 2):
        touched = masks.any(dim=other).int()
        firsts.append(touched.argmax(dim=1))
        ends.append(touched.shape[1] - touched.flip(1).argmax(dim=1))
    return torch.stack([*firsts, *ends], dim=1).float() * masks.flatten(1).any(dim=1, keepdim=True)


class Mask2FormerDetector(PretrainedDetector):
    """Object detector of the GenEval benchmark: Mask2Former with a Swin-S backbone, trained on COCO's instances.

    It needs no processor: `fit` prepares the images, and `post_process_instances` turns the outputs into objects.

    Args:
        model: Name on the Hub, folder, or loaded `Mask2FormerForUniversalSegmentation`.
        names: Names of the model's classes, in the order of its class indices. By default GenEval's names of COCO's
            classes.
        min_score: Detections with a score at or below this number are left out. GenEval's official rules ignore all
            below 0.3.
        max_per_image: Maximum number of detections per image, before those with low scores are left out.
        scale: Upper bounds in pixels on the longer and the shorter side of the resized images.
        batch_size: Number of images per forward pass. Only images of one size share a batch, so that an image's
            detections do not depend on the other images.
        settings: `colors`, `device` and `dtype`; see `PretrainedDetector`.

    Raises:
        ImportError: When the model is loaded, if SciPy is missing, which transformers needs to build a Mask2Former.
        ValueError: In `detect`, if the number of the model's classes differs from that of `names`.
    """

    model_class, title = "Mask2FormerForUniversalSegmentation", "Mask2Former"
    needs_processor = False

    def __init__(
        self,
        model: ModelSource = "facebook/mask2former-swin-small-coco-instance",
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

    def _load(self, name: str | os.PathLike[str], dtype: torch.dtype | str) -> PreTrainedModel:
        from transformers.utils import is_scipy_available

        if not is_scipy_available():
            raise ImportError("transformers builds a Mask2Former only if SciPy is installed: pip install scipy.")
        return super()._load(name, dtype)

    @torch.no_grad()
    def _find(self, images: list[Image.Image], metadata: Sequence[Mapping[str, Any]] | None) -> list[list[Detection]]:
        num_labels = self.model.config.num_labels
        if num_labels != len(self.names):
            raise ValueError(
                f"`names` must name the model's {num_labels} classes, got {len(self.names)} names: pass names=[...] "
                "in the order of the model's classes."
            )
        found: list[list[Detection]] = [[] for _ in images]
        for (width, height), indices in group_indices(image.size for image in images).items():
            for batch in self._batches(len(indices)):
                prepared = [fit(images[index], self.scale) for index in indices[batch]]
                pixel_values = self._to_model(torch.stack([pixels for pixels, _ in prepared]))
                outputs = self.model(pixel_values=pixel_values)
                for index, classes, masks in zip(
                    indices[batch], outputs.class_queries_logits, outputs.masks_queries_logits, strict=True
                ):
                    padded = pixel_values.shape[-2], pixel_values.shape[-1]
                    # All images of a batch have the same size, so they share the resized size of the first.
                    instances = post_process_instances(
                        classes, masks, (height, width), prepared[0][1], padded, self.max_per_image
                    )
                    found[index] = self._detections(instances)
        return found

    def _detections(self, instances: Instances) -> list[Detection]:
        """Return the instances of one image with a score above `self.min_score` as detections."""
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
