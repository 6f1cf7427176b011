"""Object detector that runs GroundingDINO, which finds objects of the classes that a text names."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image

from .detectors import PretrainedDetector
from .geneval_rules import Detection
from .loading import ModelSource, ProcessorSource


class GroundingDinoDetector(PretrainedDetector):
    """Object detector that runs GroundingDINO, which finds objects of the classes that a text names.

    T2I-R1's reward for positions uses it. GenEval's published numbers were measured with Mask2Former instead.

    Args:
        model: Name on the Hub, folder, or loaded `GroundingDinoForObjectDetection`.
        processor: The model's processor; by default the one saved under the model's name.
        classes: Names of the classes to find; by default those that each image's metadata require or exclude.
        threshold: Detections with a score at or below this number are left out.
        batch_size: Number of images per forward pass.
        settings: `colors`, `device` and `dtype`; see `PretrainedDetector`.

    Raises:
        ValueError: In `detect`, if neither `classes` nor the metadata name a class, or if the names together have more
            tokens than the model can read.
    """

    model_class, title = "GroundingDinoForObjectDetection", "GroundingDINO"

    def __init__(
        self,
        model: ModelSource = "IDEA-Research/grounding-dino-tiny",
        processor: ProcessorSource = None,
        *,
        classes: Sequence[str] | None = None,
        threshold: float = 0.3,
        batch_size: int = 4,
        **settings: Any,
    ) -> None:
        super().__init__(model, processor, batch_size=batch_size, **settings)
        self.classes, self.threshold = classes, threshold

    @torch.no_grad()
    def _find(self, images: list[Image.Image], metadata: Sequence[Mapping[str, Any]] | None) -> list[list[Detection]]:
        classes = [self._classes(metadata[i] if metadata is not None else {}) for i in range(len(images))]
        found: list[list[Detection]] = []
        for batch in self._batches(len(images)):
            texts = [". ".join(names).lower() + "." for names in classes[batch]]
            inputs = self.processor(images=images[batch], text=texts, padding=True, return_tensors="pt")
            if inputs["input_ids"].shape[1] > self.model.config.max_text_len:
                raise ValueError(
                    f"`classes` must have at most {self.model.config.max_text_len} tokens together, got "
                    f"{inputs['input_ids'].shape[1]}: find fewer classes at a time."
                )
            inputs = inputs.to(self.model.device)
            outputs = self.model(**inputs | {"pixel_values": self._to_model(inputs["pixel_values"])})
            rows = zip(images[batch], classes[batch], outputs.logits, outputs.pred_boxes, strict=True)
            found += [self._detections(*row) for row in rows]
        return found

    def _classes(self, metadata: Mapping[str, Any]) -> list[str]:
        """Return the names of the classes to find in an image: `self.classes`, else those in its metadata, each once.

        Args:
            metadata: The requirements of the image's prompt: a line of GenEval's metadata.

        Raises:
            ValueError: If there is no class.
        """
        clauses = [*(metadata.get("include") or ()), *(metadata.get("exclude") or ())]
        classes = list(self.classes or dict.fromkeys(clause["class"] for clause in clauses))
        if not classes:
            raise ValueError(
                "`classes` must name at least one class, got none: pass classes=[...], or metadata with clauses."
            )
        return classes

    def _detections(
        self, image: Image.Image, classes: list[str], logits: torch.Tensor, boxes: torch.Tensor
    ) -> list[Detection]:
        """Turn GroundingDINO's outputs for one image into detections: one per object query whose score is high enough.

        A query's probability of a class is the mean of its token probabilities over the class's tokens in the text
        "[CLS] class. class. [SEP]". The query's label is the most probable class, and its score is that probability. A
        query is left out if its score is not above `self.threshold`.

        Args:
            image: The image; only its size is used.
            classes: Names of the classes, in the order of the text.
            logits: `(queries, tokens)`, one logit per token of the text.
            boxes: `(queries, 4)`: x and y of the centre, width and height, as shares of the image's width and height.
        """
        probabilities, start = [], 1  # the first token is [CLS]
        for name in classes:
            end = start + len(self.processor.tokenizer(name.lower(), add_special_tokens=False)["input_ids"])
            probabilities.append(logits[:, start:end].float().sigmoid().mean(dim=1))
            start = end + 1  # skip the full stop after the class
        scores, labels = torch.stack(probabilities, dim=1).max(dim=1)
        centers, sizes = boxes.float().cpu().split(2, dim=1)
        corners = torch.cat([centers - sizes / 2, centers + sizes / 2], dim=1) * torch.tensor(image.size * 2)
        return [
            Detection(classes[label], score, tuple(box))
            for label, score, box in zip(labels.tolist(), scores.tolist(), corners.tolist(), strict=True)
            if score > self.threshold
        ]


__all__ = ["GroundingDinoDetector"]
