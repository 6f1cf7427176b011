"""Functions that check one argument each; their errors name it, and its value is returned as a plain Python object."""

import math
import os
from collections.abc import Collection, Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np


def describe(value: object) -> str:
    """Return a text for a wrong value in an error message: its type, and the value itself if it is short.

    Only the type is named of tensors, images and output objects, because their values would fill the screen.
    """
    kind = type(value).__name__
    if value is None or isinstance(value, (bool, type)):
        return repr(value)
    if isinstance(value, (str, bytes, Real, os.PathLike, list, tuple)) and len(text := repr(value)) <= 60:
        return f"{text} ({kind})"
    # The outputs of pipelines and models are dicts; a caller who passes one most likely meant one of its attributes.
    fields = [name for name in ("images", "image_ids") if isinstance(value, dict) and hasattr(value, name)]
    return f"an object of type {kind}" + (f" (take its .{' or .'.join(fields)})" if fields else "")


def check_number(value: Any, name: str, advice: str) -> float:
    """Return a real number, such as an int, a float or a numpy scalar, as a float.

    Args:
        value: The caller's argument. Its range is not checked, and NaN is accepted: the caller of this function must
            check both.
        name: Name of that argument, for the message.
        advice: What to pass instead, for the message.

    Raises:
        TypeError: If the value is not a real number. True and False do not count as numbers.
        ValueError: If it is infinite, or an integer beyond the range of floats.
    """
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, Real):
        raise TypeError(f"`{name}` must be a number, got {describe(value)}: {advice}.")
    try:
        number = float(value)
    except OverflowError:  # an integer beyond the range of floats
        raise ValueError(f"`{name}` must be in the range of floats, got a larger integer: {advice}.") from None
    if math.isinf(number):
        raise ValueError(f"`{name}` must be finite, got {value}: {advice}.")
    return number


def check_integer(value: Any, name: str, advice: str, *, least: int | None = 1) -> int:
    """Return an integer of Python or numpy as an int.

    Args:
        value: The caller's argument.
        name: Name of that argument, for the message.
        advice: What to pass instead, for the message.
        least: Smallest value that is allowed; None allows all integers.

    Raises:
        TypeError: If the value is not an integer. True, False and 1.0 do not count as integers.
        ValueError: If the value is smaller than `least`.
    """
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, Integral):
        raise TypeError(f"`{name}` must be an integer, got {describe(value)}: {advice}.")
    if least is not None and value < least:
        raise ValueError(f"`{name}` must be at least {least}, got {value}: {advice}.")
    return int(value)


def check_flag(value: Any, name: str) -> bool:
    """Return a truth value of Python or numpy as a bool.

    Args:
        value: The caller's argument.
        name: Name of that argument, for the message.

    Raises:
        TypeError: If the value is anything else.
    """
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"`{name}` must be True or False, got {describe(value)}: pass one of them.")
    return bool(value)


def check_choice(value: Any, name: str, choices: Sequence[str]) -> None:
    """Raise an error unless `value` is one of a few names.

    Args:
        value: The caller's argument.
        name: Name of that argument, for the message.
        choices: The names that are allowed, at least two.

    Raises:
        TypeError: If the value is not a string.
        ValueError: If it is a string that is not among `choices`.
    """
    if not isinstance(value, str) or value not in choices:
        error = ValueError if isinstance(value, str) else TypeError
        got = repr(value) if isinstance(value, str) else describe(value)
        *others, last = map(repr, choices)
        raise error(f"`{name}` must be {', '.join(others)} or {last}, got {got}: choose one of them.")


def check_callable(value: Any, name: str) -> None:
    """Raise a TypeError unless `value`, the caller's argument `name`, is None or can be called."""
    if value is not None and not callable(value):
        raise TypeError(f"`{name}` must be a function or None, got {describe(value)}: pass the function itself.")


def check_path(value: Any, name: str, meaning: str) -> str:
    """Return a path or repository id as a string.

    Args:
        value: The caller's argument.
        name: Name of that argument, for the message.
        meaning: What the argument names, for the message.

    Raises:
        TypeError: If the value is neither a string nor a path.
        ValueError: If it is empty, or a path object that consists of bytes.
    """
    if not isinstance(value, (str, os.PathLike)):
        raise TypeError(f"`{name}` must be {meaning}, got {describe(value)}: pass it as a string or a path.")
    if not (path := os.fspath(value)) or not isinstance(path, str):
        raise ValueError(f"`{name}` must be {meaning}, got {path!r}: pass its name.")
    return path


def by_name(reasons: Mapping[str, str]) -> dict[str, str]:
    """Return a table from each argument's name to a reason, for a table from a reason to names between spaces."""
    return {name: reason for reason, names in reasons.items() for name in names.split()}


def check_keywords(
    kwargs: Mapping[str, object],
    function: str,
    *,
    passed_on: Collection[str],
    refused: Mapping[str, str] | None = None,
) -> None:
    """Raise an error for keyword arguments that would be ignored.

    A keyword whose value is None counts as left out, as in transformers.

    Args:
        kwargs: The keyword arguments of a call that its signature does not list.
        function: Name of the called function, for the message.
        passed_on: Names that the function passes on to code which uses them.
        refused: Names that callers may know from other functions, each with what to do instead.

    Raises:
        ValueError: If a keyword of `refused` is given.
        TypeError: If a keyword is in neither collection.
    """
    given = [name for name, value in kwargs.items() if value is not None and name not in passed_on]
    for name in given:
        if advice := (refused or {}).get(name):
            raise ValueError(f"`{name}` must be left out of `{function}`, got {describe(kwargs[name])}: {advice}.")
    if given:
        raise TypeError(
            f"`{function}` must receive arguments that it knows, got {', '.join(map(repr, sorted(given)))} too: check "
            "the spelling, or leave them out."
        )


__all__ = [
    "by_name",
    "check_callable",
    "check_choice",
    "check_flag",
    "check_integer",
    "check_keywords",
    "check_number",
    "check_path",
    "describe",
]
