"""PEFT's methods work as on transformers' own Janus: save, load, merge, unload, train, and generate."""

import copy

import peft
import pytest
import torch

from janus_hf import JanusProForConditionalGeneration
from tiny import TINY_MODEL


pytestmark = pytest.mark.slow

TARGETS = r".*language_model\.layers\.\d+\.self_attn\.(q|v)_proj"
INPUTS = {"input_ids": torch.tensor([[1, 1, 1], [1, 2, 1]]), "attention_mask": torch.tensor([[1, 1, 1], [0, 1, 1]])}

# Methods that change weights, which can be merged into the model.
MERGEABLE = {
    "lora": lambda: peft.LoraConfig(target_modules=TARGETS, init_lora_weights=False),
    "dora": lambda: peft.LoraConfig(target_modules=TARGETS, init_lora_weights=False, use_dora=True),
    "rslora": lambda: peft.LoraConfig(target_modules=TARGETS, init_lora_weights=False, use_rslora=True),
    "modules to save": lambda: peft.LoraConfig(
        target_modules=TARGETS, init_lora_weights=False, modules_to_save=["lm_head", "generation_head"]
    ),
    "ia3": lambda: peft.IA3Config(target_modules=TARGETS, feedforward_modules=[], init_ia3_weights=False),
    "loha": lambda: peft.LoHaConfig(target_modules=TARGETS, init_weights=False),
    "lokr": lambda: peft.LoKrConfig(target_modules=TARGETS, init_weights=False),
    "oft": lambda: peft.OFTConfig(target_modules=TARGETS, oft_block_size=0, r=2, init_weights=False),
    "vera": lambda: peft.VeraConfig(target_modules=TARGETS, r=2, init_weights=False),
}
# Methods that put virtual tokens before the prompt. They need a `task_type`.
PROMPTS = {
    "prompt tuning": lambda: peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
    "p-tuning": lambda: peft.PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=4, encoder_hidden_size=16),
    "prefix tuning": lambda: peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
}
METHODS = MERGEABLE | PROMPTS


@pytest.fixture(scope="module")
def base():
    """The tiny model. Tests share it and must not change it."""
    return JanusProForConditionalGeneration.from_pretrained(TINY_MODEL, dtype=torch.float32)


def adapt(base, method):
    torch.manual_seed(0)
    return peft.get_peft_model(copy.deepcopy(base), METHODS[method]()).eval()


def logits(model):
    with torch.no_grad():
        return model(**INPUTS).logits


@pytest.mark.parametrize("layout", ["original", "transformers"])
@pytest.mark.parametrize("method", METHODS)
def test_an_adapter_survives_saving(base, tmp_path, method, layout):
    model = adapt(base, method)
    model.save_pretrained(tmp_path / "adapter")
    base.save_pretrained(tmp_path / "base", layout=layout)
    again = JanusProForConditionalGeneration.from_pretrained(tmp_path / "base", dtype=torch.float32)
    loaded = peft.PeftModel.from_pretrained(again, tmp_path / "adapter").eval()
    torch.testing.assert_close(logits(loaded), logits(model))


@pytest.mark.parametrize("layout", ["original", "transformers"])
@pytest.mark.parametrize("method", MERGEABLE)
def test_a_merged_model_survives_saving(base, tmp_path, method, layout):
    model = adapt(base, method)
    if method == "modules to save":
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if "modules_to_save" in name:
                    weight.mul_(1.5)
    expected = logits(model)
    assert not torch.allclose(expected, logits(base), atol=1e-4), "an adapter that changes nothing proves nothing"
    model.merge_and_unload().save_pretrained(tmp_path, layout=layout)
    loaded = JanusProForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float32)
    torch.testing.assert_close(logits(loaded), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("method", MERGEABLE)
def test_a_disabled_or_removed_adapter_leaves_the_base_model(base, method):
    model = adapt(base, method)
    with model.disable_adapter():
        torch.testing.assert_close(logits(model), logits(base), atol=1e-5, rtol=1e-5)
    unloaded = model.unload()
    assert unloaded.state_dict().keys() == base.state_dict().keys()
    assert all(torch.equal(unloaded.state_dict()[name], weight) for name, weight in base.state_dict().items())


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_only_the_adapter_gets_gradients(base, method, checkpointing):
    if checkpointing and method == "prefix tuning":
        pytest.skip("PEFT refuses gradient checkpointing with a cache of virtual tokens")
    model = adapt(base, method).train()
    if checkpointing:
        model.gradient_checkpointing_enable()
    model(**INPUTS).logits.mean().backward()
    grads = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert grads
    assert grads <= trainable
    assert not any(name.endswith("base_layer.weight") for name in grads)


@pytest.mark.parametrize("method", METHODS)
def test_text_is_generated_with_an_adapter(base, method):
    model = adapt(base, method)
    tokens = model.generate(**INPUTS, max_new_tokens=3, do_sample=False)
    assert tokens.shape[0] == 2
    assert tokens.shape[1] > INPUTS["input_ids"].shape[1]
