"""`inspect_checkpoint` reads config.json alone: compared with the released key lists and with arithmetic by hand."""

import json
import math

import pytest
import torch

from janus_hf import JanusProConfig, inspect_checkpoint
from tiny import TINY_MODEL


# Stored in the files but read by no code: SigLIP's pooling head and the codec's usage counter.
UNUSED = ("vision_model.vision_tower.attn_pool.", "gen_vision_model.quantize.codebook_used")
PARTS = {
    "language model": "language_model.",
    "understanding encoder": "vision_model.",
    "image codec": "gen_vision_model.",
    "aligners and image head": ("aligner.", "gen_aligner.", "gen_embed.", "gen_head."),
}


def write(folder, config):
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("size", "family", "cache_bytes"),
    [
        # Keys and values x layers x width x two rows x (50 + 576) positions x two bytes.
        ("1b", "Janus-Pro-1B (or Janus-1.3B, which shares its architecture)", 2 * 24 * 2048 * 2 * 626 * 2),
        ("7b", "Janus-Pro-7B", 2 * 30 * 4096 * 2 * 626 * 2),
    ],
)
def test_released_checkpoints(released, golden_dir, tmp_path, size, family, cache_bytes):
    info = inspect_checkpoint(write(tmp_path, released[size]))  # no weights there: none are read
    keys = json.loads((golden_dir / f"keys_{size}.json").read_text(encoding="utf-8"))["keys"]
    stored = {name: math.prod(entry["shape"]) for name, entry in keys.items() if not name.startswith(UNUSED)}
    assert info.parameters == {
        part: sum(count for name, count in stored.items() if name.startswith(prefix)) for part, prefix in PARTS.items()
    }
    assert sum(info.parameters.values()) == sum(stored.values())
    assert info.weight_bytes == 2 * sum(stored.values())
    assert info.cache_bytes_per_picture == cache_bytes
    assert (info.family, info.layout, info.dtype) == (family, "original", "bfloat16")
    assert (info.image_size, info.num_image_tokens, info.codebook_size) == (384, 576, 16384)
    assert (info.context_length, info.vocab_size) == (16384, 102400)


def test_text_for_people(released, tmp_path):
    lines = str(inspect_checkpoint(write(tmp_path, released["7b"]))).splitlines()
    facts = [" ".join(line.split()) for line in lines]
    assert facts[:3] == ["family Janus-Pro-7B", "layout original", "stored dtype bfloat16"]
    assert "generated images 384x384 pixels, 576 image tokens out of 16384" in facts
    assert "text 102400 tokens, context 16384" in facts
    # 7.4e9 parameters of two bytes, and the cache of the test above, in units of 2**30.
    assert "memory, weights 13.80 GiB in bfloat16" in facts
    assert "memory, images + 0.57 GiB per image generated at the same time" in facts


def test_grouped_queries_shrink_the_cache(tiny_config, tmp_path):
    config = tiny_config()  # 4 heads of width 12 share 2 keys; 2 layers; 16 image tokens
    config.save_pretrained(tmp_path)
    info = inspect_checkpoint(tmp_path)
    assert info.dtype == "float32"  # unstated
    assert info.cache_bytes_per_picture == 2 * 2 * (2 * 12) * 2 * (50 + 16) * 4
    assert info.family == "Janus-Pro architecture, of no released size"


def test_numbers_agree_with_a_loaded_model(golden_checkpoint, golden_model):
    info = inspect_checkpoint(golden_checkpoint)
    assert sum(info.parameters.values()) == golden_model.num_parameters()
    assert info.weight_bytes == 2 * golden_model.num_parameters()  # stored in bfloat16
    text = golden_model.model.language_model.num_parameters() + golden_model.lm_head.weight.numel()
    assert info.parameters["language model"] == text


def test_both_layouts_describe_the_same_model(golden_checkpoint, golden_model, tmp_path):
    golden_model.save_pretrained(tmp_path, layout="transformers")
    original, converted = inspect_checkpoint(golden_checkpoint), inspect_checkpoint(tmp_path)
    assert (original.layout, converted.layout) == ("original", "transformers")
    assert (original.dtype, converted.dtype) == ("bfloat16", "float32")
    assert converted.weight_bytes == 2 * original.weight_bytes
    assert converted.parameters == original.parameters


def test_nothing_large_is_allocated(released, tmp_path, monkeypatch):
    made = []
    init = torch.nn.Parameter.__new__

    def watch(cls, data=None, requires_grad=True):
        made.append(data.device.type)
        return init(cls, data, requires_grad)

    monkeypatch.setattr(torch.nn.Parameter, "__new__", watch)
    inspect_checkpoint(write(tmp_path, released["1b"]))
    assert set(made) == {"meta"}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "llama"}, r"must be a Janus or Janus-Pro checkpoint .*is a 'llama' checkpoint"),
        (
            {"architectures": ["Anything"]},
            r"must be a Janus or Janus-Pro checkpoint .*has no config.json that names a model_type",
        ),
        ({"model_type": "multi_modality", "vision_gen_enc_config": {}, "language_config": {}}, "JanusFlow checkpoint"),
        ({"model_type": "multi_modality", "language_config": {}, "vision_config": {}}, "looks like DeepSeek-VL"),
    ],
)
def test_other_families(tmp_path, config, message):
    with pytest.raises(ValueError, match=message):
        inspect_checkpoint(write(tmp_path, config))


def test_no_checkpoint(tmp_path):
    with pytest.raises(ValueError, match="has no config.json that names a model_type"):
        inspect_checkpoint(tmp_path)
    with pytest.raises(OSError, match="/no/such/folder"):
        inspect_checkpoint("/no/such/folder")


def test_embedded_model():
    info = inspect_checkpoint(TINY_MODEL)
    assert info.image_size == JanusProConfig.from_pretrained(TINY_MODEL).vq_config.image_size
