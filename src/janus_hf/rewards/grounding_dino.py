"""GroundingDINO: a detector that looks for words."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image

from .detectors import PretrainedDetector
from .geneval_rules import Detection


class GroundingDinoDetector(PretrainedDetector):
    """Finds what it is asked for in words: the classes that metadata speak of.

    GenEval's published numbers are not made with it; T2I-R1's reward of positions is.

    Args:
        model: Name, folder or `GroundingDinoForObjectDetection`.
        processor: Its processor.
        classes: What to look for; by default the classes of each picture's metadata.
        threshold: Detections at or below this score are left out.
        colors, device, dtype, batch_size: As for `PretrainedDetector`.

    Raises:
        ValueError: If neither classes nor metadata say what to look for, or if they are too many for the model's text.
    """

    model_class, title = "GroundingDinoForObjectDetection", "GroundingDINO"

    def __init__(
        self,
        model: Any = "IDEA-Research/grounding-dino-tiny",
        processor: Any = None,
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
                    f"The classes to look for make {inputs['input_ids'].shape[1]} tokens, the model reads "
                    f"{self.model.config.max_text_len}: look for fewer at a time."
                )
            inputs = inputs.to(self.model.device)
            outputs = self.model(**inputs | {"pixel_values": self._place(inputs["pixel_values"])})
            rows = zip(images[batch], classes[batch], outputs.logits, outputs.pred_boxes, strict=True)
            found += [self._detections(*row) for row in rows]
        return found

    def _classes(self, metadata: Mapping[str, Any]) -> list[str]:
        clauses = [*(metadata.get("include") or ()), *(metadata.get("exclude") or ())]
        classes = list(self.classes or dict.fromkeys(clause["class"] for clause in clauses))
        if not classes:
            raise ValueError("Nothing to look for: pass classes=[...], or metadata whose clauses name classes.")
        return classes

    def _detections(
        self, image: Image.Image, classes: list[str], logits: torch.Tensor, boxes: torch.Tensor
    ) -> list[Detection]:
        """A query's probability of a class is the mean over the class's tokens in "[CLS] class. class. [SEP]"."""
        probabilities, start = [], 1
        for name in classes:
            end = start + len(self.processor.tokenizer(name.lower(), add_special_tokens=False)["input_ids"])
            probabilities.append(logits[:, start:end].float().sigmoid().mean(dim=1))
            start = end + 1  # past the full stop
        scores, labels = torch.stack(probabilities, dim=1).max(dim=1)
        centers, sizes = boxes.float().cpu().split(2, dim=1)
        corners = torch.cat([centers - sizes / 2, centers + sizes / 2], dim=1) * torch.tensor(image.size * 2)
        return [
            Detection(classes[label], score, tuple(box))
            for label, score, box in zip(labels.tolist(), scores.tolist(), corners.tolist(), strict=True)
            if score > self.threshold
        ]


__all__ = ["GroundingDinoDetector"]
