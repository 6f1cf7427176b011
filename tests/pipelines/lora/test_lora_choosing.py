"""Choosing, disabling, deleting and unloading LoRA adapters."""

import shutil

import pytest
import torch
from lora_adapters import close, deltas, is_untouched, loaded, logits, with_weights
from tiny_pipes import generate_ids


@pytest.mark.parametrize(
    ("names", "weights", "expected"),
    [
        ("a", None, [("a", 1)]),
        ("a", 0.5, [("a", 0.5)]),
        (["a"], [0.0], [("a", 0)]),
        (["a", "b"], None, [("a", 1), ("b", 1)]),
        (["a", "b"], [0.25, -1.5], [("a", 0.25), ("b", -1.5)]),
        (["a", "b", "m"], 0.5, [("a", 0.5), ("b", 0.5), ("m", 0.5)]),
        (["w", "m"], [1.0, 2.0], [("w", 1), ("m", 2)]),
    ],
)
def test_adapters_together_are_the_weighted_sum_of_their_deltas(pipe, base, adapters, names, weights, expected):
    for name in ("a", "b", "m", "w"):
        pipe.load_lora_weights(adapters / name, name)
    pipe.set_adapters(names, weights)
    assert pipe.get_active_adapters() == ([names] if isinstance(names, str) else names)
    reference = with_weights(base, deltas(base, adapters, *expected))
    assert close(logits(pipe), logits(reference))
    if len(expected) > 1:
        assert not close(logits(pipe), logits(with_weights(base, deltas(base, adapters, expected[0]))))


def test_weights_are_set_anew_each_time(pipe, adapters):
    pipe.load_lora_weights(adapters / "a", "a")
    full = logits(pipe)
    pipe.set_adapters("a", 0.3)
    assert not close(logits(pipe), full)
    pipe.set_adapters("a")
    assert torch.equal(logits(pipe), full)


def test_bad_choices(pipe, adapters):
    pipe.load_lora_weights(adapters / "w", "w")
    pipe.load_lora_weights(adapters / "a", "a")
    shutil.copytree(adapters / "w", adapters / "v", dirs_exist_ok=True)
    pipe.load_lora_weights(adapters / "v", "v")
    before = logits(pipe)
    for names, weights, message in (
        ("x", None, r"names of loaded adapters, which are \['w', 'a', 'v'\], got x"),
        (["a", "w"], [1.0], "one weight per adapter, 2 in all, got 1"),
        ([], None, r"at least one name, got none.*disable_lora"),
        (["w", "a", "v"], None, r"its own copy of a whole module .*got \['w', 'v'\]"),
    ):
        with pytest.raises(ValueError, match=message):
            pipe.set_adapters(names, weights)
    with pytest.raises(ValueError, match="names of loaded adapters.*got x"):
        pipe.delete_adapters(["x"])
    assert torch.equal(logits(pipe), before)


@pytest.mark.parametrize("name", ["a", "w"])
def test_disable_and_enable(pipe, base, adapters, name):
    pipe.load_lora_weights(adapters / name)
    adapted = logits(pipe)
    pipe.disable_lora()
    assert torch.equal(logits(pipe), logits(base))
    assert pipe.get_list_adapters() == {"model": ["default_0"]}
    pipe.enable_lora()
    assert torch.equal(logits(pipe), adapted)
    pipe.disable_lora()
    pipe.set_adapters("default_0")  # to choose is to use
    assert torch.equal(logits(pipe), adapted)


def test_delete(pipe, base, adapters):
    for name in ("a", "w", "m"):
        pipe.load_lora_weights(adapters / name, name)
    pipe.set_adapters(["a", "m"], [0.5, 2.0])
    pipe.delete_adapters("a")
    assert (loaded(pipe), pipe.get_active_adapters()) == (["w", "m"], ["m"])
    assert close(logits(pipe), logits(with_weights(base, deltas(base, adapters, ("m", 2)))))
    pipe.delete_adapters("m")  # nothing is active any more: the first one left becomes so
    assert pipe.get_active_adapters() == ["w"]
    assert close(logits(pipe), logits(with_weights(base, deltas(base, adapters, ("w", 1)))))
    pipe.delete_adapters(["w"])
    assert is_untouched(pipe, base)


def test_delete_one_of_three_that_are_active_together(pipe, base, adapters):
    for name in ("a", "w", "m"):
        pipe.load_lora_weights(adapters / name, name)
    pipe.set_adapters(["a", "w", "m"])
    pipe.delete_adapters("w")
    assert pipe.get_active_adapters() == ["a", "m"]
    assert close(logits(pipe), logits(with_weights(base, deltas(base, adapters, ("a", 1), ("m", 1)))))


def test_deleting_while_disabled_stays_disabled(pipe, base, adapters):
    for name in ("a", "w"):
        pipe.load_lora_weights(adapters / name, name)
    pipe.disable_lora()
    pipe.delete_adapters("w")
    assert torch.equal(logits(pipe), logits(base))


@pytest.mark.parametrize("names", [["a"], ["w", "a"], ["a", "w", "m"]])
def test_unload_brings_the_base_model_back_exactly(pipe, base, adapters, names):
    for name in names:
        pipe.load_lora_weights(adapters / name, name)
    pipe.unload_lora_weights()
    assert is_untouched(pipe, base)
    assert torch.equal(generate_ids(pipe), generate_ids(base))
    pipe.unload_lora_weights()  # nothing to do
    pipe.load_lora_weights(adapters / "a")
    assert not close(logits(pipe), logits(base))


def test_names_of_loaded_and_fused_adapters(pipe, adapters):
    assert (pipe.get_list_adapters(), pipe.get_active_adapters(), pipe.fused_loras) == ({}, [], set())
    for name in ("a", "b"):
        pipe.load_lora_weights(adapters / name, name)
    assert pipe.get_list_adapters() == {"model": ["a", "b"]}
    pipe.fuse_lora("a")
    assert (pipe.fused_loras, pipe.num_fused_loras) == ({"a"}, 1)
    pipe.unfuse_lora()
    pipe.unload_lora_weights()
    assert (pipe.get_list_adapters(), pipe.num_fused_loras) == ({}, 0)
