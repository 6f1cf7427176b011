"""Ids equal the original's and begin with exactly one BOS, for every tokenizer.json and every way of loading it."""

from pathlib import Path
from typing import Any

import pytest
from tokenizers_for_tests import SPECIAL, STYLES, build_tokenizer, write_tokenizer
from transformers import AutoTokenizer, LlamaTokenizerFast
from transformers.tokenization_utils_tokenizers import TokenizersBackend

from janus_hf import JanusProImageProcessor, JanusProProcessor
from janus_hf.processing.prompts import BOI_TOKEN, BOS_TOKEN, EOI_TOKEN, EOS_TOKEN, IMAGE_TOKEN, PAD_TOKEN


def test_ids_equal_the_originals(golden_checkpoint: Path, manifest: dict[str, Any]) -> None:
    processor = JanusProProcessor.from_pretrained(golden_checkpoint)
    for case in manifest["strings"]["tokenizer_cases"]:
        ids = processor.tokenizer.encode(case["text"])
        assert ids == case["ids"]
        assert processor.decode(ids) == case["decoded"]
        assert processor.batch_decode([ids], skip_special_tokens=True) == [case["decoded_skip_special"]]


def test_special_ids_are_looked_up(golden_checkpoint: Path, manifest: dict[str, Any]) -> None:
    processor = JanusProProcessor.from_pretrained(golden_checkpoint)
    names = {"bos": "bos", "eos": "eos", "pad": "pad", "boi": "boi", "eoi": "eoi", "image": "image"}
    got = {short: getattr(processor, f"{name}_token_id") for short, name in names.items()}
    assert got == manifest["special_ids"]


@pytest.mark.parametrize("config", [True, False])
@pytest.mark.parametrize("style", STYLES)
def test_exactly_one_bos_in_every_style(style: str, config: bool, tmp_path: Path) -> None:
    raw = build_tokenizer(style)
    processor = JanusProProcessor.from_pretrained(write_tokenizer(tmp_path, style, config=config), num_image_tokens=2)
    text = "the cat? ab\ncd"
    bare = raw.encode(text, add_special_tokens=False).ids
    assert processor.tokenizer.encode(text) == [raw.token_to_id(BOS_TOKEN), *bare]
    assert processor.decode(processor.tokenizer.encode(text), skip_special_tokens=True) == text
    for given in (text, BOS_TOKEN + text, BOS_TOKEN * 2 + text):
        assert processor(given).input_ids[0].tolist() == [raw.token_to_id(BOS_TOKEN), *bare]
    assert processor.pad_token_id == raw.token_to_id(PAD_TOKEN)
    assert processor.eos_token_id == raw.token_to_id(EOS_TOKEN)
    assert processor.tokenizer.padding_side == "left"
    for layout in ("original", "transformers"):
        processor.save_pretrained(tmp_path / layout, layout=layout)
        reopened = JanusProProcessor.from_pretrained(tmp_path / layout).tokenizer
        assert reopened.encode(text) == [raw.token_to_id(BOS_TOKEN), *bare]
    stock = AutoTokenizer.from_pretrained(tmp_path / "transformers")
    assert stock.encode(text) == [raw.token_to_id(BOS_TOKEN), *bare]


@pytest.mark.parametrize("style", STYLES)
def test_a_given_tokenizer_is_corrected_but_not_changed(style: str) -> None:
    given = TokenizersBackend(
        tokenizer_object=build_tokenizer(style), bos_token=BOS_TOKEN, eos_token=EOS_TOKEN, pad_token=EOS_TOKEN
    )
    before = given.encode("ab"), given.padding_side, given.pad_token
    processor = JanusProProcessor(JanusProImageProcessor(24, 4), given)
    assert processor.tokenizer.encode("ab")[0] == processor.bos_token_id
    assert processor.tokenizer.encode("ab").count(processor.bos_token_id) == 1
    assert (processor.tokenizer.padding_side, processor.tokenizer.pad_token) == ("left", PAD_TOKEN)
    assert (given.encode("ab"), given.padding_side, given.pad_token) == before
    assert JanusProProcessor(JanusProImageProcessor(24, 4), processor.tokenizer).tokenizer is processor.tokenizer


def test_appended_eos_is_removed() -> None:
    given = TokenizersBackend(
        tokenizer_object=build_tokenizer(STYLES[0]),
        bos_token=BOS_TOKEN,
        eos_token=EOS_TOKEN,
        add_bos_token=True,
        add_eos_token=True,
    )
    assert given.encode("a")[-1] == given.eos_token_id
    processor = JanusProProcessor(JanusProImageProcessor(24, 4), given)
    assert processor.tokenizer.encode("a") == given.encode("a")[:-1]


def test_a_missing_placeholder_is_added_and_other_missing_tokens_are_named(tmp_path: Path) -> None:
    without_placeholder = tuple(token for token in SPECIAL if token != IMAGE_TOKEN)
    processor = JanusProProcessor.from_pretrained(write_tokenizer(tmp_path / "a", STYLES[0], without_placeholder))
    assert processor.image_token_id == build_tokenizer(STYLES[0], without_placeholder).get_vocab_size()
    assert processor.tokenizer.encode(f"a{IMAGE_TOKEN}b")[2] == processor.image_token_id
    folder = write_tokenizer(tmp_path / "b", STYLES[0], (BOS_TOKEN, EOS_TOKEN, EOI_TOKEN))
    with pytest.raises(ValueError, match="must have Janus's special tokens") as error:
        JanusProProcessor.from_pretrained(folder)
    assert repr([PAD_TOKEN, BOI_TOKEN]) in str(error.value)


def test_a_tokenizer_that_loses_text_is_refused(golden_checkpoint: Path) -> None:
    lossy = LlamaTokenizerFast.from_pretrained(golden_checkpoint)  # ignores the file's byte-level pre-tokenizer
    with pytest.raises(ValueError, match=r"ids that decode to 'a a', got .* load it with JanusProProcessor"):
        JanusProProcessor(JanusProImageProcessor(24, 4), lossy)
