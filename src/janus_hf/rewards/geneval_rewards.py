"""Rewards by GenEval's rules."""

import json
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

from .detectors import Detector
from .geneval_rules import Detection, Rules, score
from .grounding_dino import GroundingDinoDetector
from .mask2former import Mask2FormerDetector
from .rewards import Images, read_column
from .shapes_detector import ShapesDetector


class GenEvalReward:
    """Whether a picture obeys its prompt by GenEval's rules: 1 or 0.

    Column `metadata`: a line of GenEval's `evaluation_metadata.jsonl` per picture, as a dict or as JSON. Fields that
    are None count as absent, since tables of Arrow cannot leave them out.

    Args:
        detector: Finds the things; by default GenEval's.
        partial: Give the share of `include` and `exclude` clauses that hold instead, in [0, 1].
        rules: Thresholds other than the official ones.
    """

    __name__ = "geneval"

    def __init__(self, detector: Detector | None = None, *, partial: bool = False, rules: Rules | None = None) -> None:
        self.detector = detector or Mask2FormerDetector()
        self.partial, self.rules = partial, rules

    def __call__(self, images: Images, prompts: Sequence[str], **columns: Any) -> list[float]:
        """See `Reward`."""
        lines = [as_metadata(value) for value in read_column(self, columns, "metadata", images, prompts)]
        found = self.detector.detect(images, lines)
        return [self._judge(things, line) for things, line in zip(found, lines, strict=True)]

    def _judge(self, detections: list[Detection], metadata: Mapping[str, Any]) -> float:
        verdict = score(detections, metadata, self.rules)
        if not self.partial:
            return float(verdict.correct)
        # A clause gives one reason at most.
        return 1.0 - len(verdict.reasons) / (len(metadata.get("include", [])) + len(metadata.get("exclude", [])))


class ShapesReward(GenEvalReward):
    """`GenEvalReward` with the small world's exact detector: no model, milliseconds per picture."""

    __name__ = "shapes"

    def __init__(self, *, partial: bool = False) -> None:
        super().__init__(ShapesDetector(), partial=partial)


class PositionReward:
    """Whether things lie as the prompt says, whatever else is wrong: the share of position clauses that hold.

    Column `metadata`, as for `GenEvalReward`. A clause `position: [relation, k]` holds if GenEval's rules find its
    things so related to those of clause k, colours aside.

    Args:
        detector: Finds the things; by default GroundingDINO, as in T2I-R1.
        rules: Thresholds other than the official ones.
    """

    __name__ = "position"

    def __init__(self, detector: Detector | None = None, *, rules: Rules | None = None) -> None:
        self.detector = detector or GroundingDinoDetector()
        self.rules = rules

    def __call__(self, images: Images, prompts: Sequence[str], **columns: Any) -> list[float]:
        """See `Reward`.

        Raises:
            ValueError: Also if metadata have no position clause.
        """
        lines = [as_metadata(value) for value in read_column(self, columns, "metadata", images, prompts)]
        pairs = [_related(line) for line in lines]
        found = self.detector.detect(images, [{"include": list(chain(*asked))} for asked in pairs])
        return [
            sum(score(things, {"tag": "position", "include": pair}, self.rules).correct for pair in asked) / len(asked)
            for things, asked in zip(found, pairs, strict=True)
        ]


def _related(metadata: Mapping[str, Any]) -> list[list[dict[str, Any]]]:
    """For each position clause: what it refers to, then itself; nothing but classes, counts and the relation."""
    include = metadata.get("include", [])
    bare = [{"class": clause["class"], "count": clause["count"]} for clause in include]
    pairs = []
    for clause, subject in zip(include, bare, strict=True):
        if "position" in clause:
            relation, index = clause["position"]
            if not 0 <= index < len(bare):
                raise ValueError(f"The position {clause['position']} refers to none of the {len(bare)} clauses.")
            pairs.append([bare[index], subject | {"position": [relation, 0]}])
    if not pairs:
        raise ValueError(
            f"PositionReward got metadata without a position clause (tag {metadata.get('tag')!r}): use it on prompts "
            "about positions only, or GenEvalReward on all."
        )
    return pairs


def as_metadata(value: str | Mapping[str, Any]) -> dict[str, Any]:
    """A line of GenEval's metadata from a cell of a table: parsed if it is JSON, and without fields that are None.

    Raises:
        TypeError: If it is neither text nor a mapping.
    """
    line = json.loads(value) if isinstance(value, str) else value
    if not isinstance(line, Mapping):
        raise TypeError(f"Expected metadata as a dict or as JSON of one, got {value!r}.")
    clauses = {
        part: [{key: item for key, item in clause.items() if item is not None} for clause in line[part]]
        for part in ("include", "exclude")
        if line.get(part) is not None
    }
    return {key: item for key, item in line.items() if item is not None} | clauses


__all__ = ["GenEvalReward", "PositionReward", "ShapesReward", "as_metadata"]
