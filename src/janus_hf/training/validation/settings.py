"""Checks of a recipe's evaluation: its sources, its benchmarks, and the options that need either of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...arguments import by_name, describe
from ..batches import MapStyleDataset
from .benchmarks import Benchmark, logged_metrics, without_prefix


@dataclass(frozen=True)
class EvaluationSource:
    """A data source that a run is evaluated on.

    Args:
        rows: Its rows, of any type that the run's collator accepts.
        tasks: Tasks of the rows: "text", "understanding" or "drawing".
        ratio: Weight of its labels in the losses over all sources.
    """

    rows: MapStyleDataset
    tasks: tuple[str, ...]
    ratio: float = 1.0


# Options of a recipe that have no effect without evaluation, and values with which they ask for none.
_NEEDS_EVALUATION = (
    *("eval_strategy", "eval_steps", "eval_delay", "eval_on_start", "per_device_eval_batch_size"),
    *("load_best_model_at_end", "metric_for_best_model", "greater_is_better"),
)
_ASKS_FOR_NONE = (None, False, "no")
# Options about evaluation that a recipe cannot have, and the reason.
_REFUSED = by_name(
    {
        "an evaluation during training computes as the training does": "bf16_full_eval fp16_full_eval",
        "it follows from eval_strategy": "do_eval",
    }
)


def check_evaluation(data: Mapping[str, Any], evaluate: Mapping[str, Any], training: dict[str, Any]) -> None:
    """Check what a recipe says about evaluation, and fill in the options that follow from it.

    Args:
        data: The recipe's section `data`; its key `evaluation` is a list of sources.
        evaluate: The recipe's section `evaluate`, {} if there is none.
        training: The recipe's section `training`. `eval_strategy` and `eval_steps` are added if `evaluate.every` or
            `eval_steps` states them, and `per_device_eval_batch_size`, by default that of the training.

    Raises:
        ValueError: If an entry is malformed, an option needs evaluation and there is none, or there are data or
            benchmarks and nothing says when to evaluate.
    """
    for name, reason in _REFUSED.items():
        if (value := training.get(name)) not in _ASKS_FOR_NONE:
            raise ValueError(f"training.{name} must be left out of a recipe, got {value!r}: {reason}.")
    _check_sources(data.get("evaluation"))
    _check_benchmarks(evaluate)
    if not (data.get("evaluation") or evaluate):
        given = {name: training.get(name) for name in _NEEDS_EVALUATION}
        given |= {"save_strategy": "best"} if training.get("save_strategy") == "best" else {}
        for name, value in given.items():
            if value not in _ASKS_FOR_NONE:
                raise ValueError(
                    f"training.{name} must come together with data to evaluate on, got {value!r} without: add sources "
                    "as data.evaluation, or benchmarks in the section evaluate, or leave it out."
                )
        return
    _fill_in_strategy(evaluate, training)
    if training.get("per_device_eval_batch_size") is None and "per_device_train_batch_size" in training:
        training["per_device_eval_batch_size"] = training["per_device_train_batch_size"]


def is_turned_off(training: Mapping[str, Any]) -> bool:
    """Return whether a recipe's `eval_strategy: no` turns its evaluation off."""
    return training.get("eval_strategy") == "no" and not training.get("eval_on_start")


def set_metric(
    training: Mapping[str, Any],
    args: Any,  # Any: JanusProSFTConfig, whose module imports this package
    sources: Mapping[str, EvaluationSource],
    benchmarks: Mapping[str, Benchmark],
) -> None:
    """Check that evaluations log the metric by which the best checkpoint is chosen, and set its direction in `args`.

    Args:
        training: The recipe's section `training`.
        args: The run's configuration. `greater_is_better` is set if the recipe leaves it out.
        sources: The evaluation sources by name.
        benchmarks: The benchmarks by name.

    Raises:
        ValueError: If no evaluation logs the metric, or the recipe must say whether a greater value is better.
    """
    logged = logged_metrics({name: source.tasks for name, source in sources.items()}, benchmarks)
    if args.metric_for_best_model is None:
        return
    name = without_prefix(args.metric_for_best_model)
    if name not in logged:
        known = ", ".join(f"eval_{metric}" for metric in logged)
        raise ValueError(
            f"`metric_for_best_model` must be a metric that the evaluations of this run log, got {name!r}: choose one "
            f"of {known}."
        )
    if training.get("greater_is_better") is None:
        if logged[name] is None:
            raise ValueError(
                f"`greater_is_better` must be set with metric_for_best_model {name!r}, of which neither greater nor "
                "smaller values are better in general: set it to true or false."
            )
        args.greater_is_better = logged[name]


# Any: values of YAML, here and below.
def _check_sources(sources: Any) -> None:
    """Raise `ValueError` unless `data.evaluation` is None or a list of sources with names that metrics can have."""
    if sources is None:
        return
    if not isinstance(sources, list) or not sources:
        raise ValueError(
            f"data.evaluation must be a list of at least one source, got {describe(sources)}: add a source with name "
            "and path, or leave it out."
        )
    for source in sources:
        if not isinstance(source, dict) or not {"name", "path"} <= set(source):
            found = sorted(map(str, source)) if isinstance(source, dict) else describe(source)
            raise ValueError(
                f"Every source of data.evaluation must have a name and a path, got {found}: add the missing keys."
            )
        ratio = source.get("ratio", 1)
        if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 0 < ratio < float("inf"):
            raise ValueError(
                f"The ratio of the evaluation source {source['name']!r} must be a number above 0, got "
                f"{describe(ratio)}: give the weight of its labels in the losses over all sources, or leave it out."
            )
        if source["name"] in ("text", "image"):
            raise ValueError(
                f"An evaluation source must not be named {source['name']!r}, because eval_{source['name']}_loss is "
                "the loss of a head of the model: rename it."
            )
    names = [source["name"] for source in sources]
    if len(set(names)) != len(names):
        raise ValueError(f"The names of the sources of data.evaluation must differ, got {names}: rename one.")


def _check_benchmarks(evaluate: Any) -> None:
    """Raise `ValueError` unless the section `evaluate` is empty, or names benchmarks and how often to run them.

    Whether the benchmarks exist, and have the options, is checked when they are made.
    """
    if not evaluate:
        return
    benchmarks = evaluate.get("benchmarks")
    if not isinstance(benchmarks, dict) or not benchmarks:
        raise ValueError(
            f"evaluate.benchmarks must be a mapping from benchmarks to their options, got {describe(benchmarks)}: "
            "write, for example, `shapes: {prompts_per_tag: 2}` below it."
        )
    for name, options in benchmarks.items():
        if options is not None and not isinstance(options, dict):
            raise ValueError(
                f"evaluate.benchmarks.{name} must be a mapping of options, got {describe(options)}: write `{name}: "
                "{}` to use the defaults."
            )
    every = evaluate.get("every")
    if every is not None and (isinstance(every, bool) or not isinstance(every, int) or every < 1):
        raise ValueError(
            f"evaluate.every must be a number of steps of 1 or more, got {describe(every)}: change it, or leave it "
            "out to run the benchmarks in every evaluation."
        )


def _fill_in_strategy(evaluate: Mapping[str, Any], training: dict[str, Any]) -> None:
    """Add `eval_strategy` and `eval_steps` to the section `training` if `eval_steps` or `evaluate.every` states them.

    Raises:
        ValueError: If nothing says when to evaluate, or the benchmarks are due at steps without an evaluation.
    """
    every, strategy = evaluate.get("every"), training.get("eval_strategy")
    if strategy is None and (every or training.get("eval_steps")):
        training["eval_strategy"] = strategy = "steps"
    if strategy == "steps" and every and not training.get("eval_steps"):
        training["eval_steps"] = every
    if strategy is None:
        if training.get("eval_on_start"):
            return
        raise ValueError(
            "training.eval_steps must be set together with data.evaluation or evaluate, got neither it nor "
            "evaluate.every: set the number of steps between evaluations, or training.eval_strategy to epoch, or to "
            "no, which turns evaluation off."
        )
    steps = training.get("eval_steps")
    if every and strategy != "no" and (strategy != "steps" or not isinstance(steps, int) or every % steps):
        raise ValueError(
            f"evaluate.every must be a multiple of training.eval_steps, got {every} with eval_strategy {strategy} and "
            f"eval_steps {steps}: change one of them, or leave evaluate.every out to run the benchmarks in every "
            "evaluation."
        )


__all__ = ["EvaluationSource", "check_evaluation", "is_turned_off", "set_metric"]
