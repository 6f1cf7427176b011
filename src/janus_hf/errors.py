"""The exception class `CheckpointError`. All other errors that a user can cause are `ValueError` or `TypeError`."""

from collections.abc import Iterable


class CheckpointError(ValueError):
    """Raised when the files of a checkpoint or adapter do not contain exactly the model that they should contain.

    The lists of weights are attributes, sorted by name, and part of the message.

    Args:
        message: Text that says what was expected, what was found and what to do.
        missing: Names of weights that the model needs and the files lack.
        unexpected: Names of weights that the files hold and the model does not have.
        mismatched: `(name, shape in the files, shape in the model)` for weights of the wrong shape.
    """

    def __init__(
        self,
        message: str,
        *,
        missing: Iterable[str] = (),
        unexpected: Iterable[str] = (),
        mismatched: Iterable[tuple[str, tuple[int, ...], tuple[int, ...]]] = (),
    ) -> None:
        self.missing = sorted(missing)
        self.unexpected = sorted(unexpected)
        self.mismatched = sorted((key, tuple(found), tuple(expected)) for key, found, expected in mismatched)
        lines = [message]
        lines += _listing("missing", self.missing)
        lines += _listing("unexpected", self.unexpected)
        lines += _listing(
            "wrong shape",
            [f"{key}: {found} in the files, {wanted} expected" for key, found, wanted in self.mismatched],
        )
        super().__init__("\n".join(lines))


def _listing(title: str, items: list[str], limit: int = 20) -> list[str]:
    """Return lines for an error message: a title with the number of items, the first `limit` items, and how many more.

    Return no lines if there are no items.
    """
    if not items:
        return []
    rest = [f"    ... and {len(items) - limit} more"] if len(items) > limit else []
    return [f"  {title} ({len(items)}):", *(f"    {item}" for item in items[:limit]), *rest]
