"""`make_benchmarks`, which makes the benchmarks that a recipe runs during training, in its section `evaluate`.

The options of a benchmark are those of its command `janus-hf eval BENCHMARK`, with underscores: the same parser reads
them. Here, and not in `janus_hf.training`, because training and evaluation do not import each other.
"""

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NoReturn

from .benchmark_commands import COMMANDS


if TYPE_CHECKING:
    from janus_hf.integrations.evaluators_in_training import TrainingBenchmark

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
    return {name: _make(name, options or {}) for name, options in section.items()}


# Any: values of YAML.
def _make(name: str, options: Mapping[str, Any]) -> "TrainingBenchmark":
    """Return one benchmark of a recipe; the errors are those of `make_benchmarks`.

    Args:
        name: Name of the benchmark, a key of `COMMANDS`.
        options: Its options, by the name of the command's option with underscores.
    """
    import atexit
    from contextlib import ExitStack

    from janus_hf.evaluation.downloads import find_data
    from janus_hf.evaluation.evaluators import make_evaluator
    from janus_hf.integrations.evaluators_in_training import TrainingBenchmark

    if name not in COMMANDS:
        raise ValueError(
            f"evaluate.benchmarks must name benchmarks of this package, got {name!r}: choose from "
            f"{', '.join(COMMANDS)}."
        )
    parsed = _parse(name, options)
    judges = ExitStack()
    atexit.register(judges.close)  # judges in processes of their own end with this one
    try:
        if parsed.data is not None:
            find_data(name, parsed.data)  # before a judge is loaded, which takes long
        evaluator = make_evaluator(name, parsed.data, **COMMANDS[name].options(parsed, judges))
        return TrainingBenchmark(evaluator)
    except OSError as error:
        # Errors of the Hub have several lines, of which the first one says what is missing.
        raise FileNotFoundError(
            f"evaluate.benchmarks.{name} must have its data and its judge at hand, in the cache or as its options: "
            f"{str(error).splitlines()[0]}"
        ) from error
    except (TypeError, ValueError) as error:
        raise ValueError(f"evaluate.benchmarks.{name}: {error}") from error


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


__all__ = ["make_benchmarks"]
