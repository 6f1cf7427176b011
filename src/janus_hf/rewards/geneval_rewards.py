"""Rewards that detect the objects in generated images and judge them by the rules of the GenEval benchmark.

They read the column `metadata` of the data set: for each image, the line of GenEval's `evaluation_metadata.jsonl` that
belongs to its prompt, as a dict or as JSON. `geneval_rules` explains the fields of such a line. Fields that are None
count as absent, because Arrow tables, which store data sets, cannot leave a field out.
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
    """Reward that is 1 if an image meets all requirements of its prompt by GenEval's rules, else 0.

    It reads the column `metadata`: the requirements of each image's prompt, as a line of GenEval's
    `evaluation_metadata.jsonl` (a dict or JSON).

    Args:
        detector: Object detector; by default Mask2Former, which GenEval uses.
        partial: Return instead the share of requirements (elements of `include` and `exclude` in the metadata) that
            the image meets, in [0, 1].
        rules: Thresholds to use instead of GenEval's.
    """

    __name__ = "geneval"

    def __init__(self, detector: Detector | None = None, *, partial: bool = False, rules: Rules | None = None) -> None:
        self.detector = detector or Mask2FormerDetector()
        self.partial, self.rules = partial, rules

    def __call__(self, images: Images, prompts: Sequence[str], **columns: Any) -> list[float]:
        """Return the reward of each image: 0 or 1, or with `partial` a number in [0, 1]; see `Reward`."""
        lines = [as_metadata(value) for value in read_column(self, columns, "metadata", images, prompts)]
        found = self.detector.detect(images, lines)
        return [self._score(detections, line) for detections, line in zip(found, lines, strict=True)]

    def _score(self, detections: list[Detection], metadata: Mapping[str, Any]) -> float:
        """Return the reward of one image, given the objects found in it and the requirements of its prompt."""
        verdict = score(detections, metadata, self.rules)
        if not self.partial:
            return float(verdict.correct)
        # `score` gives exactly one reason for every violated clause.
        return 1.0 - len(verdict.reasons) / (len(metadata.get("include", [])) + len(metadata.get("exclude", [])))


class ShapesReward(GenEvalReward):
    """`GenEvalReward` for the synthetic images of coloured shapes that `janus_hf.shapes` renders.

    Its detector is exact, needs no model and takes milliseconds.

    Args:
        partial: Return the share of requirements that an image meets, instead of 1 if it meets all and else 0.
    """

    __name__ = "shapes"

    def __init__(self, *, partial: bool = False) -> None:
        super().__init__(ShapesDetector(), partial=partial)


class PositionReward:
    """Reward that is the share of a prompt's positions ("a dog right of a cat") that hold in the image, in [0, 1].

    It reads the column `metadata`: the requirements of each image's prompt, as a line of GenEval's
    `evaluation_metadata.jsonl` (a dict or JSON). An element of `include` with `position: [relation, k]` holds if,
    by GenEval's rules, its objects are in this relation to the objects of element `k`. Colours and all other
    requirements are ignored.

    Args:
        detector: Object detector; by default GroundingDINO, as in T2I-R1.
        rules: Thresholds to use instead of GenEval's.
    """

    __name__ = "position"

    def __init__(self, detector: Detector | None = None, *, rules: Rules | None = None) -> None:
        self.detector = detector or GroundingDinoDetector()
        self.rules = rules

    def __call__(self, images: Images, prompts: Sequence[str], **columns: Any) -> list[float]:
        """Return for each image the share in [0, 1] of the prompt's positions that hold; see `Reward`.

        Raises:
            ValueError: If the metadata of an image contain no position, or for the reasons given in `Reward`.
        """
        lines = [as_metadata(value) for value in read_column(self, columns, "metadata", images, prompts)]
        pairs = [_position_pairs(line) for line in lines]
        # GroundingDINO takes the classes to find from the metadata, so the detector gets only those of the positions.
        found = self.detector.detect(images, [{"include": list(chain(*own))} for own in pairs])
        return [
            sum(score(detections, {"tag": "position", "include": pair}, self.rules).correct for pair in own) / len(own)
            for detections, own in zip(found, pairs, strict=True)
        ]


def _position_pairs(metadata: Mapping[str, Any]) -> list[list[dict[str, Any]]]:
    """Return one pair of `include` clauses (requirements) for each clause with a position.

    The second clause of a pair is the one with the position, and the first is the clause that this position refers to.
    Both are copies with class and count only, so that neither colours nor further positions are judged. The position
    refers to index 0, the first clause of the pair.

    Raises:
        ValueError: If no clause has a position, or a position refers to a clause that does not exist.
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
    """Return a line of GenEval's metadata as a dict, without the fields that are None in it or in its clauses.

    Args:
        value: The line as a data set stores it: a mapping, or the JSON of a mapping.

    Raises:
        TypeError: If `value` is neither.
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
