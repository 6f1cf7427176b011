"""`Value`, what an argument may be, functions that make such rows of a table, and the check of a call by a table."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .single_arguments import check_choice, check_flag, check_integer, check_number, check_path, describe


# Any: a value of any kind comes in, and a plain one of the kind that the row states comes out.
@dataclass(frozen=True)
class Value:
    """What an argument may be: a row of a table of arguments.

    Args:
        check: Function `(value, name)` that returns the value of the argument `name` as a plain Python object, or
            raises a TypeError or ValueError that names the argument.
        example: A value that is allowed, or None if an example needs objects that a table cannot hold.
    """

    check: Callable[[Any, str], Any]
    example: Any = None


# Any: values of arguments.
def check_values(values: Mapping[str, Any], table: Mapping[str, Value]) -> dict[str, Any]:
    """Return the values of arguments by name, checked by the rows of a table; arguments without a row are not checked.

    Raises:
        TypeError: If a value is of the wrong type.
        ValueError: If a value is out of range.
    """
    return {name: table[name].check(value, name) if name in table else value for name, value in values.items()}


def number(bounds: str, fits: Callable[[float], bool], example: float, advice: str = "") -> Value:
    """Return the row of an argument that is a finite number.

    Args:
        bounds: Words for the range after "must", such as "be positive".
        fits: Function that returns whether a number lies in this range; it is False for NaN.
        example: A number that is allowed.
        advice: What to pass instead, for the message; "" names the example.
    """

    def check(value: Any, name: str) -> float:  # Any: a value of any kind
        said = advice or f"write for example {name}={example}, or leave it out"
        found = check_number(value, name, said)
        if not fits(found):
            raise ValueError(f"`{name}` must {bounds}, got {value}: {said}.")
        return found

    return Value(check, example)


def integer(least: int | None, example: int, advice: str = "") -> Value:
    """Return the row of an argument that is an integer, of at least `least` unless that is None; see `number`."""

    def check(value: Any, name: str) -> int:  # Any: a value of any kind
        return check_integer(
            value, name, advice or f"write for example {name}={example}, or leave it out", least=least
        )

    return Value(check, example)


def one_of(*choices: str) -> Value:
    """Return the row of an argument that is one of at least two names."""

    def check(value: Any, name: str) -> str:  # Any: a value of any kind
        check_choice(value, name, choices)
        return str(value)

    return Value(check, choices[0])


# Any: `example` is of the kind that `fits` accepts.
def of_kind(
    words: str, fits: type | tuple[type, ...] | Callable[[Any], bool], example: Any, advice: str = ""
) -> Value:
    """Return the row of an argument that is an object of a certain kind.

    Args:
        words: Words for the kind, such as "a list of token ids".
        fits: The classes of such objects, or a function that returns whether an object is one.
        example: Such an object, or None.
        hint: What to pass instead, for the message; "" names the example.
    """

    def check(value: Any, name: str) -> Any:  # Any: a value of any kind
        is_one = isinstance(value, fits) if isinstance(fits, (type, tuple)) else fits(value)
        if not is_one:
            shown = "pass one" if example is None else f"write for example {name}={example!r}"
            raise TypeError(
                f"`{name}` must be {words}, got {describe(value)}: {advice or f'{shown}, or leave it out'}."
            )
        return value

    return Value(check, example)


def or_none(row: Value) -> Value:
    """Return the row of an argument that may be None as well."""
    return Value(lambda value, name: None if value is None else row.check(value, name), row.example)


# Ranges that several tables name, as the first two arguments of `number`.
POSITIVE: tuple[str, Callable[[float], bool]] = ("be positive", lambda value: value > 0)
NOT_NEGATIVE: tuple[str, Callable[[float], bool]] = ("be 0 or more", lambda value: value >= 0)
SOME_SHARE: tuple[str, Callable[[float], bool]] = ("lie in (0, 1]", lambda value: 0 < value <= 1)

FLAG = Value(check_flag, True)
TEXT = of_kind("a string", str, "a")
PATH = Value(lambda value, name: check_path(value, name, "a file or a folder") and value, "folder")
FUNCTION = of_kind("a function", callable, None, "pass the function itself")


__all__ = [
    "FLAG",
    "FUNCTION",
    "NOT_NEGATIVE",
    "PATH",
    "POSITIVE",
    "SOME_SHARE",
    "TEXT",
    "Value",
    "check_values",
    "integer",
    "number",
    "of_kind",
    "one_of",
    "or_none",
]
