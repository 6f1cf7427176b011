"""Broken checkpoints raise a `CheckpointError` that lists what is wrong; no weight is ever left at random values."""

import json
import pickle
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from janus_hf import CheckpointError, JanusProForConditionalGeneration


INDEX = "pytorch_model.bin.index.json"
SHARDS = ("pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin")
load = JanusProForConditionalGeneration.from_pretrained


@pytest.fixture
def folder(golden_checkpoint, tmp_path):
    """A private copy of the golden checkpoint."""
    return shutil.copytree(golden_checkpoint, tmp_path / "checkpoint")


@pytest.fixture
def saved(interop_model, tmp_path):
    """A checkpoint of ours: one safetensors file in the transformers layout."""
    interop_model.save_pretrained(tmp_path / "saved", layout="transformers")
    return tmp_path / "saved"


def edit_shard(folder, shard, edit):
    tensors = torch.load(folder / shard, weights_only=True)
    edit(tensors)
    torch.save(tensors, folder / shard)


def test_missing_shard(folder):
    (folder / SHARDS[1]).unlink()
    with pytest.raises(CheckpointError, match=rf"names 2 shard\(s\) and 1 of them are missing: {SHARDS[1]}"):
        load(folder)


def test_missing_keys_are_listed(folder):
    for shard in SHARDS:
        for name in ("language_model.lm_head.weight", "gen_embed.weight"):
            edit_shard(folder, shard, lambda tensors, name=name: tensors.pop(name, None))
    with pytest.raises(CheckpointError) as caught:
        load(folder)
    assert caught.value.missing == ["lm_head.weight", "model.generation_embeddings.weight"]
    assert caught.value.unexpected == []
    assert caught.value.mismatched == []
    assert "lm_head.weight" in str(caught.value)


def test_a_missing_part_of_a_fused_weight(folder):
    name = "vision_model.vision_tower.blocks.1.attn.qkv.bias"
    for shard in SHARDS:
        edit_shard(folder, shard, lambda tensors: tensors.pop(name, None))
    with pytest.raises(CheckpointError) as caught:
        load(folder)
    assert caught.value.missing == [
        f"model.vision_model.encoder.layers.1.self_attn.{part}_proj.bias" for part in ("k", "q", "v")
    ]


def test_wrong_shapes_are_listed(folder):
    def edit(tensors):
        if "gen_embed.weight" in tensors:
            tensors["gen_embed.weight"] = tensors["gen_embed.weight"][:, :4].clone()

    for shard in SHARDS:
        edit_shard(folder, shard, edit)
    with pytest.raises(CheckpointError) as caught:
        load(folder)
    assert caught.value.mismatched == [("model.generation_embeddings.weight", (64, 4), (64, 8))]
    assert "(64, 4) in the files, (64, 8) expected" in str(caught.value)


def test_config_of_another_size(folder):
    config = json.loads((folder / "config.json").read_text())
    config["language_config"]["num_hidden_layers"] = 3
    config["gen_head_config"]["params"]["image_token_embed"] = 32
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError) as caught:
        load(folder)
    assert len(caught.value.missing) == 9
    assert all(name.startswith("model.language_model.layers.2.") for name in caught.value.missing)
    assert {name for name, _, _ in caught.value.mismatched} == {
        "model.generation_head.proj_out.weight",
        "model.generation_head.proj_out.bias",
        "model.generation_head.vision_head.weight",
    }


def test_unexpected_keys_are_listed(folder):
    edit_shard(folder, SHARDS[0], lambda tensors: tensors.update({"gen_head.extra.weight": torch.ones(2)}))
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"]["gen_head.extra.weight"] = SHARDS[0]
    (folder / INDEX).write_text(json.dumps(index))
    with pytest.raises(CheckpointError) as caught:
        load(folder)
    assert caught.value.unexpected == ["gen_head.extra.weight"]


def test_config_without_the_test_only_sizes(folder):
    """Sizes that the file omits are those of the released models, which the golden weights do not fit."""
    config = json.loads((folder / "config.json").read_text())
    del config["vision_config"]["params"]["width"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError):
        load(folder)


@pytest.mark.parametrize("content", ["{not json", "[]", "{}", '{"weight_map": 3}', '{"weight_map": []}', ""])
def test_corrupt_index(folder, content):
    (folder / INDEX).write_text(content)
    with pytest.raises(CheckpointError, match="must be JSON with .* it is not a checkpoint index"):
        load(folder)


@pytest.mark.parametrize("size", [0, 100, 400_000])
def test_truncated_bin(folder, size):
    file = folder / SHARDS[0]
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(CheckpointError, match=SHARDS[0]):
        load(folder)


@pytest.mark.parametrize("size", [0, 5, 1000, 100_000])
def test_truncated_safetensors(saved, size):
    file = saved / "model.safetensors"
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        load(saved)


def test_corrupt_safetensors_header(saved):
    file = saved / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[8:40] = b"x" * 32
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        load(saved)


def test_missing_shard_of_a_sharded_save(interop_model, tmp_path):
    interop_model.save_pretrained(tmp_path, max_shard_size="300KB")
    lost = sorted(tmp_path.glob("model-0000?-of-*.safetensors"))[0]
    lost.unlink()
    with pytest.raises(CheckpointError, match=lost.name):
        load(tmp_path)


def test_a_stale_index_beside_complete_weights_does_no_harm(saved, interop_model):
    """transformers reads model.safetensors first, so an index left over from a conversion is not read."""
    (saved / INDEX).write_text(json.dumps({"weight_map": {"x": "pytorch_model-00001-of-00001.bin"}}))
    model = load(saved)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), interop_model.parameters(), strict=True))


def test_a_key_missing_from_our_own_layout(saved):
    tensors = load_file(saved / "model.safetensors")
    del tensors["model.aligner.fc1.weight"]
    tensors["model.aligner.fc9.weight"] = torch.ones(1)
    save_file(tensors, saved / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError) as caught:
        load(saved)
    assert caught.value.missing == ["model.aligner.fc1.weight"]
    assert caught.value.unexpected == ["model.aligner.fc9.weight"]


def test_long_lists_are_cut_in_the_message_but_not_in_the_attribute():
    error = CheckpointError("Broken.", missing=[f"key{i:02}" for i in range(30)])
    assert len(error.missing) == 30
    assert "missing (30):" in str(error)
    assert "... and 10 more" in str(error)
    assert "key25" not in str(error)


class Attack:
    """An object that creates the file it names when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("kwargs", [{}, {"weights_only": True}])
def test_pickled_code_is_not_run(folder, tmp_path, kwargs):
    target = tmp_path / "attacked"
    torch.save({"gen_embed.weight": Attack(target)}, folder / SHARDS[0])
    with pytest.raises((CheckpointError, pickle.UnpicklingError)):
        load(folder, **kwargs)
    assert not target.exists()


def test_unsafe_loading_is_refused(folder):
    with pytest.raises(ValueError, match="weights_only=True"):
        load(folder, weights_only=False)


def test_ignoring_wrong_shapes_is_refused(folder):
    with pytest.raises(ValueError, match="ignore_mismatched_sizes"):
        load(folder, ignore_mismatched_sizes=True)


@pytest.mark.parametrize("argument", [{"from_tf": True}, {"from_flax": True}, {"mirror": "tuna"}])
def test_arguments_that_transformers_ignores_are_refused(folder, argument):
    with pytest.raises(ValueError, match=f"`{next(iter(argument))}` must be left out"):
        load(folder, **argument)
    load(folder, low_cpu_mem_usage=True)


def test_missing_folder_is_transformers_own_error(tmp_path):
    with pytest.raises(OSError, match="nowhere"):
        load(tmp_path / "nowhere")


def test_folder_without_weights(folder):
    for file in (*SHARDS, INDEX):
        (folder / file).unlink()
    with pytest.raises(OSError, match="no file named"):
        load(folder)
