"""`checked`, a decorator that checks the arguments of a function by their names, and the table that it uses."""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import ParamSpec, TypeVar

from .argument_values import FLAG, PATH, TEXT, Value, check_values, integer, number, of_kind


P = ParamSpec("P")
Result = TypeVar("Result")

_INTEGER = integer(None, 8)
_MAPPING = of_kind("a dict", Mapping, None, "name each entry by its key")
_LIST = of_kind("a list", lambda value: isinstance(value, Sequence) and not isinstance(value, (str, bytes)), None)
_NAMES = of_kind("a list of strings", lambda value: isinstance(value, (list, tuple, set, frozenset, str)), ["a"])
# The kind is told by what code reads of such an object, so that other libraries may bring their own.
_MODEL = of_kind("a model", lambda value: hasattr(value, "config"), None, "load one with from_pretrained")
_PROCESSOR = of_kind("a processor", lambda value: hasattr(value, "tokenizer"), None, "load one with from_pretrained")
_PIPELINE = of_kind(
    "a pipeline",
    lambda value: callable(value) or hasattr(value, "processor"),
    None,
    "load one with JanusProPipeline.from_pretrained",
)


def _is_source(value: object) -> bool:
    return not isinstance(value, bytes) and value is not None and not (isinstance(value, str) and not value)


# What arguments may be whose names mean the same in all functions for data and evaluation. Ranges of integers are
# checked by these functions, because they depend on other arguments.
COMMON: Mapping[str, Value] = {
    **dict.fromkeys(("folder", "output_dir", "data", "path", "grids", "target"), PATH),
    **dict.fromkeys(("task", "adapter", "benchmark", "name"), TEXT),
    **dict.fromkeys(("max_length", "num_threads", "num_shards", "rank", "world_size", "num_packs"), _INTEGER),
    "rows_per_shard": _INTEGER,
    **dict.fromkeys(
        ("seed", "sample_seed", "pool_size", "limit", "images_per_prompt", "prompts_per_tag", "max_new_tokens"),
        _INTEGER,
    ),
    "batch_size": Value(lambda value, name: value if value == "auto" else _INTEGER.check(value, name), 8),
    "pad_to": integer(1, 4096),
    "each": integer(1, 6),
    **dict.fromkeys(("questions", "size"), _INTEGER),
    # It stays an integer if it is one, because it is part of the hash of a plan.
    "epochs": of_kind("a number", lambda value: isinstance(value, Real) and not isinstance(value, bool), 1),
    "pass_mark": number("be a number", lambda value: value == value, 0.5),
    "caption_drop": number("be a probability in [0, 1]", lambda value: 0 <= value <= 1, 0.1, "0 drops none"),
    **dict.fromkeys(("always_picture", "varlen", "return_task_ids", "shows_progress", "held_out"), FLAG),
    **dict.fromkeys(("ratios", "lengths", "sources", "folders", "drawing", "reports"), _MAPPING),
    **dict.fromkeys(("prompts", "scores", "groups"), _LIST),
    "max_bad_share": number("be a number in [0, 1]", lambda value: 0 <= value <= 1, 0.5, "0 allows no bad row"),
    "ignore": _NAMES,
    "image_hosts": _NAMES,
    "shuffle": of_kind(
        "a ShardShuffle", lambda value: hasattr(value, "settings"), None, "leave it out for the exact one"
    ),
    "source": of_kind("a path, a Hub id, a list of rows or a datasets.Dataset", _is_source, None),
    "model": _MODEL,
    "processor": _PROCESSOR,
    "pipe": _PIPELINE,
}


def checked(**rows: Value) -> Callable[[Callable[P, Result]], Callable[P, Result]]:
    """Return a decorator that checks the arguments of every call of a function, before anything is done.

    An argument may be None if that is its default.

    Args:
        rows: What arguments may be, by name, beside `COMMON`. Arguments that are in neither are not checked.
    """
    table = {**COMMON, **rows}

    def decorate(function: Callable[P, Result]) -> Callable[P, Result]:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> Result:
            bound = signature.bind(*args, **kwargs)
            said = {
                name: value
                for name, value in bound.arguments.items()
                if value is not None or signature.parameters[name].default is not None
            }
            bound.arguments.update(check_values(said, table))
            return function(*bound.args, **bound.kwargs)

        return call

    return decorate


__all__ = ["COMMON", "checked"]
