"""`TrainingBenchmark`, with which a trainer runs an evaluator of `janus_hf.evaluation` on the model that it trains."""

import logging
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partialmethod
from pathlib import Path

from ..evaluation.evaluators import Evaluator, better_if_greater
from ..evaluation.run_folder import every_process_alone, processes
from ..modeling import JanusProForConditionalGeneration
from ..pipelines import JanusProPipeline
from ..processing import JanusProProcessor


logger = logging.getLogger(__name__)


class TrainingBenchmark:
    """A benchmark for `janus_hf.training`; see its protocol `Benchmark`.

    The data are read, and judges are loaded, so that what is missing stops a run before its first step.

    Args:
        evaluator: Evaluator that runs the benchmark.

    Raises:
        ValueError: If the evaluator has no metrics, because its judge is external, or its data are malformed.
        OSError: If its data or its judge are missing.
    """

    def __init__(self, evaluator: Evaluator) -> None:
        names = evaluator.metric_names()
        if not names:
            raise ValueError(
                f"this package must score a benchmark for its numbers to be logged, got {evaluator.name!r}, whose "
                f"judge is external: use `janus-hf eval {evaluator.name}` with the trained model."
            )
        for judge in (getattr(evaluator, part, None) for part in ("detector", "judge")):
            if callable(load := getattr(judge, "load", None)):
                load()
        self.evaluator, self._keys = evaluator, _keys(names)
        self.metrics = {key: better_if_greater(metric) for metric, key in self._keys.items()}

    def __call__(
        self, model: JanusProForConditionalGeneration, processor: JanusProProcessor, folder: Path, *, shared: bool
    ) -> dict[str, float]:
        """Run the benchmark and return its metrics by name, the same in every process; see `Benchmark`."""
        is_main = processes().is_main_process
        with nullcontext() if shared else every_process_alone(), _own_folder(folder, shared or is_main) as own:
            if processes().is_main_process:
                shutil.rmtree(own, ignore_errors=True)  # of an earlier run, or of this one before it was killed
            processes().wait_for_everyone()
            pipe = _Pipeline(model, processor)
            pipe.set_progress_bar_config(disable=True)
            report = self.evaluator(pipe, own)
        if report.failures and is_main:
            logger.warning(
                "%d items of the benchmark %s could not be judged, the first one: %s. They are not in its numbers.",
                *(len(report.failures), self.evaluator.name, report.failures[0]),
            )
        return {self._keys[metric]: value for metric, value in report.metrics.items() if metric in self._keys}


class _Pipeline(JanusProPipeline):
    """`JanusProPipeline` whose cache grows with the image, so that its memory is free for training afterwards."""

    __call__ = partialmethod(JanusProPipeline.__call__, cache_implementation="dynamic")


def _keys(names: Sequence[str]) -> dict[str, str]:
    """Return, for each name of a metric, its key in the log: letters, digits and underscores.

    `"held out: overall"` becomes "held_out_overall", and "count accuracy+" becomes "count_accuracy_plus".

    Raises:
        ValueError: If two names become the same key.
    """
    keys = {name: re.sub(r"\W+", "_", name.replace("+", " plus")).strip("_") for name in names}
    if len(set(keys.values())) != len(keys):
        twice = sorted(name for name, key in keys.items() if list(keys.values()).count(key) > 1)
        raise ValueError(f"The names of metrics must differ in letters and digits, got {twice}: rename a category.")
    return keys


@contextmanager
def _own_folder(folder: Path, is_ours: bool) -> Iterator[Path]:
    """Yield the folder for a process that may write there, and a temporary folder for another one."""
    if is_ours:
        yield folder
        return
    with tempfile.TemporaryDirectory() as temporary:
        yield Path(temporary) / folder.name


__all__ = ["TrainingBenchmark"]
