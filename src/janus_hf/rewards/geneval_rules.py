"""GenEval's rules: do the things found in a picture satisfy a prompt's requirements?

Pure: no models, no pictures. Any detector that gives `Detection`s can be judged, Mask2Former on photographs or the
exact one of the small world. The rules, thresholds and quirks are those of djghosh13/geneval
(evaluation/evaluate_images.py).
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Detection:
    """One thing found in a picture.

    Args:
        label: Its class, as prompts' metadata spell it.
        score: Confidence in [0, 1].
        box: `(x1, y1, x2, y2)` in pixels, x to the right, y downwards.
        color: Its colour's name, or None if it was not looked at.
        mask: Its pixels, `(H, W)` bool over the whole picture, or None where only the box is known. Not compared.
    """

    label: str
    score: float
    box: Box
    color: str | None = None
    mask: Any = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Verdict:
    """Whether a picture obeys its prompt, and if not, why: one line per violated requirement."""

    correct: bool
    reasons: tuple[str, ...] = field(default=())


@dataclass(frozen=True)
class Rules:
    """Thresholds of the official evaluation.

    Args:
        threshold: Detections below this score do not count.
        counting_threshold: The same for prompts tagged "counting".
        max_objects: So many of the most confident detections of a class are looked at.
        position_deadband: Offsets below this share of the two boxes' summed size are no relation.
    """

    threshold: float = 0.3
    counting_threshold: float = 0.9
    max_objects: int = 16
    position_deadband: float = 0.1


def score(detections: Iterable[Detection], metadata: Mapping[str, Any], rules: Rules | None = None) -> Verdict:
    """Judge one picture.

    For every `include` clause the `count` most confident detections of its class must exist; a `color` is asked of
    these only, a `position` `[relation, k]` between these and those that clause `k` found. An `exclude` clause is
    violated by `count` detections of its class.

    Args:
        detections: What was found, in any order.
        metadata: A line of GenEval's `evaluation_metadata.jsonl`: `tag`, `include`, optionally `exclude`.
        rules: Thresholds other than the official ones.

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
        groups.append(None if violations else group)
    for clause in metadata.get("exclude", []):
        present = len(found.get(clause["class"], []))
        if present >= clause["count"]:
            reasons.append(f"expected fewer than {clause['count']} {clause['class']}, found {present}")
    return Verdict(not reasons, tuple(reasons))


def by_confidence(detections: Iterable[Detection]) -> list[Detection]:
    """The most confident first; of equally confident ones the later, as the official ascending sort read backwards."""
    return sorted(detections, key=lambda detection: detection.score)[::-1]


def _violations(
    clause: Mapping[str, Any], group: list[Detection], earlier: Sequence[list[Detection] | None], rules: Rules
) -> list[str]:
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
                f"The position {clause['position']} of {clause['class']!r} must refer to one of the {len(earlier)} "
                "clauses before it."
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
    """How `box` lies relative to `target`: a subset of {"left of", "right of", "above", "below"}; two may hold at
    once.
    """
    offsets, revised = [], []
    for axis in (0, 1):
        offset = (box[axis] + box[axis + 2]) / 2 - (target[axis] + target[axis + 2]) / 2
        sizes = abs(box[axis + 2] - box[axis]) + abs(target[axis + 2] - target[axis])
        offsets.append(offset)
        revised.append(math.copysign(max(abs(offset) - deadband * sizes, 0.0), offset))
    if all(abs(value) < 1e-3 for value in revised):
        return set()
    dx, dy = (value / math.hypot(*offsets) for value in revised)
    held = {"left of": dx < -0.5, "right of": dx > 0.5, "above": dy < -0.5, "below": dy > 0.5}
    return {relation for relation, holds in held.items() if holds}


__all__ = ["Box", "Detection", "Rules", "Verdict", "by_confidence", "relations", "score"]
