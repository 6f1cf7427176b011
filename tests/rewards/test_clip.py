"""CLIP's rewards against the model's own output, and texts that are longer than it reads."""

import numpy as np
import torch
import transformers
from transformers.utils import logging

from janus_hf.rewards.clip import ClipScore, PickScore
from tiny_judges import clip, noise


def test_clip_scores_are_those_of_the_model():
    model, processor = clip()
    images, prompts = [noise(seed=seed) for seed in range(5)], ["a cat", "a red dog", "no", "the blue apple", "a"]
    with torch.no_grad():
        pairs = [
            model(**processor(text=[prompt], images=[image], return_tensors="pt")).logits_per_image.item()
            for image, prompt in zip(images, prompts, strict=True)
        ]
    np.testing.assert_allclose(PickScore(model, processor, batch_size=2)(images, prompts), pairs, rtol=1e-4)
    scale = model.logit_scale.exp().item()
    expected = [max(100 * pair / scale, 0) for pair in pairs]
    np.testing.assert_allclose(
        ClipScore(model, processor, batch_size=2)(images, prompts), expected, rtol=1e-4, atol=1e-4
    )
    assert len(set(pairs)) == 5
    assert min(pairs) < 0 < max(pairs)  # so that negative cosines are tested as well
    assert ClipScore(model, processor)([], []) == []


def test_prompts_longer_than_clip_reads_are_cut_with_one_warning(monkeypatch):
    warnings = []
    monkeypatch.setattr("janus_hf.rewards.clip.logger.warning", warnings.append)
    logging.warning_once.cache_clear()
    reward = ClipScore(*clip())
    long, short = "a" * 60, "a cat"
    reward([noise()] * 2, [long[:46], short])  # 46 letters, start and end token are 48
    assert warnings == []
    scores = [reward([noise()] * 3, [text, long[:46], short]) for text in (long, "a" * 50)]
    assert warnings == ["CLIP reads 48 tokens: the ends of longer texts are not seen."]
    assert scores[0] == scores[1]  # nothing but their ends differs
    assert reward.is_cut([long, long[:46], long[:47], ""]) == [True, False, True, False]
    assert reward.is_cut([]) == []


def test_pick_score_knows_its_processor(monkeypatch):
    monkeypatch.setattr(transformers.AutoProcessor, "from_pretrained", lambda name: f"processor of {name}")
    assert PickScore().processor == "processor of laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
    assert PickScore("a/folder").processor == "processor of a/folder"
