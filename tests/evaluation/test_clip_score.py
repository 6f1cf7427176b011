"""CLIPScore against the logits of a tiny random CLIP, and against torchmetrics."""

from pathlib import Path

import numpy as np
import pytest
import torch
from image_files import PROMPTS, pixels, write
from PIL import Image
from transformers.utils import logging

from janus_hf.evaluation.benchmarks.image_metrics import evaluate_clip_score
from janus_hf.rewards.clip import Clip, ClipScore
from tiny_judges import clip


def by_hand(model, processor, images: dict[Path, str]) -> list[float]:
    """Compute 100 max(cos, 0) from CLIP's own logits, one pair of image and prompt at a time."""
    with torch.no_grad():
        logits = [
            model(**processor(text=[prompt], images=[Image.open(path)], return_tensors="pt")).logits_per_image.item()
            for path, prompt in images.items()
        ]
    return [max(100 * logit / model.logit_scale.exp().item(), 0) for logit in logits]


@pytest.fixture
def prompted(tmp_path) -> dict[Path, str]:
    return dict(zip(write(tmp_path / "images", len(PROMPTS), seed=0, size=(20, 24)), PROMPTS, strict=True))


def test_clip_score_is_the_mean_of_the_models_cosines(prompted):
    model, processor = clip()
    expected = by_hand(model, processor, prompted)
    assert 0 in expected
    assert len(set(expected)) > 3
    for batch_size in (1, 3, 16):
        report = evaluate_clip_score(prompted, ClipScore(model, processor, batch_size=batch_size))
        assert report.metrics == {"clipscore": pytest.approx(np.mean(expected), rel=1e-4)}  # float32, worst 2e-6
        np.testing.assert_allclose([row["score"] for row in report.rows], expected, rtol=1e-4, atol=1e-4)
        assert [(row["filename"], row["prompt"]) for row in report.rows] == [(str(k), v) for k, v in prompted.items()]


class ForTorchmetrics:
    """A CLIP as torchmetrics 1.9 expects it: features are tensors, which transformers 5 wraps in an output."""

    def __init__(self, clip: Clip) -> None:
        self.clip, self.config = clip, clip.model.config
        self.get_image_features = lambda pixels: clip.model.get_image_features(pixels).pooler_output
        self.get_text_features = lambda ids, mask: clip.model.get_text_features(ids, mask).pooler_output

    def to(self, device):
        return self


def test_clip_score_is_torchmetrics_where_no_cosine_is_negative(prompted):
    CLIPScore = pytest.importorskip("torchmetrics.multimodal").CLIPScore

    judge = Clip(*clip())
    positive = {
        path: prompt
        for (path, prompt), score in zip(
            prompted.items(), by_hand(judge.model, judge.processor, prompted), strict=True
        )
        if score > 0
    }
    assert len(positive) >= 2
    metric = CLIPScore(lambda: (ForTorchmetrics(judge), judge.processor))
    with torch.no_grad():
        metric.update(list(pixels(list(positive))), list(positive.values()))
    report = evaluate_clip_score(positive, ClipScore(judge.model, judge.processor))
    assert report.value == pytest.approx(metric.compute().item(), rel=1e-4)


def test_clip_score_leaves_out_what_cannot_be_read(prompted, tmp_path):
    scorer = ClipScore(*clip(), batch_size=2)
    whole = evaluate_clip_score(prompted, scorer)
    report = evaluate_clip_score({tmp_path / "none.png": "a", **prompted}, scorer)
    assert report.value == pytest.approx(whole.value, rel=1e-4)  # other batches round differently
    assert len(report.rows) == len(prompted)
    assert len(report.failures) == 1
    assert str(tmp_path / "none.png") in report.failures[0]
    nothing = evaluate_clip_score({tmp_path / "none.png": "a"}, scorer)
    assert (nothing.metrics, len(nothing.failures)) == ({}, 1)


def test_prompts_that_clip_cuts_are_counted_once(tmp_path, monkeypatch):
    warnings = []
    monkeypatch.setattr("janus_hf.rewards.clip.logger.warning", warnings.append)
    logging.warning_once.cache_clear()
    scorer = ClipScore(*clip(), batch_size=1)  # reads 48 tokens: 46 letters and two ends
    prompts = ["a" * 47, "a" * 47, "b" * 60, "a" * 46, "a cat"]  # two images of the first
    images = dict(zip(write(tmp_path, 5, seed=0), prompts, strict=True))
    assert "5 images. 2 of 4 prompts were cut to 48 tokens. " in evaluate_clip_score(images, scorer).protocol
    assert len(warnings) == 1
    whole = {path: prompt for path, prompt in images.items() if len(prompt) <= 46}
    assert "cut to" not in evaluate_clip_score(whole, scorer).protocol
