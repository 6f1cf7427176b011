"""The errors of preparation: `RowError`, for a row that is skipped, and `SourceError`, which ends the preparation."""

import shlex
from collections.abc import Mapping, Sequence


_SHOWN = 5  # file names in a message


class RowError(ValueError):
    """Error about a row that cannot be used for training. `prepare` catches it, counts the row and skips it.

    Args:
        reason: Short name of the reason, by which rows are counted, such as "too_long"; docs/data.md lists all.
        message: Description of what is wrong with the row.
    """

    def __init__(self, reason: str, message: str) -> None:
        self.reason = reason
        super().__init__(message)


class SourceError(ValueError):
    """Error about content of a source (a column, a part of a message, a file) that no prepared row would hold.

    It ends the preparation, because content must not be lost without the user's consent.
    """


def unused(name: str, what: str, place: str) -> SourceError:
    """Return, without raising it, the error for content that would be lost; see `all_unused`."""
    return all_unused({name: what}, place)


def all_unused(content: Mapping[str, str], place: str) -> SourceError:
    """Return, without raising it, the error for content that would be lost.

    Args:
        content: Names of columns, keys, parts or roles -> what they hold, such as "an image".
        place: What does not use them, such as "the form 'drawing'".
    """
    listed = ", ".join(f"{name!r} ({what})" for name, what in content.items())
    flags = " ".join(f"--ignore {shlex.quote(name)}" for name in content)
    return SourceError(
        f"A source must hold only content that is used, got {listed}, not used by {place}: rename or remove it, or "
        f"leave it out with ignore={list(content)} ({flags} at the command line)."
    )


def lost_files(names: Sequence[str], what: str) -> SourceError:
    """Return, without raising it, the error for files or folders whose content would be lost.

    Args:
        names: Their paths, relative to the source.
        what: What they are, such as "are images that no row names".
    """
    shown = ", ".join(map(repr, names[:_SHOWN])) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
    return SourceError(
        f"All files of a folder that hold content must be used, got {shown}, which {what}: add what is missing, move "
        f"them to a source of their own, or leave them out with ignore=[{names[0]!r}] (--ignore {names[0]!r} at the "
        "command line; names may hold wildcards)."
    )


__all__ = ["RowError", "SourceError", "all_unused", "lost_files", "unused"]
