"""Texts -> rows of ids with their character spans -> padded batch; pictures are spliced in as ids, as originally."""

from collections.abc import Sequence
from typing import Any, TypeAlias

from transformers.tokenization_utils_tokenizers import TokenizersBackend

from .pictures import flatten_pictures


Row: TypeAlias = list[tuple[int, tuple[int, int]]]
"""One text: an id and the characters (start, end) it came from, for every position."""


def check_texts(text: Any, name: str) -> list[str]:
    """A string or a non-empty list of strings -> a list of strings."""
    texts = [text] if isinstance(text, str) else text
    if not isinstance(texts, (list, tuple)) or not all(isinstance(one, str) for one in texts):
        raise TypeError(f"Expected {name} to be a string or a list of strings; got {text!r}.")
    if not texts:
        raise ValueError(f"Expected at least one string in {name}; got an empty list.")
    return list(texts)


def encode(tokenizer: TokenizersBackend, texts: Sequence[str], *, add_special_tokens: bool = True) -> list[Row]:
    """Ids and spans, with exactly one BOS if `add_special_tokens`."""
    rows = []
    for text in texts:
        start = 0
        while add_special_tokens and text.startswith(tokenizer.bos_token, start):
            start += len(tokenizer.bos_token)
        encoding = tokenizer(text[start:], add_special_tokens=add_special_tokens, return_offsets_mapping=True)
        spans = [(first + start, last + start) for first, last in encoding["offset_mapping"]]
        rows.append(list(zip(encoding["input_ids"], spans, strict=True)))
    return rows


def check_counts(counts: Sequence[int], images: Any, *, image_token: str) -> None:
    """Raises unless there are as many pictures as placeholders: in each text if `images` is nested, else in total."""
    items = images if isinstance(images, (list, tuple)) else []
    nested = [item is None or isinstance(item, (list, tuple)) for item in items]
    if not any(nested):
        place = "the text" if len(counts) == 1 else f"the {len(counts)} texts together"
        _check_count(sum(counts), len(flatten_pictures(images)), image_token, place)
        return
    if not all(nested) or len(images) != len(counts):
        raise ValueError(
            f"Expected nested images to be one list per text, {len(counts)} in all; got {len(images)} items. Use an "
            "empty list for a text without pictures."
        )
    for index, (count, own) in enumerate(zip(counts, images, strict=True)):
        _check_count(count, len(flatten_pictures(own)), image_token, f"text {index}")


def _check_count(expected: int, got: int, image_token: str, place: str) -> None:
    if expected != got:
        raise ValueError(
            f"Expected one picture per {image_token} in {place}; got {expected} placeholders and {got} pictures. "
            "Pass as many pictures as there are placeholders, or put one placeholder per picture in the text."
        )


def splice_pictures(row: Row, *, image_id: int, picture_ids: Sequence[int]) -> Row:
    """Each placeholder -> `picture_ids`, all with the placeholder's span."""
    return [(new, span) for token, span in row for new in (picture_ids if token == image_id else (token,))]


def truncate(row: Row, *, max_length: int, side: str, image_id: int) -> Row:
    """The first (or last, by `side`) `max_length` positions; refuses to cut a picture."""
    kept = row[:max_length] if side == "right" else row[-max_length:]
    if sum(token == image_id for token, _ in kept) != sum(token == image_id for token, _ in row):
        raise ValueError(
            f"Expected max_length to leave all pictures whole; cutting {len(row)} ids to {max_length} would cut one. "
            "Raise max_length, or pass fewer pictures."
        )
    return kept


def collate(
    tokenizer: TokenizersBackend, rows: Sequence[Row], *, padding_side: str | None = None, **padding: Any
) -> dict[str, Any]:
    """Rows -> `input_ids`, `attention_mask` and `offset_mapping` (padding has the span (0, 0)), as lists."""
    side = padding_side or tokenizer.padding_side
    batch = dict(tokenizer.pad({"input_ids": [[t for t, _ in row] for row in rows]}, padding_side=side, **padding))
    batch["offset_mapping"] = []
    for ids, row in zip(batch["input_ids"], rows, strict=True):
        blank, spans = [(0, 0)] * (len(ids) - len(row)), [span for _, span in row]
        batch["offset_mapping"].append(blank + spans if side == "left" else spans + blank)
    return batch
