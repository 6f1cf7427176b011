"""The interface of benchmarks that run during training, and the names of everything that an evaluation logs.

This package does not import the benchmarks themselves: `train` receives a function that makes them, as the command
`janus-hf train` passes it.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from ...modeling import JanusProForConditionalGeneration
from ...processing import JanusProProcessor


class Benchmark(Protocol):
    """A benchmark that can be run on the model of a trainer; see `MakeBenchmarks`."""

    @property
    def metrics(self) -> Mapping[str, bool | None]:
        """By name of each metric, whether a greater value is better; None if it is neither better nor worse.

        Names consist of letters, digits and underscores.
        """
        ...

    def __call__(
        self, model: JanusProForConditionalGeneration, processor: JanusProProcessor, folder: Path, *, shared: bool
    ) -> Mapping[str, float]:
        """Run the benchmark and return its metrics by name, the same in every process.

        Every process of the run calls this method at the same time. The model is in eval mode, and random states are
        restored afterwards.

        Args:
            model: The model in its present state, adapters included. It must not be changed.
            processor: The model's processor.
            folder: Folder for images, answers and the report, the same in every process. It may hold files of an
                earlier run, which must be replaced.
            shared: Whether the processes share the work. If False, their model is sharded, and every process must run
                the whole benchmark, because none can run the model alone.
        """
        ...


# Type of functions that make the benchmarks of a run, by name, from the section `evaluate.benchmarks` of its recipe.
# They raise a ValueError or a FileNotFoundError if an entry is wrong or its data are missing. Any: values of YAML.
MakeBenchmarks = Callable[[Mapping[str, Any]], Mapping[str, Benchmark]]

# The names that this package gives to losses have "loss" as one of their words: `text_loss`, `loss_drawing`.
_LOSS = re.compile(r"(^|_)loss(_|$)")
# The losses of each task, besides `loss_<task>`. The labels of an image to generate are image tokens.
_HEADS = {"text": "text_loss", "understanding": "text_loss", "drawing": "image_loss"}


def is_loss(metric: str) -> bool:
    """Return whether a metric is a loss by its name, so that a smaller value is better."""
    return bool(_LOSS.search(metric))


def without_prefix(metric: str) -> str:
    """Return the name of a metric without the prefix `eval_`, which transformers allows to leave out."""
    return metric.removeprefix("eval_")


def logged_metrics(tasks: Mapping[str, Iterable[str]], benchmarks: Mapping[str, Benchmark]) -> dict[str, bool | None]:
    """Return what every complete evaluation of a run logs: names without `eval_`, and whether greater is better.

    Args:
        tasks: By name of each evaluation source, the tasks of its rows ("text", "understanding" or "drawing").
        benchmarks: By name, the benchmarks that are run.
    """
    losses = ["loss"] if tasks else []
    for task in dict.fromkeys(task for each in tasks.values() for task in each):
        losses += [_HEADS[task], f"loss_{task}"]
    if len(tasks) > 1:
        losses += [f"{source}_loss" for source in tasks]
    metrics: dict[str, bool | None] = dict.fromkeys(losses, False)
    for name, benchmark in benchmarks.items():
        metrics |= {f"{name}_{metric}": better for metric, better in benchmark.metrics.items()}
    return metrics


__all__ = ["Benchmark", "MakeBenchmarks", "is_loss", "logged_metrics", "without_prefix"]
