"""Tags are read from processor_config.json, else from the tokenizer, else they are the original's defaults."""

from types import SimpleNamespace
from typing import Any

import pytest

from janus_hf.layouts.special_tokens import Tags


NAMED = SimpleNamespace(image_token="<i>", boi_token="<b>", eoi_token="<e>")
PLAIN = SimpleNamespace()
DEFAULTS = Tags("<image_placeholder>", "<begin_of_image>", "<end_of_image>", "<｜▁pad▁｜>", None)


@pytest.mark.parametrize(
    ("file", "tokenizer", "expected"),
    [
        ({}, PLAIN, DEFAULTS),
        ({"num_image_tokens": 576, "image_token": "<unused>"}, PLAIN, DEFAULTS),
        ({"image_start_tag": "<image_beg>"}, PLAIN, Tags(image_start_tag="<image_beg>")),
        ({"image_gen_tag": "<g>", "pad_tag": "<p>"}, PLAIN, Tags(image_gen_tag="<g>", pad_tag="<p>")),
        ({}, NAMED, Tags("<i>", "<b>", "<e>")),
        ({"image_tag": "<file>"}, NAMED, Tags("<file>", "<b>", "<e>")),
        ({}, SimpleNamespace(image_token=None), DEFAULTS),
        ({"image_gen_tag": "<begin_of_image>"}, PLAIN, Tags(image_gen_tag="<begin_of_image>")),
    ],
)
def test_where_tags_come_from(file: dict[str, Any], tokenizer: object, expected: Tags) -> None:
    assert Tags.from_files(file, tokenizer) == expected


@pytest.mark.parametrize("value", ["", None, 7, ["<a>"], {"content": "<a>"}])
@pytest.mark.parametrize("tag", ["image_tag", "image_start_tag", "image_end_tag", "pad_tag"])
def test_a_tag_must_be_text(tag: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"`{tag}` must be the text of a token, got "):
        Tags.from_files({tag: value}, PLAIN)


def test_tags_must_differ() -> None:
    with pytest.raises(ValueError, match="must be different tokens"):
        Tags(image_tag="<begin_of_image>")
    with pytest.raises(ValueError, match="`image_gen_tag` must be the text of a token, got 7"):
        Tags(image_gen_tag=7)  # type: ignore[arg-type]


def test_missing_tokens_are_added_in_the_order_of_the_original() -> None:
    assert DEFAULTS.added_in_order() == ("<image_placeholder>", "<begin_of_image>", "<end_of_image>")
    assert Tags("i", "b", "e", "p", "g").added_in_order() == ("i", "g", "b", "e")
