"""Every weight name of the released 1B and 7B is read and written back, on the meta device, by transformers itself."""

import json

import pytest
import torch
from transformers.core_model_loading import revert_weight_conversion

from janus_hf import CheckpointError, JanusProConfig, JanusProForConditionalGeneration
from janus_hf.modeling.checkpoint import all_conversions


# SigLIP's pooling head (13 tensors) and the codec's usage counter: in the files, in no code path.
UNUSED = ("vision_model.vision_tower.attn_pool.", "gen_vision_model.quantize.codebook_used")


@pytest.fixture(scope="module", params=["1b", "7b"])
def size(request):
    return request.param


@pytest.fixture(scope="module")
def stored(golden_dir, size):
    """Meta tensors with the names, shapes and dtypes of the released files."""
    listing = json.loads((golden_dir / f"keys_{size}.json").read_text(encoding="utf-8"))
    assert len(listing["keys"]) == {"1b": 882, "7b": 936}[size]
    return {
        name: torch.empty(entry["shape"], dtype=getattr(torch, entry["dtype"]), device="meta")
        for name, entry in listing["keys"].items()
    }


def load(stored, config):
    return JanusProForConditionalGeneration.from_pretrained(
        None,
        config=JanusProConfig.from_dict(config),
        state_dict=stored,
        device_map={"": "meta"},
        output_loading_info=True,
    )


@pytest.fixture(scope="module")
def loaded(stored, released, size):
    """The model that the files describe, and transformers' loading info."""
    return load(stored, released[size])


def signature(tensors):
    return {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}


def test_every_key_is_read_and_written_back(stored, loaded):
    model, info = loaded
    assert not any(info.values())
    own = model.state_dict()
    assert {tensor.dtype for tensor in own.values()} == {torch.bfloat16}
    # 24 fused qkv weights and biases become three each.
    assert len(own) == len(stored) - 14 + 24 * 2 * 2

    model._weight_conversions = all_conversions(model)  # as save_pretrained(layout="original") does
    written = signature(revert_weight_conversion(model, own))
    tolerated = {name for name in stored if name.startswith(UNUSED)}
    assert len(tolerated) == 14
    assert written == {name: value for name, value in signature(stored).items() if name not in tolerated}


def test_a_freshly_built_model_has_the_same_names(stored, released, size):
    with torch.device("meta"):
        model = JanusProForConditionalGeneration(JanusProConfig.from_dict(released[size]))
    model._weight_conversions = all_conversions(model)
    assert set(revert_weight_conversion(model, model.state_dict())) == {
        name for name in stored if not name.startswith(UNUSED)
    }


def test_anchors(loaded):
    """Names and shapes written out by hand, one for each row of the table of names."""
    model, _ = loaded
    own, width = model.state_dict(), model.config.text_config.hidden_size
    expected = {
        "model.vision_model.embeddings.patch_embedding.weight": (1024, 3, 16, 16),
        "model.vision_model.embeddings.position_embedding.weight": (576, 1024),
        "model.vision_model.encoder.layers.23.self_attn.v_proj.weight": (1024, 1024),
        "model.vision_model.encoder.layers.23.self_attn.projection_layer.bias": (1024,),
        "model.vision_model.post_layernorm.bias": (1024,),
        "model.aligner.fc1.weight": (width, 1024),
        "model.aligner.hidden_layers.0.weight": (width, width),
        "model.generation_aligner.fc1.weight": (width, 8),
        "model.generation_embeddings.weight": (16384, 8),
        "model.generation_head.proj_out.weight": (width, width),
        "model.generation_head.vision_head.weight": (16384, width),
        "model.vqmodel.encoder.down.4.attn.1.proj_out.weight": (512, 512, 1, 1),
        "model.vqmodel.encoder.mid.attn_1.q.bias": (512,),
        "model.vqmodel.decoder.up.4.block.2.conv2.weight": (128, 128, 3, 3),
        "model.vqmodel.quantize.embedding.weight": (16384, 8),
        "model.language_model.norm.weight": (width,),
        "lm_head.weight": (102400, width),
    }
    assert {name: tuple(own[name].shape) for name in expected} == expected


@pytest.mark.parametrize("lost", ["gen_aligner.layers.2.bias", "vision_model.vision_tower.blocks.3.attn.qkv.weight"])
def test_one_lost_key_is_an_error(stored, released, size, lost):
    kept = {name: tensor for name, tensor in stored.items() if name != lost}
    with pytest.raises(CheckpointError) as caught:
        load(kept, released[size])
    assert len(caught.value.missing) == (3 if "qkv" in lost else 1)
    assert caught.value.unexpected == []


def test_only_the_fourteen_known_keys_are_tolerated(stored, released, size):
    more = stored | {"gen_vision_model.quantize.codebook_used_twice": torch.empty(1, device="meta")}
    with pytest.raises(CheckpointError) as caught:
        load(more, released[size])
    assert caught.value.unexpected == ["model.vqmodel.quantize.codebook_used_twice"]
    assert caught.value.missing == []
