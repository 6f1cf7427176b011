"""Rules of the GenEval benchmark, which judge whether the objects in an image meet the requirements of its prompt.

The functions are pure and use neither models nor images. They judge the `Detection`s of any object detector, for
example Mask2Former on photographs or the exact detector for the synthetic images of `janus_hf.shapes`. Rules,
thresholds and quirks are those of djghosh13/geneval (evaluation/evaluate_images.py).

The requirements of a prompt are one line of GenEval's `evaluation_metadata.jsonl`. This line requires a red dog right
of a cat, and no second dog:

    {"tag": "position",
     "include": [{"class": "cat", "count": 1},
                 {"class": "dog", "count": 1, "color": "red", "position": ["right of", 0]}],
     "exclude": [{"class": "dog", "count": 2}],
     "prompt": "a photo of a red dog right of a cat"}

Each element of `include` and `exclude` is one requirement, called a clause. The 0 in `position` is the index of
another `include` clause, here the cat's.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np


Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Detection:
    """One object that a detector found in an image.

    Args:
        label: Name of the object's class, spelled as in GenEval's metadata.
        score: Confidence of the detector in [0, 1].
        box: `(x1, y1, x2, y2)` in pixels, x to the right, y downwards.
        color: Name of the object's colour, or None if it was not determined.
        mask: Mask of the object, `(H, W)` bool over the whole image, or None if only the box is known. `==` ignores
            masks: two detections that differ only in their masks are equal.
    """

    label: str
    score: float
    box: Box
    color: str | None = None
    mask: np.ndarray | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Verdict:
    """Judgement of one image by GenEval's rules.

    Args:
        correct: Whether the image meets every requirement of its prompt.
        reasons: One line of text per violated requirement, which says what was expected and what was found.
    """

    correct: bool
    reasons: tuple[str, ...] = field(default=())


@dataclass(frozen=True)
class Rules:
    """Thresholds of GenEval's rules; the defaults are the official ones.

    Args:
        threshold: Detections with a score at or below this number are ignored.
        counting_threshold: The same threshold for prompts tagged "counting".
        max_objects: Maximum number of detections per class that are judged, the most confident ones.
        position_deadband: Two boxes are in no relation along an axis if the distance of their centres along it is
            below this share of their summed sizes along it.
    """

    threshold: float = 0.3
    counting_threshold: float = 0.9
    max_objects: int = 16
    position_deadband: float = 0.1


def score(detections: Iterable[Detection], metadata: Mapping[str, Any], rules: Rules | None = None) -> Verdict:
    """Judge whether the objects found in an image meet the requirements of its prompt.

    An `include` clause of the metadata selects the `count` most confident detections of its class. It is violated if
    there are fewer, if one of them does not have the clause's `color`, or if the clause has a `position`
    `[relation, k]` and one of them is not in this relation to every detection that clause `k` selected, or clause `k`
    is violated. An `exclude` clause is violated if there are `count` or more detections of its class.

    Args:
        detections: Objects found in the image, in any order.
        metadata: A line of GenEval's `evaluation_metadata.jsonl`: `tag`, `include` and optionally `exclude`.
        rules: Thresholds to use instead of the official ones.

    Returns:
        Whether no clause is violated, and one reason for each that is.

    Raises:
        ValueError: If the position of a clause does not refer to one of the `include` clauses before it.
    """
    rules = rules or Rules()
    threshold = rules.counting_threshold if metadata["tag"] == "counting" else rules.threshold
    found: dict[str, list[Detection]] = {}
    for detection in by_confidence(detections):
        of_class = found.setdefault(detection.label, [])
        if detection.score > threshold and len(of_class) < rules.max_objects:
            of_class.append(detection)

    reasons: list[str] = []
    groups: list[list[Detection] | None] = []
    for clause in metadata.get("include", []):
        group = found.get(clause["class"], [])[: clause["count"]]
        violations = _violations(clause, group, groups, rules)
        reasons += violations
        # As in the official script, the positions of later clauses cannot be met relative to a violated clause.
        groups.append(None if violations else group)
    for clause in metadata.get("exclude", []):
        present = len(found.get(clause["class"], []))
        if present >= clause["count"]:
            reasons.append(f"expected fewer than {clause['count']} {clause['class']}, found {present}")
    return Verdict(not reasons, tuple(reasons))


def by_confidence(detections: Iterable[Detection]) -> list[Detection]:
    """Return the detections in descending order of score.

    If scores are equal, the later detection comes first, because the official script sorts in ascending order and then
    reverses the result.
    """
    return sorted(detections, key=lambda detection: detection.score)[::-1]


def _violations(
    clause: Mapping[str, Any], group: list[Detection], earlier: Sequence[list[Detection] | None], rules: Rules
) -> list[str]:
    """Return why an `include` clause (requirement) is violated: a list of one reason, or an empty list if it is met.

    Args:
        clause: The clause, with `class`, `count` and optionally `color` and `position`.
        group: Detections that the clause selects: the most confident ones of its class, at most `count`.
        earlier: For each clause before this one, the detections that it selects, or None if it is violated.
        rules: The thresholds.

    Raises:
        ValueError: If the position does not refer to one of the earlier clauses.
    """
    if len(group) < clause["count"]:
        return [f"expected {clause['count']} {clause['class']}, found {len(group)}"]
    if "color" in clause:
        colors = [detection.color for detection in group]
        if colors.count(clause["color"]) < clause["count"]:
            return [f"expected {clause['count']} {clause['color']} {clause['class']}, found colours {colors}"]
    if "position" in clause:
        relation, index = clause["position"]
        if not 0 <= index < len(earlier):
            raise ValueError(
                f"`position` of {clause['class']!r} must refer to one of the {len(earlier)} clauses before it, got "
                f"{clause['position']}: correct the metadata."
            )
        targets = earlier[index]
        if targets is None:
            return [f"no target for {clause['class']} to be {relation}"]
        for detection in group:
            for target in targets:
                actual = relations(detection.box, target.box, deadband=rules.position_deadband)
                if relation not in actual:
                    return [
                        f"expected {clause['class']} {relation} {target.label}, found "
                        f"{sorted(actual) or 'no relation'}"
                    ]
    return []


def relations(box: Box, target: Box, *, deadband: float = 0.1) -> set[str]:
    """Return the spatial relations of `box` to `target`, for example `{"left of"}`.

    The offset from the centre of `target` to that of `box` is first shortened along each axis by `deadband` times the
    summed sizes of the two boxes along this axis. A relation holds if the shortened offset in its direction exceeds
    half the Euclidean length of the offset before it was shortened.

    Args:
        box: The box whose position is described.
        target: The box relative to which it is described.
        deadband: Share of the boxes' summed sizes by which the offset is shortened.

    Returns:
        A subset of {"left of", "right of", "above", "below"}; two may hold at once.
    """
    offsets, revised = [], []
    for axis in (0, 1):
        offset = (box[axis] + box[axis + 2]) / 2 - (target[axis] + target[axis + 2]) / 2
        sizes = abs(box[axis + 2] - box[axis]) + abs(target[axis + 2] - target[axis])
        offsets.append(offset)
        revised.append(math.copysign(max(abs(offset) - deadband * sizes, 0.0), offset))
    if all(abs(value) < 1e-3 for value in revised):
        return set()
    # As in the official script, the shortened offset is divided by the length of the offset before shortening.
    dx, dy = (value / math.hypot(*offsets) for value in revised)
    held = {"left of": dx < -0.5, "right of": dx > 0.5, "above": dy < -0.5, "below": dy > 0.5}
    return {relation for relation, holds in held.items() if holds}


__all__ = ["Box", "Detection", "Rules", "Verdict", "by_confidence", "relations", "score"]
