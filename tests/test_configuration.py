"""The configuration classes: sizes that must fit together, and how parts are given."""

import pytest
from huggingface_hub.errors import StrictDataclassFieldValidationError
from transformers import Qwen2Config

from janus_hf import JanusProConfig, JanusProVQConfig


@pytest.mark.parametrize(
    ("part", "fields", "message"),
    [
        ("vision", {"image_size": 13}, r"image_size must be a multiple of patch_size \(4\), got 13"),
        ("vision", {"num_attention_heads": 5}, r"hidden_size must be a multiple of num_attention_heads \(5\), got 24"),
        ("vision", {"projection_dim": 32}, r"vision_config.projection_dim must equal .*hidden_size \(48\), got 32"),
        ("vision", {"depth": 0}, "vision_config.depth.* at least 1 and at most 8, got 0"),
        ("vision", {"depth": 9}, "vision_config.depth.* at most 8, got 9"),
        ("vq", {"projection_dim": 32}, r"vq_config.projection_dim must equal .*hidden_size \(48\), got 32"),
        ("vq", {"image_size": 9}, r"image_size must be a multiple of 2, got 9"),
        ("vq", {"double_latent": True}, "double_latent"),
        ("vq", {"base_channels": 24}, "multiple of 32, got 24"),
        ("vq", {"num_hidden_layers": 0}, "vq_config.num_hidden_layers.* at least 1 and at most 8, got 0"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(tiny_config, part, fields, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(**{part: fields})


def test_fields_are_typed(tiny_config):
    with pytest.raises(StrictDataclassFieldValidationError, match="num_embeddings"):
        tiny_config(vq={"num_embeddings": "many"})


def test_the_codec_owns_the_geometry_of_generated_images(tiny_config):
    config = tiny_config(vq={"num_patches": 5})
    assert config.vision_config.num_image_tokens == 9
    assert (config.vq_config.image_size, config.vq_config.num_image_tokens) == (10, 25)
    vq = {key: value for key, value in config.vq_config.to_dict().items() if key != "num_patches"}
    assert JanusProVQConfig(**vq | {"image_size": 14}).num_patches == 7


def test_any_text_config_object_is_accepted(tiny_config):
    text = Qwen2Config(
        vocab_size=50, hidden_size=48, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1
    )
    config = JanusProConfig(
        text_config=text, vision_config=tiny_config().vision_config, vq_config=tiny_config().vq_config
    )
    assert config.text_config is text
