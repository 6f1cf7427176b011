"""Rewards: shares by hand on fixed detections, and models' scores against the models' own outputs."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.utils import logging

from janus_hf.rewards.clip import ClipScore, PickScore
from janus_hf.rewards.geneval_rewards import GenEvalReward, PositionReward, ShapesReward, as_metadata
from janus_hf.rewards.geneval_rules import Detection, Rules
from janus_hf.rewards.mask2former import Mask2FormerDetector
from janus_hf.rewards.vqa import VQAReward
from janus_hf.shapes import TAGS, make_drawing, picture
from tiny_judges import bert_tokenizer, blip, clip, git, mask2former


def noise(seed=0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, size=(4, 4, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((32, 32))


class Given:
    """A detector that finds what it is told."""

    name = "given"

    def __init__(self, *found):
        self.found, self.asked = list(found), None

    def detect(self, images, metadata=None):
        self.asked = metadata
        assert len(images) == len(self.found)
        return self.found


def thing(label, left, top=0.0, confidence=0.95, color=None):
    return Detection(label, confidence, (left, top, left + 10.0, top + 10.0), color)


DOG_RIGHT_OF_CAT = {
    "tag": "position",
    "include": [{"class": "cat", "count": 1}, {"class": "dog", "count": 1, "position": ["right of", 0]}],
    "exclude": [{"class": "apple", "count": 1}],
    "prompt": "a dog right of a cat",
}
RIGHT = [thing("cat", 0.0), thing("dog", 40.0)]
WRONG = [thing("cat", 40.0), thing("dog", 0.0)]


def call(reward, count, **columns):
    return reward([noise()] * count, ["a prompt"] * count, **columns)


def test_geneval_is_one_or_zero():
    reward = GenEvalReward(Given(RIGHT, WRONG, [*RIGHT, thing("apple", 80.0)], []))
    assert call(reward, 4, metadata=[DOG_RIGHT_OF_CAT] * 4, other=[0] * 4) == [1.0, 0.0, 0.0, 0.0]
    assert reward.detector.asked == [DOG_RIGHT_OF_CAT] * 4


def test_partial_credit_is_the_share_of_clauses():
    found = [RIGHT, WRONG, [*RIGHT, thing("apple", 80.0)], [thing("dog", 0.0)], [*WRONG, thing("apple", 80.0)]]
    reward = GenEvalReward(Given(*found), partial=True)
    # Three clauses. Without a cat, the dog has no target either.
    expected = [1.0, 2 / 3, 2 / 3, 1 / 3, 1 / 3]
    np.testing.assert_allclose(call(reward, 5, metadata=[DOG_RIGHT_OF_CAT] * 5), expected)


def test_rules_can_be_others():
    unsure = [thing("cat", 0.0, confidence=0.2), thing("dog", 40.0)]
    assert call(GenEvalReward(Given(unsure)), 1, metadata=[DOG_RIGHT_OF_CAT]) == [0.0]
    assert call(GenEvalReward(Given(unsure), rules=Rules(threshold=0.1)), 1, metadata=[DOG_RIGHT_OF_CAT]) == [1.0]


def test_metadata_may_be_json_or_rows_of_a_table():
    row = {"tag": "position", "include": [dict.fromkeys(("class", "count", "color", "position")) for _ in range(2)]}
    for clause, own in zip(row["include"], DOG_RIGHT_OF_CAT["include"], strict=True):
        clause.update(own)
    assert as_metadata(row | {"exclude": None}) == {key: DOG_RIGHT_OF_CAT[key] for key in ("tag", "include")}
    assert as_metadata(json.dumps(DOG_RIGHT_OF_CAT)) == DOG_RIGHT_OF_CAT
    assert call(GenEvalReward(Given(RIGHT, WRONG)), 2, metadata=[row, json.dumps(row)]) == [1.0, 0.0]
    with pytest.raises(TypeError, match="a dict or as JSON of one"):
        as_metadata("[1]")


def test_missing_columns_and_lengths_are_refused():
    with pytest.raises(ValueError, match=r"GenEvalReward needs the column 'metadata'.*got \['tag'\]"):
        call(GenEvalReward(Given([])), 1, tag=["position"])
    with pytest.raises(ValueError, match="has 2 values for 1 pictures"):
        call(GenEvalReward(Given([])), 1, metadata=[DOG_RIGHT_OF_CAT] * 2)
    with pytest.raises(ValueError, match="ShapesReward got 1 pictures but 2 prompts"):
        ShapesReward()([noise()], ["a", "b"], metadata=[{}])
    with pytest.raises(ValueError, match="ClipScore got 1 pictures but 0 prompts"):
        ClipScore()([noise()], [])


def test_geneval_with_tiny_random_models():
    """Random weights find random things: asked for one that is found and for one that is not."""
    detector = Mask2FormerDetector(mask2former(), scale=(64, 64), min_score=0.0)
    (found,) = detector.detect([noise()])
    rules = Rules(threshold=0.0, counting_threshold=0.0)
    asked = [{"tag": "single_object", "include": [{"class": name, "count": 1}]} for name in (found[0].label, "yeti")]
    assert call(GenEvalReward(detector, rules=rules), 2, metadata=asked) == [1.0, 0.0]


def test_shapes_reward_knows_the_truth():
    rng = np.random.default_rng(0)
    drawings = [make_drawing(tag, rng) for tag in TAGS for _ in range(3)]
    pictures, prompts = [picture(d.scene) for d in drawings], [d.prompt for d in drawings]
    metadata = [d.metadata for d in drawings]
    assert ShapesReward()(pictures, prompts, metadata=metadata) == [1.0] * len(drawings)
    blank = [Image.new("RGB", pictures[0].size, "white")] * len(drawings)
    assert ShapesReward()(blank, prompts, metadata=metadata) == [0.0] * len(drawings)
    partial = ShapesReward(partial=True)(blank, prompts, metadata=metadata)
    # On a blank picture only the exclude clauses hold.
    expected = [len(m.get("exclude", [])) / (len(m["include"]) + len(m.get("exclude", []))) for m in metadata]
    np.testing.assert_allclose(partial, expected)


# Positions


def test_position_looks_at_nothing_else():
    red = [clause | {"color": "red"} for clause in DOG_RIGHT_OF_CAT["include"]]
    detector = Given(RIGHT, WRONG, [thing("dog", 0.0)], [*RIGHT, thing("apple", 0.0)])
    assert call(PositionReward(detector), 4, metadata=[DOG_RIGHT_OF_CAT | {"include": red}] * 4) == [
        1.0,
        0.0,
        0.0,
        1.0,
    ]
    assert {clause["class"] for clause in detector.asked[0]["include"]} == {"cat", "dog"}
    assert not any("color" in clause for clause in detector.asked[0]["include"])  # so none is looked at


def test_position_is_the_share_of_relations():
    include = [
        {"class": "cat", "count": 1},
        {"class": "dog", "count": 1, "position": ["right of", 0]},
        {"class": "apple", "count": 1, "position": ["below", 0]},
    ]
    found = [thing("cat", 0.0), thing("dog", 40.0), thing("apple", 0.0, top=40.0)]
    above = [thing("cat", 0.0, top=40.0), thing("dog", 40.0, top=40.0), thing("apple", 0.0)]
    lines = [{"tag": "position", "include": include}] * 2
    assert call(PositionReward(Given(found, above)), 2, metadata=lines) == [1.0, 0.5]


def test_position_needs_positions():
    with pytest.raises(ValueError, match=r"without a position clause \(tag 'counting'\)"):
        call(PositionReward(Given([])), 1, metadata=[{"tag": "counting", "include": [{"class": "cat", "count": 1}]}])
    with pytest.raises(ValueError, match="refers to none of the 1 clauses"):
        call(
            PositionReward(Given([])),
            1,
            metadata=[{"include": [{"class": "a", "count": 1, "position": ["above", 1]}]}],
        )


# CLIP


def test_clip_scores_are_those_of_the_model():
    model, processor = clip()
    images, prompts = [noise(seed) for seed in range(5)], ["a cat", "a red dog", "no", "the blue apple", "a"]
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
    assert min(pairs) < 0 < max(pairs)  # so that the zero is tested as well
    assert ClipScore(model, processor)([], []) == []


def test_prompts_longer_than_clip_reads_are_cut_with_one_warning(monkeypatch):
    warnings = []
    monkeypatch.setattr("janus_hf.rewards.clip.logger.warning", warnings.append)
    logging.warning_once.cache_clear()
    reward = ClipScore(*clip())
    long, short = "a" * 60, "a cat"
    reward([noise()] * 2, [long[:46], short])  # 46 letters and two ends are 48
    assert warnings == []
    scores = [reward([noise()] * 3, [text, long[:46], short]) for text in (long, "a" * 50)]
    assert warnings == ["CLIP reads 48 tokens: the ends of longer texts are not seen."]
    assert scores[0] == scores[1]  # nothing but their ends differs
    assert reward.is_cut([long, long[:46], long[:47], ""]) == [True, False, True, False]
    assert reward.is_cut([]) == []


def test_pick_score_knows_its_processor():
    assert PickScore()._processor == "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
    assert PickScore("a/folder")._processor == "a/folder"


# Questions


QUESTIONS = ["a red apple?", ["is the dog left of the cat?", "a cat?"], ["no?"]]


def first_token_logits(model, processor, image, question):
    """By the model's own `generate`, one at a time."""
    pixels = processor.image_processor(images=[image], return_tensors="pt")["pixel_values"]
    text = processor.tokenizer([question], return_tensors="pt")["input_ids"]
    text = text[:, :-1] if model.config.model_type == "git" else text  # "[CLS] question" is continued
    output = model.generate(
        input_ids=text,
        pixel_values=pixels,
        max_new_tokens=1,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    return output.logits[0][0]


@pytest.mark.parametrize("build", [git, blip], ids=["git", "blip"])
def test_answers_are_those_that_generate_would_begin_with(build):
    model, processor = build()
    images = [noise(seed) for seed in range(3)]
    rewards = VQAReward(model, processor, batch_size=3)(images, [""] * 3, questions=QUESTIONS)
    yes, no = bert_tokenizer().convert_tokens_to_ids(["yes", "no"])
    expected, hard = [], []
    for image, own in zip(images, QUESTIONS, strict=True):
        logits = [first_token_logits(model, processor, image, q) for q in ([own] if isinstance(own, str) else own)]
        shares = [(row[yes].exp() / (row[yes].exp() + row[no].exp())).item() for row in logits]
        expected.append(np.mean(shares))
        hard.append(np.mean([share > 0.5 for share in shares]))
    np.testing.assert_allclose(rewards, expected, atol=1e-5)
    assert len({round(reward, 6) for reward in rewards}) == 3
    assert VQAReward(model, processor, hard=True)(images, [""] * 3, questions=QUESTIONS) == hard


def test_questions_are_needed():
    reward = VQAReward(*git())
    with pytest.raises(ValueError, match="VQAReward needs the column 'questions'"):
        call(reward, 1)
    with pytest.raises(ValueError, match="Picture 1 has no question"):
        call(reward, 2, questions=["a cat?", []])


def test_models_that_cannot_be_asked_are_refused():
    model, processor = clip()
    with pytest.raises(ValueError, match="of type 'git' or 'blip', got 'clip'"):
        VQAReward(model, git()[1]).probabilities([noise()], ["a cat?"])
    with pytest.raises(ValueError, match="must know 'yes' as one token"):
        VQAReward(git()[0], processor).probabilities([noise()], ["a cat?"])


def test_rewards_have_names_for_a_trainers_log():
    rewards = [GenEvalReward(Given()), ShapesReward(), PositionReward(Given()), ClipScore(), PickScore(), VQAReward()]
    names = [reward.__name__ for reward in rewards]
    assert names == ["geneval", "shapes", "position", "clip_score", "pick_score", "vqa"]
