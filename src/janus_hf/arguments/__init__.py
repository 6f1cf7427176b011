"""Checks of arguments, whose errors name the argument: single checks, tables of what arguments may be, a decorator."""

from .argument_values import (
    FLAG,
    FUNCTION,
    NOT_NEGATIVE,
    PATH,
    POSITIVE,
    SOME_SHARE,
    TEXT,
    Value,
    check_values,
    integer,
    number,
    of_kind,
    one_of,
    or_none,
)
from .common_arguments import COMMON, checked
from .single_arguments import (
    by_name,
    check_callable,
    check_choice,
    check_flag,
    check_integer,
    check_keywords,
    check_number,
    check_path,
    describe,
)


__all__ = [
    "COMMON",
    "FLAG",
    "FUNCTION",
    "NOT_NEGATIVE",
    "PATH",
    "POSITIVE",
    "SOME_SHARE",
    "TEXT",
    "Value",
    "by_name",
    "check_callable",
    "check_choice",
    "check_flag",
    "check_integer",
    "check_keywords",
    "check_number",
    "check_path",
    "check_values",
    "checked",
    "describe",
    "integer",
    "number",
    "of_kind",
    "one_of",
    "or_none",
]
