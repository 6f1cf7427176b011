"""The layout of a `config.json` is detected, and other model families are refused by name."""

import json
from typing import Any

import pytest

from janus_hf import JanusProConfig, JanusProForConditionalGeneration
from janus_hf.layouts import layout_of, read_config


@pytest.fixture
def foreign(released) -> dict[str, dict[str, Any]]:
    """Contents of `config.json` of other families, by the name that the error must contain."""
    return {
        "DeepSeek-VL": {key: value for key, value in released["7b"].items() if not key.startswith("gen_")},
        "JanusFlow": {
            "model_type": "multi_modality",
            "language_config": released["1b"]["language_config"],
            "vision_und_enc_config": released["1b"]["vision_config"],
            "vision_gen_enc_config": {"cls": "ShallowUViTEncoder", "params": {}},
            "vision_gen_dec_config": {"cls": "ShallowUViTDecoder", "params": {}},
        },
        "llama": {"model_type": "llama", "hidden_size": 64},
        "emu3": {"model_type": "emu3", "text_config": {}, "vq_config": {}},
    }


@pytest.mark.parametrize("family", ["DeepSeek-VL", "JanusFlow", "llama", "emu3"])
def test_other_families_are_named(foreign, family, tmp_path):
    with pytest.raises(ValueError, match=family):
        JanusProConfig.from_dict(foreign[family])
    (tmp_path / "config.json").write_text(json.dumps(foreign[family]))
    with pytest.raises(ValueError, match=family):
        JanusProConfig.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match=family):
        JanusProForConditionalGeneration.from_pretrained(tmp_path)


def test_the_model_type_decides_the_layout(released, tiny_config):
    assert layout_of(released["1b"]) == "original"
    ours = tiny_config(vq={"num_patches": 3, "image_token_embed_dim": 48})
    # Files that we write in the original layout hold the blocks of both layouts.
    assert layout_of(ours.to_file_dict("original")) == "original"
    assert layout_of(ours.to_file_dict("transformers")) == "transformers"


def test_own_fields_are_returned_as_they_are(released):
    fields = read_config(released["1b"])
    assert read_config(fields) == fields
    assert read_config({"image_token_id": 7}) == {"image_token_id": 7}
