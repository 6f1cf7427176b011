"""`convert_checkpoint` converts both ways, refuses what it cannot convert, and notices a copy that differs."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import JanusForConditionalGeneration

from janus_hf import (
    CheckpointError,
    JanusProForConditionalGeneration,
    JanusProPipeline,
    JanusProProcessor,
    convert_checkpoint,
)
from tiny import TINY_MODEL


def load(folder, **kwargs):
    return JanusProForConditionalGeneration.from_pretrained(folder, **kwargs)


def same_weights(first, second):
    mine, theirs = first.state_dict(), second.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)


@pytest.mark.parametrize("layout", ["original", "transformers"])
def test_the_copy_is_the_source(golden_checkpoint, tmp_path, layout):
    destination = tmp_path / "new" / "copy"
    assert convert_checkpoint(golden_checkpoint, destination, layout) is None
    source, copy = load(golden_checkpoint), load(destination)
    assert copy.dtype == torch.bfloat16  # the stored one
    assert same_weights(copy, source)
    model_type = json.loads((destination / "config.json").read_text(encoding="utf-8"))["model_type"]
    assert model_type == {"original": "multi_modality", "transformers": "janus"}[layout]
    assert [path.name for path in destination.glob("*.safetensors")] == ["model.safetensors"]

    texts = ["a red fox", "<image_placeholder> what?"]
    first, second = (JanusProProcessor.from_pretrained(folder) for folder in (golden_checkpoint, destination))
    for text in texts:
        assert first.tokenizer(text).input_ids == second.tokenizer(text).input_ids
    assert JanusProPipeline.from_pretrained(destination).processor.num_image_tokens == first.num_image_tokens


def test_there_and_back(golden_checkpoint, tmp_path):
    convert_checkpoint(golden_checkpoint, tmp_path / "there", "transformers")
    convert_checkpoint(tmp_path / "there", tmp_path / "back", "original")
    convert_checkpoint(golden_checkpoint, tmp_path / "straight", "original")
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("back", "straight"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert "language_model.lm_head.weight" in first
    for name in ("config.json", "processor_config.json", "preprocessor_config.json", "tokenizer.json"):
        assert (tmp_path / "back" / name).read_bytes() == (tmp_path / "straight" / name).read_bytes(), name


def test_transformers_reads_the_copy(golden_checkpoint, golden_model, golden, tmp_path):
    convert_checkpoint(golden_checkpoint, tmp_path, "transformers", dtype="float32")
    theirs, info = JanusForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    with torch.no_grad():
        logits = theirs(input_ids=golden["text.input_ids"]).logits
        ours = golden_model(input_ids=golden["text.input_ids"]).logits
    torch.testing.assert_close(logits, ours, atol=1e-6, rtol=0)  # measured 0: the same Llama on the same weights


@pytest.mark.parametrize(("dtype", "expected"), [("float32", torch.float32), (torch.float16, torch.float16)])
def test_dtype(golden_checkpoint, tmp_path, dtype, expected):
    convert_checkpoint(golden_checkpoint, tmp_path, "original", dtype=dtype)
    assert {tensor.dtype for tensor in load_file(tmp_path / "model.safetensors").values()} == {expected}
    assert same_weights(load(tmp_path), load(golden_checkpoint, dtype=expected))


def test_shards(golden_checkpoint, tmp_path):
    convert_checkpoint(golden_checkpoint, tmp_path, "original", max_shard_size="300KB")
    assert len(list(tmp_path.glob("model-*-of-*.safetensors"))) > 1
    assert same_weights(load(tmp_path), load(golden_checkpoint))


def test_destination_must_be_new(golden_checkpoint, tmp_path):
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(ValueError, match="is not empty: choose a new folder"):
        convert_checkpoint(golden_checkpoint, tmp_path, "original")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_unknown_layout_writes_nothing(golden_checkpoint, tmp_path):
    with pytest.raises(ValueError, match="layout.* must be 'original' or 'transformers', got 'gguf'"):
        convert_checkpoint(golden_checkpoint, tmp_path / "copy", "gguf")
    assert not (tmp_path / "copy").exists()


def test_layout_that_cannot_hold_the_model_writes_nothing(tiny_model, tmp_path):
    """transformers' Janus has one number of image tokens for understanding and generation; this model has two."""
    tiny_model.save_pretrained(tmp_path / "source")
    JanusProProcessor.from_pretrained(TINY_MODEL).save_pretrained(tmp_path / "source")
    with pytest.raises(ValueError, match="num_image_tokens must equal vision_config.num_image_tokens"):
        convert_checkpoint(tmp_path / "source", tmp_path / "copy", "transformers")
    assert not (tmp_path / "copy").exists()


def test_broken_source(golden_checkpoint, tmp_path):
    convert_checkpoint(golden_checkpoint, tmp_path / "source", "original", max_shard_size="300KB")
    next((tmp_path / "source").glob("model-00002-of-*")).unlink()
    with pytest.raises(CheckpointError, match="model-00002-of"):
        convert_checkpoint(tmp_path / "source", tmp_path / "copy", "transformers")
    assert not (tmp_path / "copy").exists()


def test_a_copy_that_differs_is_noticed(golden_checkpoint, tmp_path, monkeypatch):
    """A weight that differs after reloading is found and named in the error."""
    save = JanusProForConditionalGeneration.save_pretrained

    def save_badly(self, folder, **kwargs):
        save(self, folder, **kwargs)
        with torch.no_grad():
            self.lm_head.weight[0, 0] += 1  # the model in memory is what the copy is compared with

    monkeypatch.setattr(JanusProForConditionalGeneration, "save_pretrained", save_badly)
    with pytest.raises(CheckpointError, match=r"differs from .* after reloading; do not use it") as error:
        convert_checkpoint(golden_checkpoint, tmp_path / "copy", "original")
    assert [key for key, *_ in error.value.mismatched] == ["lm_head.weight"]
