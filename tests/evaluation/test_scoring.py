"""GenEval's rules, each expectation derived from the published evaluation script."""

import pytest

from janus_hf.evaluation.scoring import Detection, Rules, relations, score


def thing(label="circle", confidence=0.95, box=(0.0, 0.0, 10.0, 10.0), color=None):
    return Detection(label, confidence, box, color)


def prompt(*include, tag="single_object", exclude=()):
    return {"tag": tag, "include": list(include), "exclude": list(exclude), "prompt": ""}


CIRCLE = {"class": "circle", "count": 1}


def test_presence_and_threshold():
    assert score([thing()], prompt(CIRCLE)).correct
    assert score([thing(confidence=0.31)], prompt(CIRCLE)).correct
    assert not score([thing(confidence=0.3)], prompt(CIRCLE)).correct  # strictly above
    verdict = score([thing("square")], prompt(CIRCLE))
    assert (verdict.correct, verdict.reasons) == (False, ("expected 1 circle, found 0",))


def test_counting_uses_its_own_threshold_and_the_exclude_clause():
    three = prompt({"class": "circle", "count": 3}, tag="counting", exclude=[{"class": "circle", "count": 4}])
    assert not score([thing()] * 2, three).correct
    assert score([thing()] * 3, three).correct
    assert not score([thing()] * 4, three).correct
    assert score([thing()] * 3 + [thing(confidence=0.9)], three).correct  # 0.9 is not above 0.9
    assert not score([thing(confidence=0.9)] * 3, three).correct


def test_at_most_sixteen_detections_of_a_class_are_seen():
    many = prompt({"class": "circle", "count": 17})
    assert not score([thing()] * 20, many).correct
    assert score([thing()] * 20, many, Rules(max_objects=17)).correct


def test_color_is_asked_of_the_most_confident_only():
    red = prompt({"class": "circle", "count": 1, "color": "red"}, tag="colors")
    assert score([thing(color="red")], red).correct
    assert not score([thing(color="blue")], red).correct
    assert not score([thing(color="red", confidence=0.5), thing(color="blue", confidence=0.6)], red).correct
    assert score([thing(color="red", confidence=0.6), thing(color="blue", confidence=0.5)], red).correct
    two = prompt({"class": "circle", "count": 2, "color": "red"})
    assert not score([thing(color="red"), thing(color="blue")], two).correct


LEFT, RIGHT, BELOW = (0.0, 0.0, 10.0, 10.0), (30.0, 0.0, 40.0, 10.0), (0.0, 30.0, 10.0, 40.0)


@pytest.mark.parametrize(
    ("box", "target", "expected"),
    [
        (LEFT, RIGHT, {"left of"}),
        (RIGHT, LEFT, {"right of"}),
        (LEFT, BELOW, {"above"}),
        (BELOW, LEFT, {"below"}),
        (
            RIGHT,
            BELOW,
            {"right of", "above"},
        ),  # offset (30, -30), revised (28, -28), / 42.4 = 0.66 each: two relations
        (LEFT, LEFT, set()),
        (LEFT, (2.0, 0.0, 12.0, 10.0), set()),  # |offset| 2 = 0.1 * (10 + 10): inside the dead band
        # offset 3, revised 1, and 1 / 3 is not beyond 0.5: neither inside the dead band nor a relation
        (LEFT, (3.0, 0.0, 13.0, 10.0), set()),
        (LEFT, (5.0, 0.0, 15.0, 10.0), {"left of"}),  # revised 3 of 5
    ],
)
def test_relations(box, target, expected):
    assert relations(box, target) == expected


def test_position():
    left_of = prompt({"class": "square", "count": 1}, CIRCLE | {"position": ["left of", 0]}, tag="position")
    assert score([thing(box=LEFT), thing("square", box=RIGHT)], left_of).correct
    assert not score([thing(box=RIGHT), thing("square", box=LEFT)], left_of).correct
    missing = score([thing(box=LEFT)], left_of)
    assert missing.reasons == ("expected 1 square, found 0", "no target for circle to be left of")


def test_a_position_must_refer_backwards():
    with pytest.raises(ValueError, match="one of the 0 clauses before it"):
        score([thing()], prompt(CIRCLE | {"position": ["above", 0]}))
