"""`BadRows`, which counts the rows that cannot be used and ends the work if they are too many.

A bad row is skipped and counted, so that one broken image does not stop a preparation of weeks. If most rows are bad,
something else is wrong, such as the folder of the images, and going on would lose the data.
"""

from collections.abc import Iterable, Mapping


MAX_BAD_SHARE = 0.5  # the default
# A share of fewer rows says little, so they count as this many: while rows are read, and when all have been read.
SOONEST, FEWEST = 100, 8
SHOWN_ROWS = 5  # numbers of rows that are listed for each reason
ASKED_FOR = ("other_task",)  # reasons to skip a row that is not bad: the user chose the task


class BadRows:
    """Counter of the bad rows among those that one process has read.

    Args:
        max_share: Largest share of bad rows, in [0, 1]. 0 allows none, and 1 any number.
        source: Name of the data, for the error message.

    Raises:
        ValueError: If `max_share` is no number in [0, 1].
    """

    def __init__(self, max_share: float, source: str) -> None:
        check_share(max_share)
        self.max_share, self.source = max_share, source
        self.read = self.bad = 0

    def add(self, read: int, skipped: Iterable[tuple[int, str, str]], place: str = "the source") -> None:
        """Count further rows, and raise `ValueError` if too many were bad so far.

        Args:
            read: Number of rows that were read, the bad ones included.
            skipped: `(number of the row, reason, message)` of those that were skipped.
            place: Words for the part of the source in which rows are numbered.
        """
        wrong = [entry for entry in skipped if entry[1] not in ASKED_FOR]
        self.read, self.bad = self.read + read, self.bad + len(wrong)
        if self.bad > self.max_share * max(self.read, SOONEST):
            row, reason, message = wrong[-1]
            where = f"row {row}" if place == "the source" else f"row {row} of {place}"
            raise too_many(self.source, self.bad, self.read, self.max_share, f"{where} ({reason}): {message}")


def check_share(value: object) -> None:
    """Raise `ValueError` unless `value` is a number in [0, 1]."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise ValueError(
            f"`max_bad_share` must be a number in [0, 1], got {value!r}: 0 allows no bad row, and 1 any number."
        )


def check_counts(source: str, kept: int, skipped: Mapping[str, int], max_share: float, example: str) -> None:
    """Raise `ValueError` if too many rows of a source that has been read completely are bad.

    Args:
        source: Name of the data.
        kept: Number of prepared rows.
        skipped: Reason -> number of rows that were skipped.
        max_share: Largest share of bad rows that is allowed.
        example: Words for one of them.
    """
    read = kept + sum(skipped.values())
    bad = sum(number for reason, number in skipped.items() if reason not in ASKED_FOR)
    if bad > max_share * max(read, FEWEST):
        raise too_many(source, bad, read, max_share, example)


def first_rows(skipped: Iterable[tuple[int, str, str]]) -> dict[str, list[int]]:
    """Return reason -> numbers of the first rows that were skipped for it, at most `SHOWN_ROWS` (5) of each."""
    found: dict[str, list[int]] = {}
    for row, reason, _ in skipped:
        if len(rows := found.setdefault(reason, [])) < SHOWN_ROWS:
            rows.append(row)
    return dict(sorted(found.items()))


def list_rows(first: Mapping[str, list[int]], counts: Mapping[str, int]) -> str:
    """Return words for the first skipped rows by reason, such as "bad_picture: rows 3, 8; too_long: row 5"."""
    parts = [
        f"{reason}: {'rows' if counts[reason] > 1 else 'row'} {', '.join(map(str, rows))}"
        + (f" and {counts[reason] - len(rows)} more" if counts[reason] > len(rows) else "")
        for reason, rows in first.items()
    ]
    return "; ".join(parts)


def too_many(source: str, bad: int, read: int, max_share: float, example: str) -> ValueError:
    """Return, without raising it, the error for a source of which too many rows are bad.

    Args:
        source: Name of the data.
        bad: Number of bad rows.
        read: Number of all rows read.
        max_share: Largest share of bad rows that is allowed.
        example: Words for one of them.
    """
    return ValueError(
        f"At most {max_share:.4g} of the rows of {source} may be bad, got {bad} of {read}; {example} Correct the "
        "source, or allow more with max_bad_share (--max-bad-share at the command line)."
    )


__all__ = ["MAX_BAD_SHARE", "BadRows", "check_counts", "check_share", "first_rows", "list_rows"]
