"""The table of all benchmarks, and `make_evaluator`, which returns the evaluator of a benchmark by its name.

An evaluator is a callable: `evaluator(pipe, folder)` runs a benchmark on a pipeline and returns its `Report`.

    from janus_hf.evaluation.evaluators import make_evaluator
    report = make_evaluator("pope", data="POPE.tsv")(pipe, "runs/pope")
    report.metrics[report.primary]

In an `accelerate launch`, every process makes the same call and does its share of the work. The same call also
continues a run that was stopped, if it names the same folder.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from ..arguments import COMMON, check_values, checked
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
    """Interface of evaluators: an evaluator holds a benchmark's data and options, and runs it when called."""

    @property
    def name(self) -> str:
        """Name of the benchmark, a key of `paper.BENCHMARKS`."""
        ...

    @property
    def primary_metric(self) -> str:
        """Name of the benchmark's main metric, a key of `Report.metrics` unless the report has no metrics."""
        ...

    def metric_names(self) -> list[str]:
        """Return the names of all metrics of a report in which every item could be judged; [] without metrics.

        Data are read and checked for this, so that an error in them comes before the benchmark runs.
        """
        ...

    def __call__(self, pipe: ImagePipeline, folder: str | os.PathLike[str] | None) -> Report:
        """Run the benchmark on a pipeline and return its report.

        Args:
            pipe: Pipeline of the model that is evaluated.
            folder: Folder in which the run keeps its images, its answers and the report. None keeps nothing on disk.

        Raises:
            TypeError: If `folder` is None, and the benchmark needs a folder for the images that it generates.
            ValueError: If the folder was made with other settings, or is None for MM-Vet.
        """
        ...


@dataclass(frozen=True)
class Benchmark:
    """A row of `TABLE`: how to make the evaluator of one benchmark.

    Args:
        evaluator: Class of the evaluators that `make` returns.
        make: Function `(name, data, **options)` that returns an evaluator. `data` is the path of the benchmark's data;
            None stands for the published file, which is downloaded if its licence allows that.
    """

    evaluator: Callable[..., Evaluator]
    make: Callable[..., Evaluator]


# To add a benchmark, add its file in `benchmarks/`, a row here and, for the command line, a row in
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
# Options that are numbers of 1 or more wherever an evaluator has them, and what to do with a smaller one.
_AT_LEAST_ONE = {
    "limit": "leave it out to use everything",
    "images_per_prompt": "choose a larger number",
    "batch_size": "choose a larger number",
    "max_new_tokens": "choose a larger number",
}
DRAWN_ONLY = tuple(name for name, row in TABLE.items() if row.evaluator is PromptSet)  # external judges score these


@checked()
def make_evaluator(name: str, data: str | os.PathLike[str] | None = None, **options: Any) -> Evaluator:
    """Return the evaluator of a benchmark.

    Args:
        name: Name of the benchmark, one of `KNOWN`.
        data: Path of the benchmark's data. None downloads the published file if its licence allows that.
        options: Arguments of the evaluator's class. "geneval" also takes `limit` (number of prompts), `sample_seed`
            and `detector`, which is a detector object, the name of a Mask2Former model, or "shapes". With "shapes" and
            without data, it generates `prompts_per_tag` prompts of each kind about coloured shapes, and detects these
            exactly.

    Raises:
        ValueError: If the name is unknown or one of `PICTURE_METRICS` (CLIPScore and FID, which measure existing
            images), an option is out of range, or `data` is given for "shapes", which makes its own prompts.
        FileNotFoundError: If the data are neither at hand nor available for download. The message says where to get
            them.
    """
    check_values({key: value for key, value in options.items() if value is not None}, COMMON)
    for option, advice in _AT_LEAST_ONE.items():
        if isinstance(value := options.get(option), int) and value < 1:
            raise ValueError(f"`{option}` must be at least 1, got {value}: {advice}.")
    if options.get("sample_seed") is not None and options.get("limit") is None:
        raise ValueError(
            f"`sample_seed` must come together with `limit`, got {options['sample_seed']} alone: set the number of "
            "prompts or questions to choose, or leave it out."
        )
    if name in PICTURE_METRICS:
        raise ValueError(
            f"{name!r} measures images that exist already: use janus_hf.evaluation.benchmarks.image_metrics, or "
            f"janus-hf eval {name}."
        )
    if name not in TABLE:
        raise ValueError(f"{name!r} is not a benchmark of this package. Known: {', '.join(KNOWN)}.")
    return TABLE[name].make(name, data, **options)


def better_if_greater(metric: str) -> bool | None:
    """Return whether a greater value of a metric is better; None if it is neither better nor worse.

    Args:
        metric: Name of the metric, as `Evaluator.metric_names` returns it.
    """
    if metric == "unparsed":  # share of answers that do not have the requested form
        return False
    # POPE's share of the answer "yes", of which half is right.
    return None if metric.endswith(" yes") else True


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
    "better_if_greater",
    "make_evaluator",
]
