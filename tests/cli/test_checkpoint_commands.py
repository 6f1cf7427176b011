"""`janus-hf convert` and `janus-hf info`, run in this process."""

import torch

from janus_hf import JanusProPipeline
from janus_hf.assets import DEFAULT_MODEL


def test_convert_both_ways(run, golden_checkpoint, golden_model, tmp_path):
    status, out, _ = run(
        "convert", golden_checkpoint, "there", "--layout", "transformers", "--max-shard-size", "300KB"
    )
    assert (status, out) == (0, "there: transformers layout, reloaded and equal\n")
    assert len(list((tmp_path / "there").glob("model-*.safetensors"))) > 1
    status, out, _ = run("convert", "there", "back", "--layout", "original", "--dtype", "float32")
    assert (status, out) == (0, "back: original layout, reloaded and equal\n")

    back = JanusProPipeline.from_pretrained(tmp_path / "back")
    expected, found = golden_model.state_dict(), back.model.state_dict()
    assert back.model.dtype == torch.float32
    assert all(torch.equal(expected[key], found[key]) for key in expected)

    status, out, err = run("convert", golden_checkpoint, "there", "--layout", "original")
    assert (status, out) == (1, "")
    assert err.startswith("janus-hf convert: ")
    assert err.endswith("got there, which is not empty: choose a new folder.\n")


def test_info(run, golden_checkpoint, tmp_path):
    embedded = run("info")[1]
    assert "of no released size" in embedded
    assert "layout             original" in embedded
    assert "stored dtype       bfloat16" in embedded
    assert "64x64 pixels, 64 image tokens out of 256" in embedded
    assert embedded == run("info", DEFAULT_MODEL)[1]

    golden = run("info", golden_checkpoint)[1]
    assert "24x24 pixels, 36 image tokens out of 64" in golden
    assert "416 tokens, context 512" in golden
    run("convert", golden_checkpoint, "there", "--layout", "transformers")
    converted = run("info", "there")[1]
    assert converted == golden.replace("layout             original", "layout             transformers")


def test_info_about_another_family(run, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
    status, out, err = run("info", tmp_path)
    assert (status, out) == (1, "")
    assert "must be a Janus or Janus-Pro checkpoint" in err
    assert "is a 'llama' checkpoint" in err
