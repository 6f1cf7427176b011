"""The package's own exceptions; everything else a user can cause is a `ValueError` or `TypeError`."""

from collections.abc import Iterable


class CheckpointError(ValueError):
    """A checkpoint's files do not hold exactly the model they claim to hold.

    Args:
        message: What was expected, what was found, what to do.
        missing: Keys the model needs and the files lack.
        unexpected: Keys in the files that the model has no place for.
        mismatched: `(key, shape in the files, shape in the model)` for tensors of the wrong shape.
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
    if not items:
        return []
    rest = [f"    ... and {len(items) - limit} more"] if len(items) > limit else []
    return [f"  {title} ({len(items)}):", *(f"    {item}" for item in items[:limit]), *rest]
