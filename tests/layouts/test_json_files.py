"""A configuration is the same by whatever public way its file is read; fields that no way reads are refused."""

import json

import pytest

from janus_hf import JanusProConfig


def test_a_released_file_reads_the_same_by_every_way(tmp_path, golden_checkpoint):
    content = json.loads((golden_checkpoint / "config.json").read_text())
    expected = JanusProConfig.from_pretrained(golden_checkpoint).to_dict()
    assert (
        JanusProConfig.from_json_file(golden_checkpoint / "config.json").to_dict().items()
        >= {key: value for key, value in expected.items() if not key.startswith("_")}.items()
    )
    assert JanusProConfig.from_dict(content).text_config.hidden_size == expected["text_config"]["hidden_size"]


def test_what_to_json_file_writes_comes_back(tmp_path, golden_checkpoint):
    config = JanusProConfig.from_pretrained(golden_checkpoint)
    config.to_json_file(tmp_path / "config.json")
    again = JanusProConfig.from_json_file(tmp_path / "config.json")
    assert set(again.to_dict()) <= set(config.to_dict())
    assert again.text_config.to_dict() == config.text_config.to_dict()


def test_the_constructor_refuses_fields_of_a_released_file(golden_checkpoint):
    """They would leave every size at the default of the 1B."""
    content = json.loads((golden_checkpoint / "config.json").read_text())
    with pytest.raises(
        ValueError, match="language_config of a deepseek-ai config.json: read that content with from_dict"
    ):
        JanusProConfig(**content)
