"""Benchmarks as callables: `evaluator(pipe, folder)` runs a benchmark and returns its report.

    from janus_hf.evaluation.evaluators import make_evaluator
    report = make_evaluator("pope", data="POPE.tsv")(pipe, "runs/pope")
    report.metrics[report.primary]

Every process of an `accelerate launch` makes the same call and does its share of the work. A run that was stopped
continues in its folder.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from ..protocols import ImagePipeline
from .benchmarks.dpg import DPGBench, make_dpg
from .benchmarks.geneval import GenEval, make_geneval
from .benchmarks.image_metrics import PICTURE_METRICS
from .benchmarks.prompt_sets import PromptSet, make_prompt_set
from .benchmarks.protocol import BENCHMARKS as UNDERSTANDING
from .benchmarks.shapes_world import ShapesWorld, make_shapes
from .benchmarks.understanding import Understanding, make_understanding
from .report import Report


class Evaluator(Protocol):
    """A benchmark with its data and options."""

    @property
    def name(self) -> str:
        """Name of the benchmark, a key of `paper.BENCHMARKS`."""
        ...

    @property
    def primary_metric(self) -> str:
        """Key of the report's `metrics` that stands for the benchmark."""
        ...

    def __call__(self, pipe: ImagePipeline, folder: str | os.PathLike[str] | None) -> Report:
        """Run the benchmark and return its report.

        Args:
            pipe: The pipeline that is evaluated.
            folder: Folder of the run, in which images, answers and the report are kept. None keeps nothing.

        Raises:
            TypeError: If `folder` is None and the benchmark judges the images in it.
        """
        ...


@dataclass(frozen=True)
class Benchmark:
    """A row of the table of benchmarks.

    Args:
        evaluator: Class of the benchmark's evaluators.
        make: Function `(name, data, **options) -> Evaluator`. `data` is the path of the benchmark's file; None
            stands for the published file, which is downloaded where its licence allows.
    """

    evaluator: Callable[..., Evaluator]
    make: Callable[..., Evaluator]


# Adding a benchmark takes its file in `benchmarks/`, a row here and, for the command line, a row in
# `janus_hf_cli.benchmark_commands.COMMANDS`. The two tables cannot be one, because importing this one loads torch.
TABLE: dict[str, Benchmark] = {
    "geneval": Benchmark(GenEval, make_geneval),
    "dpg": Benchmark(DPGBench, make_dpg),
    **dict.fromkeys(UNDERSTANDING, Benchmark(Understanding, make_understanding)),
    "geneval2": Benchmark(PromptSet, make_prompt_set),
    "wise": Benchmark(PromptSet, make_prompt_set),
    "shapes": Benchmark(ShapesWorld, make_shapes),
}
KNOWN = tuple(TABLE)
DRAWN_ONLY = tuple(name for name, row in TABLE.items() if row.evaluator is PromptSet)  # judged by external judges


def make_evaluator(name: str, data: str | os.PathLike[str] | None = None, **options: Any) -> Evaluator:
    """Return the evaluator of a benchmark.

    Args:
        name: One of `KNOWN`.
        data: Path of the benchmark's file; None downloads the published one where its licence allows.
        options: Arguments of the evaluator's class. For "geneval" also `limit` and `detector`, which is a detector, a
            model's name, or "shapes" for the shapes world's prompts (`prompts_per_tag` of each kind) and its exact
            detector.

    Raises:
        ValueError: If the name is unknown or one of `PICTURE_METRICS`, an option is out of range, or "shapes", which
            makes its own prompts, is given data.
        FileNotFoundError: If the data are neither at hand nor available for download. The message says where to get
            them.
    """
    if (limit := options.get("limit")) is not None and limit < 1:
        raise ValueError(f"`limit` must be at least 1, got {limit}: leave it out to use everything.")
    if name in PICTURE_METRICS:
        raise ValueError(
            f"{name!r} measures images that exist already: use janus_hf.evaluation.benchmarks.image_metrics, or "
            f"janus-hf eval {name}."
        )
    if name not in TABLE:
        raise ValueError(f"{name!r} is not a benchmark of this package. Known: {', '.join(KNOWN)}.")
    return TABLE[name].make(name, data, **options)


__all__ = [
    "DRAWN_ONLY",
    "KNOWN",
    "TABLE",
    "UNDERSTANDING",
    "Benchmark",
    "DPGBench",
    "Evaluator",
    "PromptSet",
    "ShapesWorld",
    "Understanding",
    "make_evaluator",
]
