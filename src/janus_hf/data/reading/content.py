"""What a value holds: content for the model (an image, turns, a text, a label, a weight), or anything else.

The readers of this package use these functions to refuse content that they do not use. A column such as `id`, `url`
or `width` holds no content, and the report only names it.
"""

import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from PIL import Image


IMAGE, ADDRESS, TURNS, TEXT, LABEL, BYTES = (
    "an image",
    "the address of an image",
    "turns",
    "text for the model",
    "an answer, a label or a weight",
    "bytes",
)

# The last word of a column's name says what it holds: `negative_prompt` a prompt, `prompt_id` an id. Words of images
# are not content if the value is a number (`num_images`), and words of texts neither (`max_input`).
_IMAGES = """image images img imgs picture pictures photo photos jpg jpeg png webp mask masks pixels frame frames video
    videos audio audios sketch canvas control conditioning depth pose"""
_TEXTS = """prompt prompts caption captions text texts txt question questions query instruction instructions input
    inputs message messages conversation conversations dialog dialogue turn turns chat history system tool tools
    function functions calls choice choices option options hint hints context passage document documents lecture
    rationale explanation reasoning thinking thought thoughts cot description descriptions content contents negative
    negatives neg qa qas sentence sentences candidate candidates distractor distractors assistant kwargs"""
# These may be numbers.
_LABELS = """answer answers label labels class cls target targets output outputs response responses reply completion
    completions solution solutions chosen rejected weight weights truth gt gold expected reference references result
    results correct loss train training trainable masked"""
_HEADS = {word: kind for words, kind in ((_IMAGES, IMAGE), (_TEXTS, TEXT), (_LABELS, LABEL)) for word in words.split()}
_SUFFIXES = re.compile(r"(image|picture|mask|prompt|caption|question|answer)s?$")
# A name that ends with one of these words, and has no others than all these, may hold the address of the image that
# another column holds.
_LOCATIONS = "url urls uri uris link links href path paths file files filename filenames filepath filepaths"
_ADDRESS_HEADS = f"{_LOCATIONS} name key id source src"
_IMAGE_WORDS = "image images img imgs picture pictures photo photos"
_ADDRESS_WORDS = f"{_ADDRESS_HEADS} {_IMAGE_WORDS} page original coco flickr web hash"
# A number below a name that begins with such a word counts, or says whether there is something.
_COUNTS = "num n count total max min is has contains"

_SUFFIX = r"\.(png|jpe?g|webp|gif|bmp|tiff?|jfif|heic|avif|tga|ppm|pgm|exr|jp2|ico|dds)"
_IMAGE_NAME = re.compile(rf"[^\n]{{1,1000}}{_SUFFIX}|https?://[^\s]+{_SUFFIX}(\?[^\s]*)?", re.IGNORECASE)
_DATA_URL = re.compile(r"data:[^,]{0,200};base64,")
# How PNG, JPEG, GIF and WebP files begin in base64.
_BASE64 = ("iVBORw0KGgo", "/9j/", "R0lGOD", "UklGR")


def find_content(name: str, value: Any) -> str | None:
    """Return what content a value holds ("an image", "turns", ...), or None if it is empty or holds none.

    Args:
        name: Name of the column that holds the value, or of the key in a message.
        value: The value.
    """
    if is_number(value):  # NaN, which differs from itself, is an empty cell of a table
        return LABEL if value == value and _kind(name)[0] == LABEL else None
    if is_empty(value):
        return None
    kind, may_be_address = _kind(name)
    found = _find_in_value(name, value)
    if found is None and _locates_image(name):
        return ADDRESS
    if found == IMAGE and isinstance(value, str) and may_be_address and not value.startswith("data:"):
        return ADDRESS
    return kind if kind is not None and found not in (IMAGE, TURNS) else found


def name_kind(name: str) -> str | None:
    """Return what content a column holds by its name alone, or None."""
    return _kind(name)[0]


def is_empty(value: Any) -> bool:
    """Return whether a value holds nothing: None, white space, or a list or dict of such values."""
    if value is None or isinstance(value, str):
        return not value or value.isspace()
    if isinstance(value, Mapping):
        return all(is_empty(item) for item in value.values())
    if isinstance(value, (list, tuple)):
        return all(is_empty(item) for item in value)
    return isinstance(value, (bytes, bytearray)) and not value


def is_image(value: Any) -> bool:
    """Return whether a value is an image or names one: pixels, encoded bytes in a dict, a path, a URL or base64."""
    if isinstance(value, str):
        if value.startswith("data:"):
            return value.startswith("data:image")
        if value.startswith(_BASE64):
            return len(value) > 100 and not any(character.isspace() for character in value[:100])
        # The regular expression is slow for long texts.
        may_be_name = len(value) < 2000 and ("." in value[-6:] or value.startswith("http"))
        return may_be_name and _IMAGE_NAME.fullmatch(value) is not None
    if isinstance(value, Mapping):  # the form of undecoded images in `datasets`
        return {"bytes", "path"} >= set(value) and not is_empty(value)
    # A vector is an embedding.
    return isinstance(value, Image.Image) or (isinstance(value, (np.ndarray, torch.Tensor)) and value.ndim > 1)


def is_number(value: Any) -> bool:
    """Return whether a value is a number or a truth value."""
    return isinstance(value, (int, float, np.number))


def is_covered(name: str, patterns: Iterable[str]) -> bool:
    """Return whether a name is one of `patterns`, which may hold the wildcards of a shell."""
    return any(name == pattern or fnmatchcase(name, pattern) for pattern in patterns)


@lru_cache(maxsize=4096)
def _locates_image(name: str) -> bool:
    """Return whether a column holds the places of images by its name, as `image_url` and `photo_paths` do."""
    words = re.findall(r"[a-z]+", re.sub(r"([a-z])([A-Z])", r"\1 \2", name.rpartition(".")[2]).lower())
    return len(words) > 1 and words[-1] in _LOCATIONS.split() and any(word in _IMAGE_WORDS.split() for word in words)


@lru_cache(maxsize=4096)
def _kind(name: str) -> tuple[str | None, bool]:
    """Return what a column holds by its name, or None, and whether it may hold the address of another's image."""
    spaced = re.sub(r"([a-z])([A-Z])", r"\1 \2", name.rpartition(".")[2])  # camelCase
    words = re.findall(r"[a-z]+|\d+", spaced.lower())
    if re.fullmatch("[A-J]", name):  # an option of a multiple-choice question
        return TEXT, False
    # `option_a` and `option1` are options.
    named = [word for word in words if not word.isdigit() and (len(word) > 1 or len(words) == 1)]
    head = named[-1] if named else ""
    if named and (named[0] == "loss" or named == ["kto", "tag"]):
        return LABEL, False
    kind = _HEADS.get(head)
    if kind is None and (suffix := _SUFFIXES.search(head)):
        kind = _HEADS[suffix[1]]
    if kind == LABEL and named[0] in _COUNTS.split() and head != "correct":
        kind = TEXT
    return kind, head in _ADDRESS_HEADS.split() and set(words) <= set(_ADDRESS_WORDS.split())


def _find_in_value(name: str, value: Any) -> str | None:
    """Return what content a value that is not empty holds by its type, whatever the name of its column."""
    if is_image(value):
        return IMAGE
    if isinstance(value, str):
        return BYTES if value.startswith("data:") and _DATA_URL.match(value) else None
    if isinstance(value, (bytes, bytearray, memoryview)):
        return BYTES
    if isinstance(value, Mapping):
        if {"role", "content"} <= set(value) or {"from", "value"} <= set(value):
            return TURNS
        return next((found for key, item in value.items() if (found := find_content(f"{name}.{key}", item))), None)
    if isinstance(value, (list, tuple)) and not is_number(value[0]):
        return next((found for item in value if (found := _find_in_value(name, item))), None)
    return None


__all__ = [
    "ADDRESS",
    "BYTES",
    "IMAGE",
    "LABEL",
    "TEXT",
    "TURNS",
    "find_content",
    "is_covered",
    "is_empty",
    "is_image",
    "name_kind",
]
