"""Reading and writing `config.json` in both layouts."""

import copy
import json
from typing import Any

import pytest
import torch
from transformers import AutoConfig, JanusConfig

from janus_hf import JanusProConfig, JanusProForConditionalGeneration, JanusProVisionConfig, JanusProVQConfig
from janus_hf.layouts import read_config


def edited(config: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    config = copy.deepcopy(config)
    *parents, last = path.split(".")
    block = config
    for name in parents:
        block = block[name]
    block[last] = value
    return config


def without_names(config: JanusProConfig) -> dict[str, Any]:
    """Return all settings, without the fields for the class that wrote the file and the path it was read from."""
    return {key: value for key, value in config.to_dict().items() if key not in ("architectures", "_name_or_path")}


# --- reading the original layout


def test_sparse_7b_file_gets_llamas_defaults_and_the_implied_sizes(released):
    config = JanusProConfig.from_dict(released["7b"])
    text, vision, vq = config.text_config, config.vision_config, config.vq_config
    assert (text.hidden_size, text.intermediate_size, text.num_hidden_layers) == (4096, 11008, 30)
    assert (text.num_attention_heads, text.num_key_value_heads, text.vocab_size) == (32, 32, 102400)
    assert (text.rms_norm_eps, text.rope_parameters["rope_theta"], text.max_position_embeddings) == (1e-6, 1e4, 16384)
    assert text.pad_token_id is None  # a padding_idx would freeze the row that unconditional prompts are made of
    assert isinstance(vision, JanusProVisionConfig)
    assert (vision.image_size, vision.patch_size, vision.num_image_tokens) == (384, 16, 576)
    assert (vision.hidden_size, vision.num_hidden_layers, vision.num_attention_heads) == (1024, 24, 16)
    assert (vision.mlp_ratio, vision.layer_norm_eps, vision.projection_dim, vision.depth) == (4, 1e-6, 4096, 2)
    assert isinstance(vq, JanusProVQConfig)
    assert (vq.image_size, vq.num_patches, vq.num_image_tokens, vq.downsampling) == (384, 24, 576, 16)
    assert (vq.base_channels, list(vq.channel_multiplier), vq.num_res_blocks) == (128, [1, 1, 2, 2, 4], 2)
    assert (vq.latent_channels, vq.num_embeddings, vq.embed_dim, vq.commitment_cost) == (256, 16384, 8, 0.25)
    assert (vq.projection_dim, vq.num_hidden_layers, vq.image_token_embed_dim) == (4096, 2, 4096)
    assert config.tie_word_embeddings is False
    assert config.image_token_id is None
    assert config.dtype == torch.bfloat16


def test_1b_file_equals_the_default_config(released):
    read, default = without_names(JanusProConfig.from_dict(released["1b"])), without_names(JanusProConfig())
    assert read.pop("dtype") == "bfloat16"
    assert default.pop("dtype", None) is None
    assert read == default


@pytest.mark.parametrize("key", ["_attn_implementation", "attn_implementation"])
def test_a_files_choice_of_attention_kernel_is_ignored(released, key):
    config = JanusProConfig.from_dict(edited(released["1b"], f"language_config.{key}", "flash_attention_2"))
    assert "flash" not in str(config._attn_implementation)
    assert "flash" not in str(config.text_config._attn_implementation)
    with torch.device("meta"):  # flash-attn is not installed: asking for it would raise here
        assert JanusProForConditionalGeneration(config).config._attn_implementation == "sdpa"


@pytest.mark.parametrize(("select_layer", "layers"), [(-1, 24), (-2, 23), (0, 24), (3, 3), (24, 24), (99, 24)])
def test_select_layer_counts_like_siglip_vit(released, select_layer, layers):
    config = edited(released["1b"], "vision_config.params.select_layer", select_layer)
    assert JanusProConfig.from_dict(config).vision_config.num_hidden_layers == layers


def test_reading_does_not_modify_the_dict(released):
    before = copy.deepcopy(released["7b"])
    read_config(released["7b"])
    JanusProConfig.from_dict(released["7b"])
    assert before == released["7b"]


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("vision_config.cls", "HybridVisionTower", "vision_config.cls must be 'CLIPVisionTower'.*HybridVisionTower"),
        ("aligner_config.cls", "Other", "aligner_config.cls must be 'MlpProjector'.*Other"),
        ("gen_aligner_config.cls", "Other", "gen_aligner_config.cls must be 'MlpProjector'.*Other"),
        ("gen_head_config.cls", "Other", "gen_head_config.cls must be 'vision_head'.*Other"),
        ("gen_vision_config.cls", "VQ-8", "gen_vision_config.cls must be 'VQ-16'.*VQ-8"),
        ("vision_config.params.model_name", "sam_b", "model_name must be one of .*siglip_large_patch16_384.*sam_b"),
        ("vision_config.params.select_feature", "patch", "select_feature must be 'same'.*patch"),
        ("aligner_config.params.projector_type", "linear", "aligner_config.params.projector_type.*mlp_gelu.*linear"),
        ("gen_aligner_config.params.projector_type", "identity", "gen_aligner_config.params.projector_type.*identity"),
    ],
)
def test_parts_that_janus_pro_does_not_have_are_refused(released, path, value, message):
    with pytest.raises(ValueError, match=message):
        JanusProConfig.from_dict(edited(released["1b"], path, value))


# --- reading the transformers layout


def test_transformers_files_are_read(tmp_path, tiny_config):
    ours = tiny_config()
    theirs = JanusConfig(
        text_config=ours.text_config.to_dict(),
        vision_config=ours.vision_config.to_dict(),
        vq_config={k: v for k, v in ours.vq_config.to_dict().items() if k not in ("image_size", "commitment_cost")},
        image_token_id=7,
        tie_word_embeddings=False,
    )
    theirs.save_pretrained(tmp_path)
    read = JanusProConfig.from_pretrained(tmp_path)
    assert read.text_config.to_dict() == ours.text_config.to_dict()
    assert read.vision_config.to_dict() == ours.vision_config.to_dict()
    # transformers' class generates on the grid of its understanding tower: 3 x 3, whatever its file says.
    assert (read.vq_config.num_patches, read.vq_config.image_size) == (3, 6)
    assert (read.image_token_id, read.tie_word_embeddings) == (7, False)


def test_transformers_default_of_tied_embeddings_is_kept(tmp_path):
    JanusConfig(text_config={"model_type": "llama", "hidden_size": 2048}).save_pretrained(tmp_path)
    assert JanusProConfig.from_pretrained(tmp_path).tie_word_embeddings is True
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    del config["tie_word_embeddings"]  # as in a file that states differences from that class's defaults only
    file.write_text(json.dumps(config))
    assert JanusConfig.from_pretrained(tmp_path).tie_word_embeddings is True
    assert JanusProConfig.from_pretrained(tmp_path).tie_word_embeddings is True


def test_other_peoples_janus_files_keep_opening_with_transformers_class(tmp_path):
    JanusConfig().save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is JanusConfig


# --- writing


CONFIGS = {
    "tiny": {},
    "tied": {"tie_word_embeddings": True},
    "one grid": {"vq": {"num_patches": 3, "image_token_embed_dim": 48}},
    "own norm and rope": {
        "text": {"rms_norm_eps": 1e-5, "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5}}
    },
    "qwen": {"text": {"model_type": "qwen2"}},
    "no placeholder": {"image_token_id": None},
    "dtype": {"dtype": "bfloat16"},
}


@pytest.mark.parametrize("overrides", CONFIGS.values(), ids=CONFIGS)
def test_original_layout_round_trips(tiny_config, overrides, tmp_path):
    config = tiny_config(**overrides)
    config.save_pretrained(tmp_path)
    read = AutoConfig.from_pretrained(tmp_path)
    assert type(read) is JanusProConfig
    assert without_names(read) == without_names(config)


@pytest.mark.parametrize("overrides", [CONFIGS["one grid"] | CONFIGS[name] for name in CONFIGS if name != "tiny"])
def test_transformers_layout_round_trips_and_that_class_reads_it(tiny_config, overrides, tmp_path):
    config = tiny_config(**overrides | {"image_token_id": 7})
    (tmp_path / "config.json").write_text(json.dumps(config.to_file_dict("transformers")))
    assert without_names(JanusProConfig.from_pretrained(tmp_path)) == without_names(config)
    theirs = AutoConfig.from_pretrained(tmp_path)
    assert type(theirs) is JanusConfig
    assert theirs.text_config.to_dict() == config.text_config.to_dict()
    assert theirs.vision_config.to_dict() == config.vision_config.to_dict()
    assert theirs.vq_config.to_dict().items() <= config.vq_config.to_dict().items()
    assert (theirs.image_token_id, theirs.tie_word_embeddings) == (7, config.tie_word_embeddings)


def test_default_config_is_the_1b_for_transformers_class_too():
    theirs = JanusConfig.from_dict(JanusProConfig(image_token_id=100581).to_file_dict("transformers"))
    assert (theirs.text_config.hidden_size, theirs.text_config.num_hidden_layers) == (2048, 24)
    assert theirs.vq_config.num_patches == 24


@pytest.mark.parametrize("size", ["1b", "7b"])
def test_original_code_finds_its_own_blocks_in_what_we_write(released, size):
    written = JanusProConfig.from_dict(released[size]).to_file_dict("original")
    assert written["architectures"] == ["MultiModalityCausalLM"]
    assert (written["model_type"], written["torch_dtype"]) == ("multi_modality", "bfloat16")
    for name, block in released[size].items():
        if isinstance(block, dict):
            assert block.items() <= written[name].items(), name


def test_test_only_sizes_of_the_golden_config_survive(golden_checkpoint):
    original = json.loads((golden_checkpoint / "config.json").read_text())
    written = JanusProConfig.from_pretrained(golden_checkpoint).to_file_dict("original")
    tower = original["vision_config"]["params"]
    assert tower.pop("mlp_ratio") == 4  # the named tower's own, so it need not be stated
    assert written["vision_config"]["params"] == tower
    assert written["gen_vision_config"]["params"] == original["gen_vision_config"]["params"]
    assert original["language_config"].items() <= written["language_config"].items()


@pytest.mark.parametrize("overrides", [{}, CONFIGS["one grid"], CONFIGS["own norm and rope"]])
def test_original_blocks_alone_describe_the_model(tiny_config, overrides):
    """Other readers of the original layout use neither text_config nor vq_config."""
    config = tiny_config(**overrides)
    written = config.to_file_dict("original")
    kept = ("model_type", "language_config", "aligner_config", "gen_vision_config", "gen_aligner_config")
    alone = {key: written[key] for key in (*kept, "gen_head_config")}
    alone["vision_config"] = {key: written["vision_config"][key] for key in ("cls", "model_type", "params")}
    read = JanusProConfig.from_dict(json.loads(json.dumps(alone)))
    for part in ("text_config", "vision_config", "vq_config"):
        found, expected = getattr(read, part).to_dict(), getattr(config, part).to_dict()
        ignored = ("initializer_range", "dtype", "architectures", "transformers_version")
        assert {k: v for k, v in found.items() if k not in ignored} == {
            k: v for k, v in expected.items() if k not in ignored
        }


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"image_token_id": None, **CONFIGS["one grid"]}, "image_token_id"),
        ({"vq": {"image_token_embed_dim": 48}}, r"\(9\) in the transformers layout, got 16.*layout='original'"),
        ({"vq": {"num_patches": 3}}, r"hidden_size \(48\) .*, got 56.*layout='original'"),
    ],
)
def test_what_transformers_class_cannot_express_is_refused(tiny_config, overrides, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(**overrides).to_file_dict("transformers")
