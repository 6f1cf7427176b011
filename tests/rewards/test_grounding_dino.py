"""GroundingDINO: from tokens to classes and from boxes to pixels by hand, and the wiring on a tiny random network."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from janus_hf.rewards.grounding_dino import GroundingDinoDetector
from tiny_judges import bert_tokenizer, grounding_dino, noise


class Answers:
    """Stands for a GroundingDINO on the CPU and returns the same outputs for any input."""

    def __init__(self, logits, boxes):
        self.outputs = SimpleNamespace(logits=logits, pred_boxes=boxes)
        self.config = SimpleNamespace(max_text_len=16)
        self.device, self.dtype = torch.device("cpu"), torch.float32

    def to(self, **kwargs):
        return self

    def eval(self):
        return self

    def __call__(self, **inputs):
        return self.outputs


def test_grounding_dino_maps_tokens_to_classes_and_boxes_to_pixels():
    _, processor = grounding_dino()
    text = processor.tokenizer("hot dog. cat.")["input_ids"]
    tokens = bert_tokenizer().convert_ids_to_tokens(text)
    assert tokens == ["[CLS]", "hot", "dog", ".", "cat", ".", "[SEP]"]
    logits = torch.full((1, 3, 16), -10.0)
    logits[0, 0, 4] = 2.0  # cat
    logits[0, 1, 1:3] = torch.tensor([1.0, 3.0])  # hot, dog
    logits[0, 2, 2] = 0.2  # dog without hot: half of sigmoid(0.2), below the threshold
    boxes = torch.tensor([[[0.5, 0.5, 0.5, 0.25], [0.25, 0.25, 0.5, 0.5], [0.5, 0.5, 1.0, 1.0]]])
    model = Answers(logits, boxes)
    metadata = [{"include": [{"class": "hot dog", "count": 1}], "exclude": [{"class": "cat", "count": 2}]}]
    (found,) = GroundingDinoDetector(model, processor, threshold=0.3).detect([noise(80, 40)], metadata)
    assert [d.label for d in found] == ["cat", "hot dog"]
    sigmoid = [1 / (1 + np.exp(-value)) for value in (2.0, 1.0, 3.0)]
    np.testing.assert_allclose([d.score for d in found], [sigmoid[0], (sigmoid[1] + sigmoid[2]) / 2], atol=1e-6)
    np.testing.assert_allclose([d.box for d in found], [(20, 15, 60, 25), (0, 0, 40, 20)], atol=1e-5)


def test_grounding_dino_is_wired_and_batches_texts_of_different_lengths():
    model, processor = grounding_dino()
    images = [noise(64, 64, 0), noise(64, 64, 1)]
    metadata = [
        {"include": [{"class": "cat", "count": 1}]},
        {"include": [{"class": "dog", "count": 1}, {"class": "apple", "count": 1}]},
    ]
    detector = GroundingDinoDetector(model, processor, threshold=0.0)
    together = detector.detect(images, metadata)
    assert {d.label for d in together[0]} == {"cat"}
    assert {d.label for d in together[1]} <= {"dog", "apple"}
    assert [len(found) for found in together] == [10, 10]
    for image, line, found in zip(images, metadata, together, strict=True):
        (alone,) = detector.detect([image], [line])
        np.testing.assert_allclose([d.score for d in found], [d.score for d in alone], atol=1e-5)
        np.testing.assert_allclose([d.box for d in found], [d.box for d in alone], atol=1e-3)


def test_classes_must_be_named_and_fit_the_text():
    model, processor = grounding_dino()
    with pytest.raises(ValueError, match="`classes` must name at least one class"):
        GroundingDinoDetector(model, processor).detect([noise(48, 32)])
    (found,) = GroundingDinoDetector(model, processor, classes=["cat"], threshold=0.0).detect([noise(48, 32)])
    assert {d.label for d in found} == {"cat"}
    many = GroundingDinoDetector(model, processor, classes=["cat"] * 9)
    with pytest.raises(ValueError, match="at most 16 tokens together, got 20"):
        many.detect([noise(48, 32)])
