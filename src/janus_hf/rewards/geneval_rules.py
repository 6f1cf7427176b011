"""GenEval's rules: whether the objects found in an image meet the requirements of its prompt.

The functions here are pure and know neither models nor images; they judge the `Detection`s of any detector, be it
Mask2Former on photographs or the exact one of the shapes world. Rules, thresholds and quirks are those of
djghosh13/geneval (evaluation/evaluate_images.py).

The requirements of a prompt are a line of GenEval's `evaluation_metadata.jsonl`. For "a photo of a red dog right of a
cat" with a single dog:

    {"tag": "position",
     "include": [{"class": "cat", "count": 1},
                 {"class": "dog", "count": 1, "color": "red", "position": ["right of", 0]}],
     "exclude": [{"class": "dog", "count": 2}],
     "prompt": "a photo of a red dog right of a cat"}

Each element of `include` and `exclude` is called a clause. The 0 of the position is the index of another `include`
clause, here the cat.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np


Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Detection:
    """One object found in an image.

    Args:
        label: Class of the object, spelled as in the metadata of prompts.
        score: Confidence in [0, 1].
        box: `(x1, y1, x2, y2)` in pixels, x to the right, y downwards.
        color: Name of the object's colour, or None if it was not determined.
        mask: Pixels of the object, `(H, W)` bool over the whole image, or None if only the box is known. Masks are not
            compared: two detections may be equal with different masks.
    """

    label: str
    score: float
    box: Box
    color: str | None = None
    mask: np.ndarray | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Verdict:
    """Judgement of one image.

    Args:
        correct: Whether the image meets every requirement of its prompt.
        reasons: One line of text per violated clause.
    """

    correct: bool
    reasons: tuple[str, ...] = field(default=())


@dataclass(frozen=True)
class Rules:
    """Thresholds of the rules; the defaults are the official ones.

    Args:
        threshold: Detections at or below this score do not count.
        counting_threshold: The same threshold for prompts tagged "counting".
        max_objects: Number of most confident detections of a class that are judged.
        position_deadband: An offset of two boxes below this share of their summed size is no relation.
    """

    threshold: float = 0.3
    counting_threshold: float = 0.9
    max_objects: int = 16
    position_deadband: float = 0.1


def score(detections: Iterable[Detection], metadata: Mapping[str, Any], rules: Rules | None = None) -> Verdict:
    """Judge one image.

    An `include` clause selects the `count` most confident detections of its class. It is violated if there are fewer,
    if one of them has not the clause's `color`, or if one of them is not in the `relation` of the clause's `position`
    `[relation, k]` to each of those that clause `k` selected. An `exclude` clause is violated by `count` or more
    detections of its class.

    Args:
        detections: Objects found in the image, in any order.
        metadata: A line of GenEval's `evaluation_metadata.jsonl`: `tag`, `include` and optionally `exclude`.
        rules: Thresholds to use instead of the official ones.

    Raises:
        ValueError: If a position refers to a clause that does not stand before it.
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
        # In the official script, too, a violated clause is no target for the positions of later ones.
        groups.append(None if violations else group)
    for clause in metadata.get("exclude", []):
        present = len(found.get(clause["class"], []))
        if present >= clause["count"]:
            reasons.append(f"expected fewer than {clause['count']} {clause['class']}, found {present}")
    return Verdict(not reasons, tuple(reasons))


def by_confidence(detections: Iterable[Detection]) -> list[Detection]:
    """Return the detections by falling score.

    Of equal scores the later detection comes first, because the official script reads an ascending sort backwards.
    """
    return sorted(detections, key=lambda detection: detection.score)[::-1]


def _violations(
    clause: Mapping[str, Any], group: list[Detection], earlier: Sequence[list[Detection] | None], rules: Rules
) -> list[str]:
    """Return why an `include` clause is violated, as a list of at most one reason.

    Args:
        clause: The clause.
        group: Detections that the clause selects.
        earlier: Detections that each earlier clause selects, or None if that clause is violated.
        rules: The thresholds.
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
    """Return the relations of `box` to `target`.

    The offset of the centres is shortened along each axis by the dead band, `deadband` times the summed sizes of the
    boxes. A relation holds if the shortened offset in its direction exceeds half the length of the whole offset.

    Args:
        box: The box whose position is described.
        target: The box that it is compared with.
        deadband: See `Rules.position_deadband`.

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
    # As in the official script, the shortened offset is divided by the length of the whole one.
    dx, dy = (value / math.hypot(*offsets) for value in revised)
    held = {"left of": dx < -0.5, "right of": dx > 0.5, "above": dy < -0.5, "below": dy > 0.5}
    return {relation for relation, holds in held.items() if holds}


__all__ = ["Box", "Detection", "Rules", "Verdict", "by_confidence", "relations", "score"]
