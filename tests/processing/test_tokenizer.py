"""Ids equal the original's and begin with exactly one BOS, for every tokenizer.json and every way of loading it."""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers_for_tests import SPECIAL, STYLES, build_tokenizer, write_tokenizer
from transformers import AutoTokenizer, LlamaTokenizerFast
from transformers.tokenization_utils_tokenizers import TokenizersBackend

from janus_hf import CheckpointError, JanusProImageProcessor, JanusProProcessor
from janus_hf.processing.prompts import BOI_TOKEN, BOS_TOKEN, EOI_TOKEN, EOS_TOKEN, IMAGE_TOKEN, PAD_TOKEN
from janus_hf.tokenizer import read_special_token_ids


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


GEN_TOKEN = "<｜begin▁of▁generation｜>"
FLOW_TAGS = {"image_start_tag": "<image_beg>", "image_end_tag": "<image_end>", "image_gen_tag": GEN_TOKEN}
# Tags in the file, special tokens of the tokenizer, and the names of the ids that are added, in their order. Ids of
# JanusFlow are those in its golden data, where the tokenizer has the generation tag only.
MISSING: dict[str, tuple[dict[str, str], tuple[str, ...], tuple[str, ...]]] = {
    "nothing": ({}, SPECIAL, ()),
    "placeholder": ({}, tuple(token for token in SPECIAL if token != IMAGE_TOKEN), ("image",)),
    "all image tokens": ({}, (BOS_TOKEN, PAD_TOKEN, EOS_TOKEN), ("image", "boi", "eoi")),
    "begin of image": ({}, tuple(token for token in SPECIAL if token != BOI_TOKEN), ("boi",)),
    "padding": ({}, tuple(token for token in SPECIAL if token != PAD_TOKEN), ()),
    "JanusFlow": (FLOW_TAGS, (BOS_TOKEN, EOS_TOKEN, GEN_TOKEN), ("image", "boi", "eoi")),
    "JanusFlow without its tag": (FLOW_TAGS, (BOS_TOKEN, EOS_TOKEN), ("image", "gen", "boi", "eoi")),
    "other names": ({"image_tag": "<i>", "pad_tag": EOI_TOKEN, "image_end_tag": "<e>"}, SPECIAL, ("image", "eoi")),
}


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("row", MISSING)
def test_missing_tokens_are_added_with_the_same_ids_for_processor_and_model(
    row: str, style: str, tmp_path: Path
) -> None:
    tags, special, added = MISSING[row]
    folder = write_tokenizer(tmp_path / "a", style, special)
    (folder / "processor_config.json").write_text(json.dumps({"num_image_tokens": 2, **tags}), encoding="utf-8")
    processor = JanusProProcessor.from_pretrained(folder)
    free = build_tokenizer(style, special).get_vocab_size()
    names = {"image": processor.image_token, "boi": processor.boi_token, "eoi": processor.eoi_token}
    if processor.image_gen_tag is not None:
        names["gen"] = processor.image_gen_tag
    ids = {name: processor.tokenizer.convert_tokens_to_ids(token) for name, token in names.items()}
    assert {name: ids[name] for name in added} == {name: free + index for index, name in enumerate(added)}
    assert all(ids[name] < free for name in ids.keys() - set(added))
    assert len(processor.tokenizer) == free + len(added)
    for name in names:
        assert processor.tokenizer.encode(f"a{names[name]}a", add_special_tokens=False).count(ids[name]) == 1
    has_pad = tags.get("pad_tag", PAD_TOKEN) in special
    assert processor.tokenizer.pad_token == (tags.get("pad_tag", PAD_TOKEN) if has_pad else EOS_TOKEN)
    found = {f"{name}_token_id": getattr(processor, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    assert read_special_token_ids(folder) == found | {
        f"{name}_token_id": ids[name] for name in ("image", "boi", "eoi")
    }
    for layout in ("original", "transformers"):
        processor.save_pretrained(tmp_path / layout, layout=layout)
        assert read_special_token_ids(tmp_path / layout) == read_special_token_ids(folder)
        reopened = JanusProProcessor.from_pretrained(tmp_path / layout)
        assert reopened.tokenizer.get_vocab() == processor.tokenizer.get_vocab()
        assert reopened.to_dict() == processor.to_dict()


def test_ids_also_count_tokens_that_only_tokenizer_config_adds(tmp_path: Path) -> None:
    """transformers adds such tokens when it loads the tokenizer, so the placeholder's id is the one after them."""
    special = (BOS_TOKEN, EOS_TOKEN, PAD_TOKEN, BOI_TOKEN, EOI_TOKEN)
    folder = write_tokenizer(tmp_path / "a", STYLES[0], special)
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    config["additional_special_tokens"] = ["<one>", "<two>"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    processor = JanusProProcessor.from_pretrained(folder)
    assert processor.image_token_id == build_tokenizer(STYLES[0], special).get_vocab_size() + 2
    assert read_special_token_ids(folder)["image_token_id"] == processor.image_token_id


def test_a_folder_without_tokenizer_has_no_ids(tmp_path: Path) -> None:
    assert read_special_token_ids(tmp_path) == {}


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", ["", "{", "[]"])
def test_damaged_files_are_called_damaged(name: str, content: str, tmp_path: Path) -> None:
    folder = write_tokenizer(tmp_path / "a", STYLES[0])
    (folder / name).write_text(content, encoding="utf-8")
    for read in (JanusProProcessor.from_pretrained, read_special_token_ids):
        with pytest.raises(CheckpointError, match="The tokenizer files of .* must be whole, got "):
            read(folder)


def test_tokens_that_cannot_be_added_are_named(tmp_path: Path) -> None:
    folder = write_tokenizer(tmp_path / "b", STYLES[0], (PAD_TOKEN, EOS_TOKEN), config=False)
    with pytest.raises(ValueError, match="must have Janus's special tokens") as error:
        JanusProProcessor.from_pretrained(folder)
    assert repr([BOS_TOKEN]) in str(error.value)
    folder = write_tokenizer(tmp_path / "c", STYLES[0])
    with pytest.raises(ValueError, match="`pad_tag` must be a token of the tokenizer, got '<p>'"):
        JanusProProcessor.from_pretrained(folder, pad_tag="<p>")


def test_a_tokenizer_that_loses_text_is_refused(golden_checkpoint: Path) -> None:
    lossy = LlamaTokenizerFast.from_pretrained(golden_checkpoint)  # ignores the file's byte-level pre-tokenizer
    with pytest.raises(ValueError, match=r"ids that decode to 'a a', got .* load it with JanusProProcessor"):
        JanusProProcessor(JanusProImageProcessor(24, 4), lossy)
