"""The two errors of preparation: `RowError`, for a row that is skipped, and `SourceError`, which ends the preparation."""


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


def unused(name: str, what: str, place: str, *, ignore: str | None = None) -> SourceError:
    """Return, without raising it, the error for content that would be lost.

    Args:
        name: Name of the column, key, part, role or file.
        what: What it holds, such as "an image".
        place: What does not use it, such as "the form 'drawing'", for "... is not used by PLACE".
        ignore: Name that lets it pass; the default is `name`.
    """
    ignore = name if ignore is None else ignore
    return SourceError(
        f"A source must hold content only where it is used, got {name!r}, which holds {what} and is not used by "
        f"{place}: rename or remove it, or leave it out with ignore=[{ignore!r}] (--ignore {ignore!r} at the command "
        "line)."
    )


__all__ = ["RowError", "SourceError", "unused"]
