"""Fusing LoRA adapters into the weights, and saving them."""

import copy

import pytest
import torch
from lora_adapters import WEIGHTS, broken, close, deltas, logits, with_weights
from peft import PeftModel
from safetensors.torch import load_file

from janus_hf import JanusProPipeline


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, [("a", 0.5), ("m", 2)]),
        ({"safe_fusing": True}, [("a", 0.5), ("m", 2)]),
        ({"lora_scale": 0.5}, [("a", 0.25), ("m", 1)]),
        ({"adapter_names": ["b"]}, [("b", 1)]),
        ({"adapter_names": "b", "lora_scale": 3.0}, [("b", 3)]),
        ({"adapter_names": ["w", "m"]}, [("w", 1), ("m", 2)]),
    ],
)
def test_fused_weights_are_the_sum_and_stay(pipe, base, adapters, tmp_path, arguments, expected):
    for name in ("a", "b", "m", "w"):
        pipe.load_lora_weights(adapters / name, name)
    pipe.set_adapters(["a", "m"], [0.5, 2.0])
    pipe.fuse_lora(**arguments)
    reference = deltas(base, adapters, *expected)
    generated = logits(pipe)
    assert close(generated, logits(with_weights(base, reference)))

    pipe.unload_lora_weights()
    assert pipe.get_list_adapters() == {}
    found = pipe.model.state_dict()
    assert found.keys() == reference.keys()
    for key, tensor in reference.items():
        torch.testing.assert_close(found[key], tensor, atol=1e-6, rtol=0)  # float32 sums of values below 1
    assert close(logits(pipe), generated)

    pipe.save_pretrained(tmp_path)
    again = JanusProPipeline.from_pretrained(tmp_path)
    assert all(torch.equal(tensor, found[key]) for key, tensor in again.model.state_dict().items())


def test_unfuse(pipe, base, adapters):
    for name in ("a", "m"):
        pipe.load_lora_weights(adapters / name, name)
    pipe.set_adapters(["a", "m"], [0.5, 2.0])
    before = logits(pipe)
    for lora_scale in (1.0, 0.7, 0.0):
        pipe.fuse_lora(lora_scale=lora_scale)
        pipe.unfuse_lora()
        assert close(logits(pipe), before)  # the adapters' own weights are theirs again, too
    pipe.unfuse_lora()  # nothing to do
    pipe.unload_lora_weights()
    for key, tensor in base.model.state_dict().items():
        torch.testing.assert_close(pipe.model.state_dict()[key], tensor, atol=1e-6, rtol=0)  # (x + d) - d in float32


def test_fused_adapters_cannot_be_changed(pipe, adapters):
    with pytest.raises(ValueError, match="nothing to fuse"):
        pipe.fuse_lora()
    for name in ("a", "b"):
        pipe.load_lora_weights(adapters / name, name)
    pipe.fuse_lora()
    fused = logits(pipe)
    for action in (
        pipe.fuse_lora,
        pipe.disable_lora,
        lambda: pipe.set_adapters("a"),
        lambda: pipe.delete_adapters("a"),
        lambda: pipe.load_lora_weights(adapters / "m"),
    ):
        with pytest.raises(ValueError, match=r"Adapters \['b'\] are fused into the weights.*unfuse_lora"):
            action()
    assert torch.equal(logits(pipe), fused)
    assert pipe.get_list_adapters() == {"model": ["a", "b"]}


def test_safe_fusing_refuses_broken_weights_and_undoes_what_it_began(pipe, base, adapters, tmp_path):
    def overflow(tensors, config):
        key = next(key for key in tensors if "layers.1.self_attn.o_proj.lora_B" in key)
        tensors[key][0, 0] = float("inf")

    pipe.load_lora_weights(broken(adapters, tmp_path / "broken", overflow), "a")
    with pytest.raises(ValueError, match="The adapter a seems to be broken"):
        pipe.fuse_lora(lora_scale=0.5, safe_fusing=True)
    pipe.disable_lora()  # refused if anything were still fused
    assert close(logits(pipe), logits(base))


@pytest.mark.parametrize("name", ["a", "w"])
def test_saved_adapter_loads_in_plain_peft(pipe, base, adapters, tmp_path, name):
    pipe.load_lora_weights(adapters / "m", "other")
    pipe.load_lora_weights(adapters / name, "mine")
    pipe.save_lora_weights(tmp_path)
    first, second = load_file(adapters / name / WEIGHTS), load_file(tmp_path / WEIGHTS)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    peft_model = PeftModel.from_pretrained(copy.deepcopy(base.model), tmp_path)
    assert torch.equal(
        logits(JanusProPipeline(peft_model.base_model.model, base.processor)),
        logits(pipe),
    )


def test_one_adapter_is_saved_at_a_time(pipe, adapters, tmp_path):
    for name in ("a", "m"):
        pipe.load_lora_weights(adapters / name, name)
    pipe.set_adapters(["a", "m"])
    with pytest.raises(ValueError, match=r"got \['a', 'm'\]: choose it with set_adapters"):
        pipe.save_lora_weights(tmp_path / "both")
    pipe.unload_lora_weights()
    with pytest.raises(ValueError, match=r"must be active to be saved, got \[\]"):
        pipe.save_lora_weights(tmp_path / "none")
    assert list(tmp_path.iterdir()) == []


def test_pipeline_is_not_saved_with_adapters_loaded(pipe, adapters, tmp_path):
    pipe.load_lora_weights(adapters / "a", "a")
    pipe.fuse_lora()
    with pytest.raises(ValueError, match=r"Adapters \['a'\] are loaded.*save_lora_weights.*fuse_lora\(\) and unload"):
        pipe.save_pretrained(tmp_path)
    assert list(tmp_path.iterdir()) == []
