"""The exception class `CheckpointError`, and the error for values that are not finite.

All other errors that a user can cause are `ValueError` or `TypeError`.
"""

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


def not_finite(values: str, part: str, dtype: object, remedy: str) -> FloatingPointError:
    """Return the error for computed values that are infinite or NaN.

    Args:
        values: What is not finite, in the plural, such as "the model's image logits".
        part: Part of the model where that begins, such as "the image codec".
        dtype: Dtype of this part, such as `torch.float16`.
        remedy: What to choose for this part if its dtype is float16, an imperative without a full stop.
    """
    name = str(dtype).removeprefix("torch.")
    advice = (
        f"{remedy}, because float16 has no numbers above 65504"
        if name == "float16"
        else "check its weights (a broken file, or an adapter with a large scale)"
    )
    return FloatingPointError(f"{values} are not finite; infinity or NaN comes first in {part} ({name}): {advice}.")


def _listing(title: str, items: list[str], limit: int = 20) -> list[str]:
    """Return lines for an error message: a title with the number of items, the first `limit` items, and how many more.

    Return no lines if there are no items.
    """
    if not items:
        return []
    rest = [f"    ... and {len(items) - limit} more"] if len(items) > limit else []
    return [f"  {title} ({len(items)}):", *(f"    {item}" for item in items[:limit]), *rest]
