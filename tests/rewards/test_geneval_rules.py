"""GenEval's rules against the published evaluation script.

Expectations are worked out by hand first, then computed for generated detections by `Published`, which restates the
rules over arrays of boxes, as the script does.
"""

from collections import Counter

import numpy as np
import pytest

from janus_hf.rewards.geneval_rules import Detection, Rules, by_confidence, relations, score


def detected(label="circle", confidence=0.95, box=(0.0, 0.0, 10.0, 10.0), color=None):
    return Detection(label, confidence, box, color)


def prompt(*include, tag="single_object", exclude=()):
    return {"tag": tag, "include": list(include), "exclude": list(exclude), "prompt": ""}


CIRCLE = {"class": "circle", "count": 1}


def test_presence_and_threshold():
    assert score([detected()], prompt(CIRCLE)).correct
    assert score([detected(confidence=0.31)], prompt(CIRCLE)).correct
    assert not score([detected(confidence=0.3)], prompt(CIRCLE)).correct  # strictly above
    verdict = score([detected("square")], prompt(CIRCLE))
    assert (verdict.correct, verdict.reasons) == (False, ("expected 1 circle, found 0",))


def test_counting_uses_its_own_threshold_and_the_exclude_clause():
    three = prompt({"class": "circle", "count": 3}, tag="counting", exclude=[{"class": "circle", "count": 4}])
    assert not score([detected()] * 2, three).correct
    assert score([detected()] * 3, three).correct
    assert not score([detected()] * 4, three).correct
    assert score([detected()] * 3 + [detected(confidence=0.9)], three).correct  # 0.9 is not above 0.9
    assert not score([detected(confidence=0.9)] * 3, three).correct


def test_at_most_sixteen_detections_of_a_class_count():
    many = prompt({"class": "circle", "count": 17})
    assert not score([detected()] * 20, many).correct
    assert score([detected()] * 20, many, Rules(max_objects=17)).correct


def test_only_the_most_confident_need_the_color():
    red = prompt({"class": "circle", "count": 1, "color": "red"}, tag="colors")
    assert score([detected(color="red")], red).correct
    assert not score([detected(color="blue")], red).correct
    assert not score([detected(color="red", confidence=0.5), detected(color="blue", confidence=0.6)], red).correct
    assert score([detected(color="red", confidence=0.6), detected(color="blue", confidence=0.5)], red).correct
    two = prompt({"class": "circle", "count": 2, "color": "red"})
    assert not score([detected(color="red"), detected(color="blue")], two).correct


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
        # offset 4, revised 2: exactly half is not beyond it, in any direction
        (LEFT, (4.0, 0.0, 14.0, 10.0), set()),
        ((4.0, 0.0, 14.0, 10.0), LEFT, set()),
        (LEFT, (0.0, 4.0, 10.0, 14.0), set()),
        ((0.0, 4.0, 10.0, 14.0), LEFT, set()),
    ],
)
def test_relations(box, target, expected):
    assert relations(box, target) == expected


def test_position():
    left_of = prompt({"class": "square", "count": 1}, CIRCLE | {"position": ["left of", 0]}, tag="position")
    assert score([detected(box=LEFT), detected("square", box=RIGHT)], left_of).correct
    assert not score([detected(box=RIGHT), detected("square", box=LEFT)], left_of).correct
    missing = score([detected(box=LEFT)], left_of)
    assert missing.reasons == ("expected 1 square, found 0", "no target for circle to be left of")


def test_a_position_must_refer_backwards():
    with pytest.raises(ValueError, match="one of the 0 clauses before it"):
        score([detected()], prompt(CIRCLE | {"position": ["above", 0]}))


def test_of_equally_confident_detections_the_later_comes_first():
    """The official script reads an ascending sort backwards."""
    red = prompt({"class": "circle", "count": 1, "color": "red"}, tag="colors")
    assert score([detected(color="blue"), detected(color="red")], red).correct
    assert not score([detected(color="red"), detected(color="blue")], red).correct
    assert [d.color for d in by_confidence([detected(color=c) for c in ("a", "b", "c")])] == ["c", "b", "a"]


def test_masks_are_not_compared():
    assert detected() == Detection("circle", 0.95, (0.0, 0.0, 10.0, 10.0), mask=np.ones((4, 4), dtype=bool))


COUNT_2 = {"class": "circle", "count": 2}
FAR_RIGHT, SQUARE = (60.0, 0.0, 70.0, 10.0), {"class": "square", "count": 1}
RED = {"class": "circle", "count": 1, "color": "red"}
RIGHT_OF_SQUARE = CIRCLE | {"position": ["right of", 0]}


@pytest.mark.parametrize(
    ("detections", "metadata", "correct"),
    [
        pytest.param([], prompt(CIRCLE), False, id="nothing"),
        pytest.param([], prompt(), True, id="no-requirements"),
        pytest.param([detected(), detected("square")], prompt(CIRCLE, SQUARE), True, id="two-classes"),
        pytest.param([detected(), detected()], prompt(CIRCLE, SQUARE), False, id="one-class-twice"),
        pytest.param([detected()], prompt(CIRCLE, CIRCLE), True, id="a-repeated-clause-requires-nothing-more"),
        pytest.param([detected(confidence=0.3)] * 3, prompt(CIRCLE), False, id="all-exactly-at-the-threshold"),
        pytest.param([detected(confidence=0.5)] * 2, prompt(COUNT_2), True, id="two-without-counting-tag-need-0.3"),
        pytest.param([detected(confidence=0.5)] * 2, prompt(COUNT_2, tag="counting"), False, id="counting-needs-0.9"),
        pytest.param(
            [detected()] * 2 + [detected(confidence=0.5)],
            prompt(COUNT_2, tag="counting", exclude=[COUNT_2 | {"count": 3}]),
            True,
            id="a-third-below-0.9-is-not-counted",
        ),
        pytest.param([detected()], prompt(CIRCLE, exclude=[SQUARE]), True, id="excluded-is-absent"),
        pytest.param(
            [detected(), detected("square")], prompt(CIRCLE, exclude=[SQUARE]), False, id="excluded-is-present"
        ),
        pytest.param(
            [detected(), detected("square", 0.3)],
            prompt(CIRCLE, exclude=[SQUARE]),
            True,
            id="excluded-at-the-threshold",
        ),
        pytest.param(
            [detected()] * 20,
            prompt(CIRCLE, exclude=[CIRCLE | {"count": 17}]),
            True,
            id="sixteen-at-most-are-excluded",
        ),
        pytest.param(
            [detected()] * 20, prompt(CIRCLE, exclude=[CIRCLE | {"count": 16}]), False, id="sixteen-can-be-excluded"
        ),
        pytest.param([detected(color=None)], prompt(RED), False, id="colour-not-determined"),
        pytest.param(
            [detected(color="red"), detected(color="red"), detected(confidence=0.5, color="blue")],
            prompt(COUNT_2 | {"color": "red"}),
            True,
            id="a-blue-third-does-not-count",
        ),
        pytest.param(
            [detected(color="red"), detected(confidence=0.5, color="red"), detected(confidence=0.6, color="blue")],
            prompt(COUNT_2 | {"color": "red"}),
            False,
            id="a-blue-second-counts",
        ),
        pytest.param(
            [detected("square", box=LEFT), detected(box=RIGHT, confidence=0.9), detected(box=LEFT, confidence=0.5)],
            prompt(SQUARE, RIGHT_OF_SQUARE),
            True,
            id="position-of-the-most-confident",
        ),
        pytest.param(
            [detected("square", box=LEFT), detected(box=RIGHT, confidence=0.5), detected(box=LEFT, confidence=0.9)],
            prompt(SQUARE, RIGHT_OF_SQUARE),
            False,
            id="position-of-the-wrong-one",
        ),
        pytest.param(
            [detected("square", box=LEFT), detected(box=RIGHT), detected(box=FAR_RIGHT)],
            prompt(SQUARE, COUNT_2 | {"position": ["right of", 0]}),
            True,
            id="both-are-right",
        ),
        pytest.param(
            [detected("square", box=RIGHT), detected(box=LEFT), detected(box=FAR_RIGHT)],
            prompt(SQUARE, COUNT_2 | {"position": ["right of", 0]}),
            False,
            id="one-of-two-is-right",
        ),
        pytest.param(
            [detected("square", box=LEFT), detected("square", box=FAR_RIGHT), detected(box=RIGHT)],
            prompt(SQUARE | {"count": 2}, RIGHT_OF_SQUARE),
            False,
            id="right-of-one-of-two-targets",
        ),
        pytest.param(
            [detected("square", box=LEFT, color="blue"), detected(box=RIGHT)],
            prompt(SQUARE | {"color": "red"}, RIGHT_OF_SQUARE),
            False,
            id="a-target-of-the-wrong-colour",
        ),
        pytest.param(
            [detected("square", box=LEFT), detected(box=RIGHT, color="blue")],
            prompt(SQUARE, RIGHT_OF_SQUARE | {"color": "red"}),
            False,
            id="right-position-wrong-colour",
        ),
        pytest.param(
            [detected("square", box=BELOW), detected(box=RIGHT)],
            prompt(SQUARE, RIGHT_OF_SQUARE),
            True,
            id="right-and-above-1",
        ),
        pytest.param(
            [detected("square", box=BELOW), detected(box=RIGHT)],
            prompt(SQUARE, CIRCLE | {"position": ["above", 0]}),
            True,
            id="right-and-above-2",
        ),
        pytest.param(
            [detected("square", box=LEFT), detected(box=(2.0, 0.0, 12.0, 10.0))],
            prompt(SQUARE, RIGHT_OF_SQUARE),
            False,
            id="in-the-dead-band",
        ),
        # offset 4, summed widths 20: revised 2, and 2 / 4 is not above 0.5
        pytest.param(
            [detected("square", box=LEFT), detected(box=(4.0, 0.0, 14.0, 10.0))],
            prompt(SQUARE, RIGHT_OF_SQUARE),
            False,
            id="exactly-half",
        ),
    ],
)
def test_by_hand(detections, metadata, correct):
    assert score(detections, metadata).correct is correct


class Published:
    """The published rules, stated a second time: boxes as rows `x1 y1 x2 y2 score`, centres and sizes as vectors.

    `met` counts how often each branch of the rules was taken.
    """

    def __init__(self) -> None:
        self.met: Counter[str] = Counter()

    def judge(self, detections, metadata) -> bool:
        limit = 0.9 if metadata["tag"] == "counting" else 0.3
        objects = {}
        for name in {d.label for d in detections}:
            rows = np.array([[*d.box, d.score] for d in detections if d.label == name])
            colors = np.array([d.color for d in detections if d.label == name])
            order = np.argsort(rows[:, 4], kind="stable")[::-1]
            self.met["tie"] += len(set(rows[:, 4])) < len(rows)
            self.met["at the threshold"] += bool((rows[:, 4] == limit).any())
            order = order[rows[order, 4] > limit]
            self.met["more than 16"] += len(order) > 16
            objects[name] = rows[order[:16]], colors[order[:16]]
        correct, groups = True, []
        nothing = np.zeros((0, 5)), np.zeros(0)
        for clause in metadata["include"]:
            rows, colors = (values[: clause["count"]] for values in objects.get(clause["class"], nothing))
            matched = self.clause(clause, rows, colors, groups)
            groups.append(rows if matched else None)
            correct = correct and matched
        for clause in metadata["exclude"]:
            fails = len(objects.get(clause["class"], nothing)[0]) >= clause["count"]
            self.met["excluded" if fails else "not excluded"] += 1
            correct = correct and not fails
        return correct

    def clause(self, clause, rows, colors, groups) -> bool:
        if len(rows) < clause["count"]:
            self.met["too few"] += 1
            return False
        if "color" in clause and sum(colors == clause["color"]) < clause["count"]:
            self.met["wrong colour"] += 1
            return False
        self.met["right colour"] += "color" in clause
        if "position" not in clause:
            return True
        relation, index = clause["position"]
        if groups[index] is None:
            self.met["failed target"] += 1
            return False
        for row in rows:
            for target in groups[index]:
                if relation not in self.relations(row, target):
                    self.met["wrong relation"] += 1
                    return False
        self.met["right relation"] += 1
        return True

    def relations(self, a, b) -> set[str]:
        centers = [row[:4].reshape(2, 2).mean(axis=0) for row in (a, b)]
        sizes = [np.abs(row[2:4] - row[:2]) for row in (a, b)]
        offset = centers[0] - centers[1]
        revised = np.sign(offset) * np.maximum(np.abs(offset) - 0.1 * (sizes[0] + sizes[1]), 0)
        if (np.abs(revised) < 1e-3).all():
            self.met["dead band"] += 1
            return set()
        x, y = revised / np.sqrt((offset**2).sum())
        held = {name for name, value in (("left of", -x), ("right of", x), ("above", -y), ("below", y)) if value > 0.5}
        self.met[f"{len(held)} relations"] += 1
        return held


def generated(rng: np.random.Generator):
    """Return random detections and the metadata of a prompt about them.

    Scores meet the thresholds exactly or are equal, and boxes lie close to the dead band, more often than by chance.
    """

    def pick(*items):
        return items[rng.integers(len(items))]

    crowd = pick(2, 4, 6, 60)
    detections = []
    for _ in range(rng.integers(crowd // 2, crowd + 1)):
        (x, y), (width, height) = 5 * rng.integers(0, 7, size=2), 10 * rng.integers(1, 3, size=2)
        confidence = pick(0.3, 0.31, 0.6, 0.9, 0.91, 0.99, 0.99, round(float(rng.random()), 3))
        box = (float(x), float(y), float(x + width), float(y + height))
        detections.append(Detection(pick("cat", "dog"), confidence, box, pick("red", "red", "blue")))
    include: list[dict] = []
    for _ in range(pick(1, 2, 2, 3)):
        clause = {"class": pick("cat", "dog"), "count": pick(1, 1, 1, 1, 2) if crowd < 60 else pick(1, 1, 16, 17)}
        if rng.random() < 0.3:
            clause["color"] = pick("red", "blue")
        if include and rng.random() < 0.7:
            clause["position"] = [pick("left of", "right of", "above", "below"), int(rng.integers(len(include)))]
        include.append(clause)
    exclude = [{"class": pick("cat", "dog"), "count": pick(1, 2, 4, 16, 17)} for _ in range(pick(0, 0, 0, 1, 2))]
    tag = pick("counting", "two_object", "position", "position", "color_attr")
    return detections, {"tag": tag, "include": include, "exclude": exclude, "prompt": ""}


def test_generated_detections_are_judged_as_published():
    rng, published, verdicts = np.random.default_rng(0), Published(), Counter()
    for _ in range(3000):
        detections, metadata = generated(rng)
        expected = published.judge(detections, metadata)
        verdict = score(detections, metadata)
        assert verdict.correct == expected, (detections, metadata, verdict.reasons)
        assert len(verdict.reasons) <= len(metadata["include"]) + len(metadata["exclude"])
        verdicts[expected] += 1
    assert min(verdicts[True], verdicts[False]) > 100
    branches = {"tie", "at the threshold", "more than 16", "excluded", "not excluded", "too few", "wrong colour"}
    branches |= {"right colour", "failed target", "wrong relation", "right relation", "dead band"}
    branches |= {"0 relations", "1 relations", "2 relations"}
    assert {branch for branch in branches if published.met[branch] < 10} == set()


def test_generated_pairs_of_boxes_are_related_as_published():
    """Corners are multiples of a fifth of a pixel, so that offsets fall inside, outside and onto the dead band."""
    rng, published = np.random.default_rng(1), Published()
    for _ in range(500):
        corners = rng.integers(0, 40, size=(2, 2)) / 5
        boxes = [tuple(map(float, (*corner, *(corner + rng.integers(1, 60, size=2) / 5)))) for corner in corners]
        rows = [np.array([*box, 1.0]) for box in boxes]
        assert relations(*boxes) == published.relations(*rows), boxes
    assert min(published.met[f"{n} relations"] for n in range(3)) > 10
    assert published.met["dead band"] > 10
