"""Rewards by GenEval's rules: shares worked out by hand on fixed detections."""

import json

import numpy as np
import pytest
from PIL import Image

from janus_hf.rewards.geneval_rewards import GenEvalReward, PositionReward, ShapesReward, as_metadata
from janus_hf.rewards.geneval_rules import Detection, Rules
from janus_hf.rewards.mask2former import Mask2FormerDetector
from janus_hf.shapes import TAGS, make_drawing, picture
from tiny_judges import mask2former, noise


class Given:
    """A detector that returns the detections it was made with and records the metadata it was called with."""

    name = "given"

    def __init__(self, *found):
        self.found, self.metadata = list(found), None

    def detect(self, images, metadata=None):
        self.metadata = metadata
        assert len(images) == len(self.found)
        return self.found


def detected(label, left, top=0.0, confidence=0.95, color=None):
    return Detection(label, confidence, (left, top, left + 10.0, top + 10.0), color)


DOG_RIGHT_OF_CAT = {
    "tag": "position",
    "include": [{"class": "cat", "count": 1}, {"class": "dog", "count": 1, "position": ["right of", 0]}],
    "exclude": [{"class": "apple", "count": 1}],
    "prompt": "a dog right of a cat",
}
RIGHT = [detected("cat", 0.0), detected("dog", 40.0)]
WRONG = [detected("cat", 40.0), detected("dog", 0.0)]


def call(reward, count, **columns):
    return reward([noise()] * count, ["a prompt"] * count, **columns)


def test_geneval_is_one_or_zero():
    reward = GenEvalReward(Given(RIGHT, WRONG, [*RIGHT, detected("apple", 80.0)], []))
    assert call(reward, 4, metadata=[DOG_RIGHT_OF_CAT] * 4, other=[0] * 4) == [1.0, 0.0, 0.0, 0.0]
    assert reward.detector.metadata == [DOG_RIGHT_OF_CAT] * 4


def test_partial_credit_is_the_share_of_clauses():
    found = [
        RIGHT,
        WRONG,
        [*RIGHT, detected("apple", 80.0)],
        [detected("dog", 0.0)],
        [*WRONG, detected("apple", 80.0)],
    ]
    reward = GenEvalReward(Given(*found), partial=True)
    # Three clauses. Without a cat, the dog has no target either.
    expected = [1.0, 2 / 3, 2 / 3, 1 / 3, 1 / 3]
    np.testing.assert_allclose(call(reward, 5, metadata=[DOG_RIGHT_OF_CAT] * 5), expected)


def test_thresholds_can_be_changed():
    unsure = [detected("cat", 0.0, confidence=0.2), detected("dog", 40.0)]
    assert call(GenEvalReward(Given(unsure)), 1, metadata=[DOG_RIGHT_OF_CAT]) == [0.0]
    assert call(GenEvalReward(Given(unsure), rules=Rules(threshold=0.1)), 1, metadata=[DOG_RIGHT_OF_CAT]) == [1.0]


def test_metadata_may_be_json_or_rows_of_a_table():
    row = {"tag": "position", "include": [dict.fromkeys(("class", "count", "color", "position")) for _ in range(2)]}
    for clause, own in zip(row["include"], DOG_RIGHT_OF_CAT["include"], strict=True):
        clause.update(own)
    assert as_metadata(row | {"exclude": None}) == {key: DOG_RIGHT_OF_CAT[key] for key in ("tag", "include")}
    assert as_metadata(json.dumps(DOG_RIGHT_OF_CAT)) == DOG_RIGHT_OF_CAT
    assert call(GenEvalReward(Given(RIGHT, WRONG)), 2, metadata=[row, json.dumps(row)]) == [1.0, 0.0]
    with pytest.raises(TypeError, match="must be a dict or JSON of a dict"):
        as_metadata("[1]")


def test_geneval_with_tiny_random_models():
    """Random weights find random objects; one prompt is about an object that is found, the other about none."""
    detector = Mask2FormerDetector(mask2former(), scale=(64, 64), min_score=0.0)
    (found,) = detector.detect([noise()])
    rules = Rules(threshold=0.0, counting_threshold=0.0)
    metadata = [
        {"tag": "single_object", "include": [{"class": name, "count": 1}]} for name in (found[0].label, "yeti")
    ]
    assert call(GenEvalReward(detector, rules=rules), 2, metadata=metadata) == [1.0, 0.0]


def test_shapes_reward_knows_the_truth():
    rng = np.random.default_rng(0)
    drawings = [make_drawing(tag, rng) for tag in TAGS for _ in range(3)]
    images, prompts = [picture(d.scene) for d in drawings], [d.prompt for d in drawings]
    metadata = [d.metadata for d in drawings]
    assert ShapesReward()(images, prompts, metadata=metadata) == [1.0] * len(drawings)
    blank = [Image.new("RGB", images[0].size, "white")] * len(drawings)
    assert ShapesReward()(blank, prompts, metadata=metadata) == [0.0] * len(drawings)
    partial = ShapesReward(partial=True)(blank, prompts, metadata=metadata)
    # On a blank image only the exclude clauses hold.
    expected = [len(m.get("exclude", [])) / (len(m["include"]) + len(m.get("exclude", []))) for m in metadata]
    np.testing.assert_allclose(partial, expected)


# Positions


def test_position_ignores_colours_and_other_classes():
    red = [clause | {"color": "red"} for clause in DOG_RIGHT_OF_CAT["include"]]
    detector = Given(RIGHT, WRONG, [detected("dog", 0.0)], [*RIGHT, detected("apple", 0.0)])
    assert call(PositionReward(detector), 4, metadata=[DOG_RIGHT_OF_CAT | {"include": red}] * 4) == [
        1.0,
        0.0,
        0.0,
        1.0,
    ]
    assert {clause["class"] for clause in detector.metadata[0]["include"]} == {"cat", "dog"}
    assert not any("color" in clause for clause in detector.metadata[0]["include"])  # so no colour is determined


def test_position_is_the_share_of_relations():
    include = [
        {"class": "cat", "count": 1},
        {"class": "dog", "count": 1, "position": ["right of", 0]},
        {"class": "apple", "count": 1, "position": ["below", 0]},
    ]
    found = [detected("cat", 0.0), detected("dog", 40.0), detected("apple", 0.0, top=40.0)]
    above = [detected("cat", 0.0, top=40.0), detected("dog", 40.0, top=40.0), detected("apple", 0.0)]
    lines = [{"tag": "position", "include": include}] * 2
    assert call(PositionReward(Given(found, above)), 2, metadata=lines) == [1.0, 0.5]


def test_metadata_without_positions_are_refused():
    with pytest.raises(ValueError, match="must have a clause with a position .* tag 'counting'"):
        call(PositionReward(Given([])), 1, metadata=[{"tag": "counting", "include": [{"class": "cat", "count": 1}]}])
    with pytest.raises(ValueError, match="must refer to one of the 1 clauses"):
        call(
            PositionReward(Given([])),
            1,
            metadata=[{"include": [{"class": "a", "count": 1, "position": ["above", 1]}]}],
        )
