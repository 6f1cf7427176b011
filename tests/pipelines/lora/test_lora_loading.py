"""Loading LoRA adapters made with PEFT, on this package's model and on transformers' Janus; refusing misfits."""

import copy
import logging
import shutil

import pytest
import torch
from lora_adapters import WEIGHTS, broken, close, is_untouched, loaded, logits, train
from peft import IA3Config, PeftModel, get_peft_model
from tiny_pipes import generate_ids, silent
from transformers import JanusForConditionalGeneration

from janus_hf import CheckpointError, JanusProPipeline


@pytest.mark.parametrize("name", ["a", "m", "w"])
def test_adapter_generates_as_in_peft(pipe, base, adapters, name):
    peft_model = PeftModel.from_pretrained(copy.deepcopy(base.model), adapters / name)
    expected = silent(JanusProPipeline(peft_model.base_model.model, base.processor))
    pipe.load_lora_weights(adapters / name)
    assert torch.equal(generate_ids(pipe), generate_ids(expected))
    assert torch.equal(logits(pipe), logits(expected))
    assert not close(logits(pipe), logits(base))
    assert not torch.equal(generate_ids(pipe), generate_ids(base))


def test_adapter_changes_answers(pipe, base, adapters):
    question = [{"role": "user", "content": "what is a fox?"}]
    pipe.load_lora_weights(adapters / "a")
    assert pipe.chat(question, max_new_tokens=8) != base.chat(question, max_new_tokens=8)


def test_adapter_made_on_transformers_janus(pipe, base, tmp_path):
    base.model.save_pretrained(tmp_path / "model", layout="transformers")
    theirs = JanusForConditionalGeneration.from_pretrained(tmp_path / "model")
    adapted = train(theirs, tmp_path / "adapter", 7)
    pipe.load_lora_weights(tmp_path / "adapter")
    inputs = pipe.processor("a red fox")
    with torch.no_grad():
        expected = adapted(**inputs).logits
        found = pipe.model(**inputs).logits
        plain = base.model(**inputs).logits
    torch.testing.assert_close(
        found, expected, atol=1e-5, rtol=0
    )  # measured 0; the adapter moves them by more than 0.1
    assert (found - plain).abs().max() > 0.1


def test_names_are_given_or_counted(pipe, adapters):
    pipe.load_lora_weights(adapters / "a")
    pipe.load_lora_weights(adapters / "b", adapter_name="mine")
    pipe.load_lora_weights(adapters / "m")
    assert pipe.get_list_adapters() == {"model": ["default_0", "mine", "default_1"]}
    assert pipe.get_active_adapters() == ["default_1"]
    pipe.delete_adapters("default_0")
    pipe.load_lora_weights(adapters / "a")
    assert sorted(loaded(pipe)) == ["default_0", "default_1", "mine"]
    with pytest.raises(ValueError, match="got 'mine', which is loaded already: pick another adapter_name"):
        pipe.load_lora_weights(adapters / "a", adapter_name="mine")


@pytest.mark.parametrize("name", ["a", "model", "head", "weight", "lora"])
def test_names_that_are_part_of_the_models_own(pipe, adapters, name):
    """transformers reports a parameter as missing from the adapter if its name contains the adapter's name."""
    pipe.load_lora_weights(adapters / "w", adapter_name=name)
    assert pipe.get_active_adapters() == [name]


@pytest.mark.filterwarnings("error::UserWarning")
def test_loading_and_deleting_raise_no_false_alarm(pipe, adapters, caplog):
    """transformers alone would report the first adapter's weights as missing from the second."""
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        for name in ("a", "b", "w"):
            pipe.load_lora_weights(adapters / name, name)
        pipe.delete_adapters(["w", "a"])
    finally:
        logger.removeHandler(caplog.handler)
    assert caplog.text == ""


def test_hub_arguments_are_passed_on(pipe, adapters, monkeypatch):
    calls = []
    load_adapter = pipe.model.load_adapter

    def spy(source, **kwargs):
        calls.append((source, kwargs["adapter_kwargs"]))
        return load_adapter(adapters / "a", **{**kwargs, "adapter_kwargs": {}})

    monkeypatch.setattr(pipe.model, "load_adapter", spy)
    pipe.load_lora_weights("me/fox-lora", revision="main", token="secret", subfolder="last")
    assert calls == [("me/fox-lora", {"revision": "main", "token": "secret", "subfolder": "last"})]
    (tmp := adapters / "outer").mkdir(exist_ok=True)
    shutil.copytree(adapters / "b", tmp / "inner", dirs_exist_ok=True)
    monkeypatch.undo()
    pipe.load_lora_weights(tmp, subfolder="inner")
    assert pipe.get_list_adapters() == {"model": ["default_0", "default_1"]}


def wrong_shape(tensors, config):
    key = next(key for key in tensors if "layers.0.self_attn.k_proj.lora_A" in key)
    tensors[key] = tensors[key][:, :10].contiguous()


def other_rank(tensors, config):
    config["r"] = 2


def incomplete(tensors, config):
    del tensors[next(key for key in tensors if "layers.0.self_attn.k_proj.lora_A" in key)]


def other_depth(tensors, config):
    key = next(key for key in tensors if "layers.0.self_attn.k_proj.lora_A" in key)
    tensors[key.replace("layers.0", "layers.7")] = tensors[key].clone()


def other_targets(tensors, config):
    config["target_modules"] = ["to_q"]


BROKEN = [
    (wrong_shape, CheckpointError, r"wrong shape \(1\):\n.*layers.0.self_attn.k_proj.lora_A.*\(4, 10\) in the files"),
    (other_rank, CheckpointError, r"wrong shape \(16\)"),
    (incomplete, CheckpointError, r"missing \(1\):\n.*layers.0.self_attn.k_proj.lora_A"),
    (other_depth, CheckpointError, r"unexpected \(1\):\n.*layers.7.self_attn.k_proj.lora_A"),
    (other_targets, ValueError, "to_q"),
]


@pytest.mark.parametrize(("change", "error", "message"), BROKEN)
def test_misfits_leave_the_model_as_it_was(pipe, base, adapters, tmp_path, change, error, message):
    folder = broken(adapters, tmp_path / "broken", change)
    with pytest.raises(error, match=message):
        pipe.load_lora_weights(folder)
    assert is_untouched(pipe, base)
    pipe.load_lora_weights(adapters / "a")  # still usable
    assert pipe.get_active_adapters() == ["default_0"]


@pytest.mark.parametrize(("change", "error", "message"), BROKEN)
def test_misfits_leave_other_adapters_as_they_were(pipe, adapters, tmp_path, change, error, message):
    pipe.load_lora_weights(adapters / "b", "good")
    pipe.load_lora_weights(adapters / "w", "better")
    pipe.set_adapters(["good", "better"], [0.5, 2.0])
    before = logits(pipe)
    with pytest.raises(error, match=message):
        pipe.load_lora_weights(broken(adapters, tmp_path / "broken", change), "bad")
    assert (loaded(pipe), pipe.get_active_adapters()) == (["good", "better"], ["good", "better"])
    assert torch.equal(logits(pipe), before)


def test_file_that_is_missing_or_damaged(pipe, base, adapters, tmp_path):
    with pytest.raises(OSError, match="no-such-folder"):
        pipe.load_lora_weights("/no-such-folder")
    shutil.copytree(adapters / "a", tmp_path / "cut")
    content = (tmp_path / "cut" / WEIGHTS).read_bytes()
    (tmp_path / "cut" / WEIGHTS).write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match="does not fit this model, so it was not loaded"):
        pipe.load_lora_weights(tmp_path / "cut")
    (tmp_path / "cut" / WEIGHTS).unlink()
    with pytest.raises(OSError, match=WEIGHTS):
        pipe.load_lora_weights(tmp_path / "cut")
    assert is_untouched(pipe, base)


def test_other_kinds_of_adapters(pipe, base, tmp_path):
    config = IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"])
    get_peft_model(copy.deepcopy(base.model), config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="adapter of kind IA3; pipelines take LoRA adapters only"):
        pipe.load_lora_weights(tmp_path)
    assert is_untouched(pipe, base)


def test_adapters_of_overlapping_modules(pipe, base, tmp_path):
    """An adapter of a whole module is refused while an adapter of a layer inside it is loaded."""
    train(copy.deepcopy(base.model), tmp_path / "inner", 3, target=r".*generation_head\.proj_out")
    train(copy.deepcopy(base.model), tmp_path / "outer", 4, modules_to_save=["generation_head"])
    pipe.load_lora_weights(tmp_path / "inner")
    inner = logits(pipe)
    assert not close(inner, logits(base))
    with pytest.raises(CheckpointError, match=r"missing \(4\):\n.*generation_head.modules_to_save"):
        pipe.load_lora_weights(tmp_path / "outer")
    assert torch.equal(logits(pipe), inner)
    pipe.unload_lora_weights()
    assert is_untouched(pipe, base)
