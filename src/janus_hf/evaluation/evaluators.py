"""Benchmarks as callables: `evaluator(pipe, folder)` runs one and returns its report.

    from janus_hf.evaluation.evaluators import make_evaluator
    report = make_evaluator("pope", data="POPE.tsv")(pipe, "runs/pope")
    report.metrics[report.primary]

Every process of an `accelerate launch` makes the same call and takes its share. A run that was stopped goes on in its
folder.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..rewards.detectors import Detector
from ..rewards.mask2former import Mask2FormerDetector
from ..rewards.shapes_detector import ShapesDetector
from ..shapes import TAGS, make_drawing
from .benchmarks.answers import primary_metric
from .benchmarks.dpg import OFFICIAL_JUDGE, Judge, Quirks, evaluate_dpg
from .benchmarks.dpg_data import collect_grids, read_prompts
from .benchmarks.geneval import GenEval
from .benchmarks.geneval import read_prompts as read_geneval
from .benchmarks.image_metrics import PICTURE_METRICS
from .benchmarks.prompt_sets import read_geneval2, read_wise
from .benchmarks.protocol import BENCHMARKS as UNDERSTANDING
from .benchmarks.understanding import run_understanding
from .downloads import find_data
from .generate_run import draw_run, sample_path
from .report import Report
from .run_folder import processes, write_atomically
from .sheets import save_sheet


DRAWN_ONLY = ("geneval2", "wise")  # judged elsewhere, from what is drawn here
KNOWN = ("geneval", "dpg", *UNDERSTANDING, *DRAWN_ONLY)


class Evaluator(Protocol):
    """A benchmark."""

    @property
    def name(self) -> str:
        """A key of `paper.BENCHMARKS`."""
        ...

    @property
    def primary_metric(self) -> str:
        """The key of the report's `metrics`."""
        ...

    def __call__(self, pipe: Any, folder: str | os.PathLike[str]) -> Report:
        """Run it on a `JanusProPipeline`, keep everything in the folder, return the report."""
        ...

def make_evaluator(name: str, data: str | os.PathLike[str] | None = None, **options: Any) -> Evaluator:
    """An evaluator by its name.

    Args:
        name: One of `KNOWN`.
        data: The benchmark's file; None downloads the published one where its licence allows.
        options: Those of the evaluator; for "geneval" also `limit`, and `detector`, a model's name or "shapes": the
            small world's prompts (`prompts_per_tag` of each kind) and its exact detector.

    Raises:
        ValueError: If the name is unknown, naming the known ones, or of `PICTURE_METRICS`.
        FileNotFoundError: If the data are neither there nor to be downloaded; says where to get them.
    """
    if (limit := options.get("limit")) is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}.")
    if name in PICTURE_METRICS:
        raise ValueError(
            f"{name!r} measures pictures that are there: janus_hf.evaluation.benchmarks.image_metrics, or "
            f"janus-hf eval {name}."
        )
    if name not in KNOWN:
        raise ValueError(f"{name!r} is not a benchmark of this package. Known: {', '.join(KNOWN)}.")
    if name == "geneval":
        limit, detector = options.pop("limit", None), options.pop("detector", None)
        if detector == "shapes" and data is None:
            return GenEval(
                shapes_items(options.pop("prompts_per_tag", 100))[:limit], ShapesDetector(), name="shapes", **options
            )
        return GenEval(read_geneval(find_data(name, data))[:limit], _detector(detector), **options)
    path = find_data(name, data)
    if name == "dpg":
        return DPGBench(path, **options)
    return PromptSet(name, path, **options) if name in DRAWN_ONLY else Understanding(name, path, **options)


def _detector(chosen: Detector | str | None) -> Detector:
    if chosen == "shapes":
        return ShapesDetector()
    if chosen is None or isinstance(chosen, str):
        return Mask2FormerDetector(*([chosen] if chosen else []), device=processes().device)
    return chosen


def _saved(report: Report, folder: str | os.PathLike[str]) -> Report:
    if processes().is_main_process:
        report.save(Path(folder))
    return report


__all__ = [
    "DRAWN_ONLY",
    "KNOWN",
    "UNDERSTANDING",
    "DPGBench",
    "Evaluator",
    "PromptSet",
    "Understanding",
    "make_evaluator",
    "shapes_items",
]
