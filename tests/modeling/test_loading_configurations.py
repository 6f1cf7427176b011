"""Configuration files beside the weights: missing or broken ones raise, and special token ids must have rows."""

import json
import shutil
from pathlib import Path

import pytest

from janus_hf import (
    CheckpointError,
    JanusProConfig,
    JanusProForConditionalGeneration,
    JanusProModel,
    JanusProProcessor,
)


load = JanusProForConditionalGeneration.from_pretrained


@pytest.fixture
def folder(golden_checkpoint: Path, tmp_path: Path) -> Path:
    """A private copy of the golden checkpoint."""
    return Path(shutil.copytree(golden_checkpoint, tmp_path / "checkpoint"))


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "adapter_config.json"])
@pytest.mark.parametrize("content", ["", '{"bos_token_id": 1', "\x00\x00"])
@pytest.mark.parametrize("model_class", [JanusProForConditionalGeneration, JanusProModel])
def test_a_broken_file_raises(model_class: type[JanusProModel], content: str, name: str, folder: Path) -> None:
    (folder / name).write_text(content, encoding="utf-8")
    with pytest.raises(CheckpointError, match=f"{name} must be JSON, got .* Copy or download it again"):
        model_class.from_pretrained(folder)


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer.json", "processor_config.json"])
def test_a_link_to_nothing_is_no_absent_file(name: str, folder: Path) -> None:
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(folder / "nowhere")
    with pytest.raises(OSError, match=f"^{name} of .* cannot be read: it must be a file, got a folder or a link"):
        load(folder)


def test_a_missing_config_is_said_at_once(folder: Path) -> None:
    config = JanusProConfig.from_pretrained(folder)
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match="must hold a config.json, or an adapter_config.json .* got neither"):
        load(folder)
    with pytest.raises(CheckpointError, match=f"'{folder}' must hold a config.json, got none"):
        JanusProConfig.from_pretrained(folder)
    assert JanusProModel.from_pretrained(folder, config=config).config.image_token_id is not None


def add_tokens(folder: Path, number: int) -> None:
    """Add tokens to tokenizer.json until it has `number` tokens, and rename the placeholder, which it then lacks."""
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    added = tokenizer["added_tokens"]
    (placeholder,) = [token for token in added if token["content"] == "<image_placeholder>"]
    placeholder["content"] = "<renamed>"
    first = max(token["id"] for token in added) + 1
    added += [{**placeholder, "content": f"<{index}>", "id": index} for index in range(first, number)]
    path.write_text(json.dumps(tokenizer), encoding="utf-8")
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        content = json.loads((folder / name).read_text(encoding="utf-8"))
        del content["additional_special_tokens"]
        (folder / name).write_text(json.dumps(content), encoding="utf-8")


def test_the_model_has_the_id_of_a_placeholder_that_the_processor_adds(folder: Path) -> None:
    rows = JanusProConfig.from_pretrained(folder).text_config.vocab_size
    add_tokens(folder, rows - 1)
    assert load(folder).config.image_token_id == JanusProProcessor.from_pretrained(folder).image_token_id == rows - 1


def test_tags_of_processor_config_hold_for_the_model(folder: Path) -> None:
    path = folder / "processor_config.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**content, "image_tag": "<patch_placeholder>", "pad_tag": "<|ref|>"}))
    model, processor = load(folder), JanusProProcessor.from_pretrained(folder)
    assert model.config.image_token_id == processor.tokenizer.convert_tokens_to_ids("<patch_placeholder>")
    assert model.generation_config.pad_token_id == processor.tokenizer.convert_tokens_to_ids("<|ref|>")


def test_ids_beyond_the_embedding_table_are_refused(folder: Path) -> None:
    rows = JanusProConfig.from_pretrained(folder).text_config.vocab_size
    add_tokens(folder, rows)
    message = rf"must have ids below {rows}, the number of rows .* got \{{'image_token_id': {rows}\}}"
    with pytest.raises(CheckpointError, match=message):
        load(folder)
