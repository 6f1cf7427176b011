"""Rewards that judge the objects in an image by GenEval's rules.

They read the column `metadata`: for each image, the line of GenEval's `evaluation_metadata.jsonl` that belongs to its
prompt, as a dict or as JSON. `geneval_rules` explains its clauses. Fields that are None count as absent, because
Arrow tables, which hold data sets, cannot leave a field out.
"""

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
    """1 if an image meets all requirements of its prompt by GenEval's rules, else 0.

    Column `metadata`: see the module's docstring.

    Args:
        detector: Finds the objects; by default GenEval's own, Mask2Former.
        partial: Return the share of `include` and `exclude` clauses that hold instead, in [0, 1].
        rules: Thresholds to use instead of the official ones.
    """

    __name__ = "geneval"

    def __init__(self, detector: Detector | None = None, *, partial: bool = False, rules: Rules | None = None) -> None:
        self.detector = detector or Mask2FormerDetector()
        self.partial, self.rules = partial, rules

    def __call__(self, images: Images, prompts: Sequence[str], **columns: Any) -> list[float]:
        """Return one number in [0, 1] per image; see `Reward`."""
        lines = [as_metadata(value) for value in read_column(self, columns, "metadata", images, prompts)]
        found = self.detector.detect(images, lines)
        return [self._score(detections, line) for detections, line in zip(found, lines, strict=True)]

    def _score(self, detections: list[Detection], metadata: Mapping[str, Any]) -> float:
        verdict = score(detections, metadata, self.rules)
        if not self.partial:
            return float(verdict.correct)
        # Every violated clause gives exactly one reason.
        return 1.0 - len(verdict.reasons) / (len(metadata.get("include", [])) + len(metadata.get("exclude", [])))


class ShapesReward(GenEvalReward):
    """`GenEvalReward` for images of the shapes world, whose exact detector needs no model and takes milliseconds.

    Args:
        partial: As for `GenEvalReward`.
    """

    __name__ = "shapes"

    def __init__(self, *, partial: bool = False) -> None:
        super().__init__(ShapesDetector(), partial=partial)


class PositionReward:
    """Share of the prompt's positions ("a dog right of a cat") that hold, in [0, 1]; all else is ignored.

    Column `metadata`: see the module's docstring. A clause with `position: [relation, k]` holds if GenEval's rules
    find its objects in this relation to those of clause k, whatever their colours.

    Args:
        detector: Finds the objects; by default GroundingDINO, as in T2I-R1.
        rules: Thresholds to use instead of the official ones.
    """

    __name__ = "position"

    def __init__(self, detector: Detector | None = None, *, rules: Rules | None = None) -> None:
        self.detector = detector or GroundingDinoDetector()
        self.rules = rules

    def __call__(self, images: Images, prompts: Sequence[str], **columns: Any) -> list[float]:
        """Return one number in [0, 1] per image; see `Reward`.

        Raises:
            ValueError: Also if metadata have no clause with a position.
        """
        lines = [as_metadata(value) for value in read_column(self, columns, "metadata", images, prompts)]
        pairs = [_position_pairs(line) for line in lines]
        # Detectors that find what words describe read the classes from the metadata.
        found = self.detector.detect(images, [{"include": list(chain(*own))} for own in pairs])
        return [
            sum(score(detections, {"tag": "position", "include": pair}, self.rules).correct for pair in own) / len(own)
            for detections, own in zip(found, pairs, strict=True)
        ]


def _position_pairs(metadata: Mapping[str, Any]) -> list[list[dict[str, Any]]]:
    """Return, for each clause with a position, the pair of the clause it refers to and the clause itself.

    Both are reduced to class and count, so that neither colours nor further positions are judged, and the position
    refers to the first of the pair.
    """
    include = metadata.get("include", [])
    reduced = [{"class": clause["class"], "count": clause["count"]} for clause in include]
    pairs = []
    for clause, subject in zip(include, reduced, strict=True):
        if "position" in clause:
            relation, index = clause["position"]
            if not 0 <= index < len(reduced):
                raise ValueError(
                    f"`position` must refer to one of the {len(reduced)} clauses, got {clause['position']}: correct "
                    "the metadata."
                )
            pairs.append([reduced[index], subject | {"position": [relation, 0]}])
    if not pairs:
        raise ValueError(
            "`metadata` must have a clause with a position for PositionReward, got none in a line with tag "
            f"{metadata.get('tag')!r}: use it on prompts about positions only, or GenEvalReward on all."
        )
    return pairs


def as_metadata(value: str | Mapping[str, Any]) -> dict[str, Any]:
    """Return a line of GenEval's metadata as a dict without the fields that are None.

    Args:
        value: The line as a table's cell holds it: a mapping, or JSON of one.

    Raises:
        TypeError: If it is neither.
    """
    line = json.loads(value) if isinstance(value, str) else value
    if not isinstance(line, Mapping):
        raise TypeError(f"`metadata` must be a dict or JSON of a dict, got {value!r}: pass the line of the prompt.")
    clauses = {
        part: [{key: item for key, item in clause.items() if item is not None} for clause in line[part]]
        for part in ("include", "exclude")
        if line.get(part) is not None
    }
    return {key: item for key, item in line.items() if item is not None} | clauses


__all__ = ["GenEvalReward", "PositionReward", "ShapesReward", "as_metadata"]
