"""Functions that tokenize texts, insert the ids of images, cut and pad the results, and check the number of images.

An image's ids replace its placeholder token after tokenization, as in deepseek-ai/Janus. The tokenizer therefore never
sees the expanded text.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from transformers.processing_utils import ProcessingKwargs, TextKwargs
from transformers.tokenization_utils_tokenizers import TokenizersBackend

from ..arguments import check_choice, check_flag, check_integer, check_keywords, describe
from .image_steps import JanusProImageKwargs
from .pictures import flatten_images
from .untrusted_text import MarkedText, tokenize_marked


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


# Keyword arguments of a processor's call that concern its texts (`TextKwargs` of transformers), with their defaults.
TEXT_DEFAULTS: dict[str, Any] = {  # Any: the types differ
    "add_special_tokens": True,
    "max_length": None,
    "pad_to_multiple_of": None,
    "padding": True,
    "padding_side": None,
    "return_attention_mask": True,
    "return_length": False,
    "return_mm_token_type_ids": False,
    "return_offsets_mapping": False,
    "return_special_tokens_mask": False,
    "return_tensors": "pt",
    "return_text_replacement_offsets": False,
    "truncation": False,
}
# Those that no call may give, with what to do instead.
TEXT_REFUSED = {
    "is_split_into_words": "join the words of a text to one string",
    "return_overflowing_tokens": "cut long texts before the call",
    "return_token_type_ids": "the model has one kind of text; for images see return_mm_token_type_ids",
    "sanitize_control_tokens": "pass parse_special_tokens=False",
    "stride": "cut long texts before the call",
    "text_pair": "pass one string per example",
    "text_pair_target": "tokenize the target in a call of its own",
    "text_target": "tokenize the target in a call of its own",
    "verbose": "the call prints nothing",
}
_GROUPS = ("common_kwargs", "text_kwargs", "images_kwargs", "videos_kwargs", "audio_kwargs")


class JanusProProcessingKwargs(ProcessingKwargs, TextKwargs, JanusProImageKwargs, total=False):  # type: ignore[call-arg]
    """Keyword arguments of a processor's call, each on its own or in the group of its kind.

    common_kwargs (`dict`): Arguments for texts and images, such as `return_tensors`.
    """

    common_kwargs: dict[str, Any]


def sort_keywords(kwargs: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the keyword arguments of a processor's call for texts, with their defaults, and those for images.

    Args:
        kwargs: Arguments as `ProcessingKwargs` of transformers describes them: on their own, or in the dicts
            `text_kwargs`, `images_kwargs` and `common_kwargs`.

    Raises:
        TypeError: If an argument is unknown, or a group is no dict.
        ValueError: If an argument is given twice, or cannot be followed.
    """
    groups = {name: kwargs.get(name) or {} for name in _GROUPS}
    for name, group in groups.items():
        if not isinstance(group, Mapping):
            raise TypeError(f"`{name}` must be a dict of keyword arguments, got {describe(group)}: write {{}}.")
    for name in ("videos_kwargs", "audio_kwargs"):
        if groups[name]:
            raise ValueError(f"`{name}` must be left out, got {sorted(groups[name])}: pass text and images only.")
    flat = {**groups["common_kwargs"], **{name: value for name, value in kwargs.items() if name not in groups}}
    text_names, image_names = {*TEXT_DEFAULTS, *TEXT_REFUSED}, set(JanusProImageKwargs.__annotations__)
    check_keywords(flat, "the processor", passed_on=text_names | image_names)
    for name in flat:
        if name in groups["text_kwargs"] or name in groups["images_kwargs"]:
            raise ValueError(f"`{name}` must be given once, got it on its own and in a group: leave out one of them.")
    texts = {**groups["text_kwargs"], **{name: value for name, value in flat.items() if name in text_names}}
    images = {**groups["images_kwargs"], **{name: value for name, value in flat.items() if name in image_names}}
    idle = (None, False, 0)  # values with which a refused argument asks for nothing
    wanted = {name: value for name, value in texts.items() if not (name in TEXT_REFUSED and value in idle)}
    check_keywords(wanted, "the processor", passed_on=TEXT_DEFAULTS, refused=TEXT_REFUSED)
    settled = TEXT_DEFAULTS | wanted
    if settled["truncation"] is None:  # as in transformers' tokenizers
        settled["truncation"] = False
    _check_text_options(settled)
    # transformers' names of strategies for pairs of texts, which are the same for single ones.
    settled["truncation"] = settled["truncation"] not in (False, "do_not_truncate")
    return settled, images


def _check_text_options(options: Mapping[str, Any]) -> None:
    """Check the keyword arguments that say how texts become a batch; see `JanusProProcessor.__call__`.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If it has an unknown value, or arguments do not fit each other.
    """
    if not isinstance(options["padding"], bool):
        check_choice(options["padding"], "padding", ("longest", "max_length", "do_not_pad"))
    if options["padding_side"] is not None:
        check_choice(options["padding_side"], "padding_side", ("left", "right"))
    if options["pad_to_multiple_of"] is not None:
        check_integer(options["pad_to_multiple_of"], "pad_to_multiple_of", "leave it out to pad to the longest text")
    if options["max_length"] is not None:
        check_integer(options["max_length"], "max_length", "give a number of tokens")
    if options["return_tensors"] is not None:
        check_choice(options["return_tensors"], "return_tensors", ("pt", "np"))
    if isinstance(options["truncation"], str):
        check_choice(
            options["truncation"], "truncation", ("longest_first", "only_first", "only_second", "do_not_truncate")
        )
    for name, value in options.items():
        if isinstance(TEXT_DEFAULTS[name], bool) and not (
            name in ("padding", "truncation") and isinstance(value, str)
        ):
            check_flag(value, name)
    cuts = options["truncation"] not in (False, "do_not_truncate")
    if options["max_length"] is None and (cuts or options["padding"] == "max_length"):
        raise ValueError(
            "`max_length` must be given with truncation=True or padding='max_length', got None: give a number."
        )


def encode(
    tokenizer: TokenizersBackend,
    texts: Sequence[str],
    *,
    add_special_tokens: bool = True,
    structure: Sequence[str] = (),
) -> list[Row]:
    """Tokenize every text separately and return a list with one encoded text for each.

    An encoded text has for every position the token id and the character span `(start, end)` of the text that the id
    came from. With `add_special_tokens` it begins with exactly one BOS, even if the text already contains one.

    Args:
        tokenizer: The tokenizer.
        texts: The texts. Those parts of a `MarkedText` that come from messages give no special tokens.
        add_special_tokens: Whether to add BOS.
        structure: Further tokens that count as special, such as the names of roles.
    """
    rows = []
    for text in texts:
        # A chat template may have written BOS into the text already, and the tokenizer would add a second one.
        start, bos = 0, tokenizer.bos_token
        foreign = text.foreign if isinstance(text, MarkedText) else ()
        while add_special_tokens and text.startswith(bos, start) and not any(foreign[start : start + len(bos)]):
            start += len(bos)
        if isinstance(text, MarkedText):
            rest = MarkedText(text[start:], foreign[start:])
            row = tokenize_marked(tokenizer, rest, structure, add_special_tokens=add_special_tokens)
        else:
            encoding = tokenizer(text[start:], add_special_tokens=add_special_tokens, return_offsets_mapping=True)
            row = list(zip(encoding["input_ids"], encoding["offset_mapping"], strict=True))
        rows.append([(token, (first + start, last + start)) for token, (first, last) in row])
    return rows


def make_text_batch(
    tokenizer: TokenizersBackend,
    texts: Sequence[str],
    images: Any,
    options: Mapping[str, Any],
    *,
    structure: Sequence[str],
    image_token: str,
    image_ids: Sequence[int],
    parses: bool,
) -> dict[str, Any]:
    """Return the part of a batch that comes from texts, as nested lists by key.

    Args:
        tokenizer: The tokenizer.
        texts: B rendered texts.
        images: The caller's images, of which there must be one per placeholder.
        options: Arguments of a call, as `sort_keywords` returns them.
        structure: As in `encode`.
        image_token: The placeholder token of an image.
        image_ids: The ids of a whole image, which replace its placeholder.
        parses: Whether placeholders in the texts of messages count, for an error message.

    Raises:
        ValueError: If the numbers of placeholders and images differ, or an image would be cut.
    """
    rows = encode(tokenizer, texts, add_special_tokens=options["add_special_tokens"], structure=structure)
    image_id = int(tokenizer.convert_tokens_to_ids(image_token))
    counts = [sum(token == image_id for token, _ in row) for row in rows]
    check_counts(counts, images, image_token=image_token, parses=parses)
    rows = [splice_images(row, image_id=image_id, spliced_ids=image_ids) for row in rows]
    if options["truncation"]:
        cut = {"max_length": options["max_length"], "side": tokenizer.truncation_side, "image_id": image_id}
        rows = [truncate(row, **cut) for row in rows]
    padding = {name: options[name] for name in ("padding_side", "padding", "pad_to_multiple_of")}
    if options["padding"] == "max_length":
        padding["max_length"] = options["max_length"]
    data = collate(tokenizer, rows, **padding)
    if options["return_length"]:
        data["length"] = [len(row) for row in rows]
    special = set(tokenizer.all_special_ids)
    for name, marked in (("special_tokens_mask", special), ("mm_token_type_ids", {image_id})):
        if options[f"return_{name}"]:
            data[name] = [[int(token in marked) for token in ids] for ids in data["input_ids"]]
    for name, key in (("return_offsets_mapping", "offset_mapping"), ("return_attention_mask", "attention_mask")):
        if not options[name]:
            del data[key]
    return data


def check_counts(counts: Sequence[int], images: Any, *, image_token: str, parses: bool = True) -> None:
    """Raise `ValueError` unless the texts contain exactly one placeholder for every image.

    Args:
        counts: Number of placeholders in each text.
        images: The caller's images. A nested list is compared with `counts` text by text, a flat one in total.
        image_token: The placeholder token, for messages.
        parses: Whether placeholders in the texts of messages count.
    """
    if not parses:
        image_token = "image part of a message (with parse_special_tokens=False the text holds none)"
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
