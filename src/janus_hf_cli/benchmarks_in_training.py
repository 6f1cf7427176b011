"""`make_benchmarks`, which makes the benchmarks that a recipe runs during training, in its section `evaluate`.

The options of a benchmark are those of its command `janus-hf eval BENCHMARK`, with underscores: the same parser reads
them. Here, and not in `janus_hf.training`, because training and evaluation do not import each other.
"""

import argparse
import logging
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from .benchmark_commands import COMMANDS


if TYPE_CHECKING:
    from janus_hf import JanusProForConditionalGeneration, JanusProPipeline, JanusProProcessor

logger = logging.getLogger(__name__)

# Options of the commands that a recipe cannot set, because the run does.
_NOT_HERE = ("output",)


# Any: values of YAML.
def make_benchmarks(section: Mapping[str, Any]) -> dict[str, "TrainingBenchmark"]:
    """Return the benchmarks of a recipe, for the argument `make_benchmarks` of `janus_hf.training.train`.

    Data are looked up and read, and judges are loaded, so that what is missing stops the run before its first step.

    Args:
        section: The recipe's `evaluate.benchmarks`: the options of each benchmark by its name.

    Raises:
        ValueError: If a benchmark is unknown or has no number to log, or an option is unknown or out of range.
        FileNotFoundError: If the data or the judge of a benchmark are neither at hand nor available for download.
    """
    return {name: TrainingBenchmark(name, options or {}) for name, options in section.items()}


class TrainingBenchmark:
    """A benchmark for `janus_hf.training`; see its protocol `Benchmark`.

    Args:
        name: Name of the benchmark, a key of `COMMANDS`.
        options: Its options, by the name of the command's option with underscores.
    """

    def __init__(self, name: str, options: Mapping[str, Any]) -> None:
        from janus_hf.evaluation.downloads import find_data
        from janus_hf.evaluation.evaluators import better_if_greater, make_evaluator

        if name not in COMMANDS:
            raise ValueError(
                f"evaluate.benchmarks must name benchmarks of this package, got {name!r}: choose from "
                f"{', '.join(COMMANDS)}."
            )
        parsed = _parse(name, options)
        # Judges in processes of their own end with this process.
        self._judges = ExitStack()
        try:
            if parsed.data is not None:
                find_data(name, parsed.data)  # before a judge is loaded, which takes long
            evaluator = make_evaluator(name, parsed.data, **COMMANDS[name].options(parsed, self._judges))
            names = evaluator.metric_names()
            if not names:
                raise ValueError(
                    f"this package must score a benchmark for its numbers to be logged, got {name!r}, whose judge is "
                    f"external: use `janus-hf eval {name}` with the trained model."
                )
            for judge in (getattr(evaluator, part, None) for part in ("detector", "judge")):
                if callable(load := getattr(judge, "load", None)):
                    load()
        except OSError as error:
            # Errors of the Hub have several lines, of which the first one says what is missing.
            raise FileNotFoundError(
                f"evaluate.benchmarks.{name} must have its data and its judge at hand, in the cache or as its "
                f"options: {str(error).splitlines()[0]}"
            ) from error
        except (TypeError, ValueError) as error:
            raise ValueError(f"evaluate.benchmarks.{name}: {error}") from error
        self.name, self.evaluator, self._keys = name, evaluator, _keys(names)
        self.metrics = {key: better_if_greater(metric) for metric, key in self._keys.items()}

    def __call__(
        self,
        model: "JanusProForConditionalGeneration",
        processor: "JanusProProcessor",
        folder: Path,
        *,
        shared: bool,
    ) -> dict[str, float]:
        """Run the benchmark and return its metrics by name, the same in every process; see `Benchmark`."""
        from janus_hf.evaluation.run_folder import every_process_alone, processes

        is_main = processes().is_main_process
        with nullcontext() if shared else every_process_alone(), _own_folder(folder, shared or is_main) as own:
            if processes().is_main_process:
                shutil.rmtree(own, ignore_errors=True)  # of an earlier run, or of this one before it was killed
            processes().wait_for_everyone()
            report = self.evaluator(_pipeline(model, processor), own)
        if report.failures and is_main:
            logger.warning(
                "%d items of the benchmark %s could not be judged, the first one: %s. They are not in its numbers.",
                *(len(report.failures), self.name, report.failures[0]),
            )
        return {self._keys[metric]: value for metric, value in report.metrics.items() if metric in self._keys}


# Any: values of YAML.
def _parse(name: str, options: Mapping[str, Any]) -> argparse.Namespace:
    """Return the options of a benchmark in a recipe as its command would parse them.

    Raises:
        ValueError: If the command has no such option, or a value is not of the option's kind.
    """
    parser = _Parser(f"evaluate.benchmarks.{name}")
    COMMANDS[name].add_arguments(parser)
    known = {option: default for option, default in vars(parser.parse_args([])).items() if option not in _NOT_HERE}
    if name == "shapes":
        del known["data"]  # set for the command alone, whose benchmarks otherwise all have this option
    words = []
    for option, value in options.items():
        if option not in known:
            raise ValueError(
                f"evaluate.benchmarks.{name} has no option {option!r}: remove it, or choose one of "
                f"{', '.join(sorted(known))}."
            )
        word = f"--{str(option).replace('_', '-')}"
        if isinstance(known[option], bool):
            if not isinstance(value, bool):
                raise ValueError(
                    f"evaluate.benchmarks.{name}.{option} must be true or false, got {value!r}: change it."
                )
            words += [word] if value else []
        elif isinstance(value, bool | list | dict):
            raise ValueError(
                f"evaluate.benchmarks.{name}.{option} must be a number or a word, got {value!r}: change it."
            )
        elif value is not None:
            words.append(f"{word}={value}")
    return parser.parse_args(words)


class _Parser(argparse.ArgumentParser):
    """A parser that raises its errors as `ValueError`; `where` names the section of the recipe in them."""

    def __init__(self, where: str) -> None:
        super().__init__(add_help=False, allow_abbrev=False)
        self.where = where

    def error(self, message: str) -> NoReturn:
        """Raise a `ValueError` with the message."""
        raise ValueError(f"{self.where}: {message.replace('argument --', '')}. Change the value.")


def _keys(names: list[str]) -> dict[str, str]:
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


def _pipeline(model: "JanusProForConditionalGeneration", processor: "JanusProProcessor") -> "JanusProPipeline":
    """Return a pipeline of a model in training, which shows no progress and keeps no memory between its calls."""
    from functools import partialmethod

    from janus_hf import JanusProPipeline

    class Pipeline(JanusProPipeline):
        """`JanusProPipeline` whose cache grows with the image, so that its memory is free for training afterwards."""

        __call__ = partialmethod(JanusProPipeline.__call__, cache_implementation="dynamic")

    pipe = Pipeline(model, processor)
    pipe.set_progress_bar_config(disable=True)
    return pipe


__all__ = ["TrainingBenchmark", "make_benchmarks"]
