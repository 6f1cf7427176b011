"""Functions that tokenize texts, insert the ids of images, cut and pad the results, and check the number of images.

An image's ids replace its placeholder token after tokenization, as in deepseek-ai/Janus. The tokenizer therefore never
sees the expanded text.
"""

from collections.abc import Sequence
from typing import Any, TypeAlias

from transformers.tokenization_utils_tokenizers import TokenizersBackend

from ..arguments import check_choice, check_flag, check_integer, describe
from .pictures import flatten_images


Row: TypeAlias = list[tuple[int, tuple[int, int]]]
"""One encoded text: for every position the id, and start and end of the characters that it came from."""


def check_texts(text: Any, name: str) -> list[str]:
    """Return `text` as a list of strings: a string becomes a list of one, and a list is copied.

    Args:
        text: The caller's argument.
        name: Name of that argument, for messages.

    Raises:
        TypeError: If `text` is neither a string nor a list of strings.
        ValueError: If the list is empty, or a string has characters that cannot be encoded.
    """
    texts = [text] if isinstance(text, str) else text
    if not isinstance(texts, (list, tuple)) or not all(isinstance(one, str) for one in texts):
        raise TypeError(
            f"`{name}` must be a string or a list of strings, got {describe(text)}: convert its items to strings."
        )
    if not texts:
        raise ValueError(f"`{name}` must hold at least one string, got an empty list: skip the call if there is none.")
    for one in texts:
        if any("\ud800" <= character <= "\udfff" for character in one):
            raise ValueError(
                f"`{name}` must be Unicode text, got {one[:40]!r} with half of a surrogate pair: decode "
                "the bytes that it comes from as UTF-8."
            )
    return list(texts)


def check_batch_options(
    *,
    padding: bool | str,
    padding_side: str | None,
    pad_to_multiple_of: int | None,
    truncation: bool,
    max_length: int | None,
    return_tensors: str | None,
    **flags: bool,
) -> None:
    """Check the arguments of a processor's call that say how texts become a batch; see `JanusProProcessor.__call__`.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If it has an unknown value, or arguments do not fit each other.
    """
    if not isinstance(padding, bool):
        check_choice(padding, "padding", ("longest", "max_length", "do_not_pad"))
    if padding_side is not None:
        check_choice(padding_side, "padding_side", ("left", "right"))
    if pad_to_multiple_of is not None:
        check_integer(pad_to_multiple_of, "pad_to_multiple_of", "leave it out to pad to the longest text")
    if max_length is not None:
        check_integer(max_length, "max_length", "give a number of tokens")
    if return_tensors is not None:
        check_choice(return_tensors, "return_tensors", ("pt", "np"))
    for name, value in {"truncation": truncation, **flags}.items():
        check_flag(value, name)
    if max_length is None and (truncation or padding == "max_length"):
        raise ValueError(
            "`max_length` must be given with truncation=True or padding='max_length', got None: give a number."
        )


def encode(tokenizer: TokenizersBackend, texts: Sequence[str], *, add_special_tokens: bool = True) -> list[Row]:
    """Tokenize every text separately and return a list with one encoded text for each.

    An encoded text has for every position the token id and the character span `(start, end)` of the text that the id
    came from. With `add_special_tokens` it begins with exactly one BOS, even if the text already contains one.
    """
    rows = []
    for text in texts:
        # A chat template may have written BOS into the text already, and the tokenizer would add a second one.
        start = 0
        while add_special_tokens and text.startswith(tokenizer.bos_token, start):
            start += len(tokenizer.bos_token)
        encoding = tokenizer(text[start:], add_special_tokens=add_special_tokens, return_offsets_mapping=True)
        spans = [(first + start, last + start) for first, last in encoding["offset_mapping"]]
        rows.append(list(zip(encoding["input_ids"], spans, strict=True)))
    return rows


def check_counts(counts: Sequence[int], images: Any, *, image_token: str) -> None:
    """Raise `ValueError` unless the texts contain exactly one placeholder for every image.

    Args:
        counts: Number of placeholders in each text.
        images: The caller's images. A nested list is compared with `counts` text by text, a flat one in total.
        image_token: The placeholder token, for messages.
    """
    items = images if isinstance(images, (list, tuple)) else []
    nested = [item is None or isinstance(item, (list, tuple)) for item in items]
    if not any(nested):
        where = "the text" if len(counts) == 1 else f"the {len(counts)} texts together"
        _check_count(sum(counts), len(flatten_images(images)), image_token, where)
        return
    if not all(nested) or len(images) != len(counts):
        raise ValueError(
            f"Nested `images` must be one list per text, {len(counts)} in all, got {len(images)} items: pass an empty "
            "list for a text without images."
        )
    for index, (count, own) in enumerate(zip(counts, images, strict=True)):
        _check_count(count, len(flatten_images(own)), image_token, f"text {index}")


def _check_count(placeholders: int, images: int, image_token: str, where: str) -> None:
    """Raise `ValueError` unless the number of `placeholders` equals the number of `images`.

    The message names the placeholder token (`image_token`) and the text or texts that were counted (`where`).
    """
    if placeholders != images:
        raise ValueError(
            f"`images` must be one image per {image_token} in {where}, got {placeholders} placeholders and {images} "
            "images: pass one image per placeholder, or write one placeholder per image into the text."
        )


def splice_images(row: Row, *, image_id: int, spliced_ids: Sequence[int]) -> Row:
    """Return an encoded text in which every placeholder id `image_id` is replaced by the ids of a whole image.

    Args:
        row: The encoded text: for every position the token id and a character span.
        image_id: Id of the placeholder token.
        spliced_ids: The ids of an image, which all get the placeholder's character span.
    """
    return [(new, span) for token, span in row for new in (spliced_ids if token == image_id else (token,))]


def truncate(row: Row, *, max_length: int, side: str, image_id: int) -> Row:
    """Return the first `max_length` positions of an encoded text if `side` is "right", otherwise the last.

    Args:
        row: The encoded text: for every position the token id and a character span.
        max_length: Number of positions to keep.
        side: Side that is cut, "left" or "right".
        image_id: Id of the placeholder token, which fills the positions of images.

    Raises:
        ValueError: If an image would be cut.
    """
    kept = row[:max_length] if side == "right" else row[-max_length:]
    if sum(token == image_id for token, _ in kept) != sum(token == image_id for token, _ in row):
        raise ValueError(
            f"`max_length` must leave all images whole, got {max_length} for {len(row)} ids, which would cut one: "
            "raise it, or pass fewer images."
        )
    return kept


def collate(
    tokenizer: TokenizersBackend, rows: Sequence[Row], *, padding_side: str | None = None, **padding: Any
) -> dict[str, Any]:
    """Pad encoded texts to one batch of equal length.

    Args:
        tokenizer: Tokenizer that defines the padding id, and the padding side unless `padding_side` is given.
        rows: B encoded texts: for every position the token id and a character span.
        padding_side: "left" or "right".
        padding: Further arguments of the tokenizer's `pad`.

    Returns:
        A dictionary with the keys `input_ids`, `attention_mask` (0 at padding) and `offset_mapping` (character spans,
        (0, 0) at padding). Each value is a list of B lists.
    """
    side = padding_side or tokenizer.padding_side
    batch = dict(tokenizer.pad({"input_ids": [[t for t, _ in row] for row in rows]}, padding_side=side, **padding))
    batch["offset_mapping"] = []
    for ids, row in zip(batch["input_ids"], rows, strict=True):
        blank, spans = [(0, 0)] * (len(ids) - len(row)), [span for _, span in row]
        batch["offset_mapping"].append(blank + spans if side == "left" else spans + blank)
    return batch
