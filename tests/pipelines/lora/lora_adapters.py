"""Adapters with random weights, and models whose weights contain them."""

import json
import shutil

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tiny_pipes import copy_of, same_weights


ATTENTION = r"model\.language_model\.layers\.\d+\.self_attn\.(q|k|v|o)_proj"
MLP = r"model\.language_model\.layers\.\d+\.mlp\.(up|down)_proj"
WHOLE = ["generation_head", "generation_aligner"]
WEIGHTS = "adapter_model.safetensors"


@torch.no_grad()
def logits(pipe):
    """Return the logits of both heads after a prompt; every adapter used here changes them."""
    inputs = pipe.processor.prepare_image_generation("a red fox")
    hidden = pipe.model.model(**inputs).last_hidden_state
    return torch.cat([pipe.model.model.generation_head(hidden), pipe.model.lm_head(hidden)], dim=-1)


def train(model, folder, seed, target=ATTENTION, **settings):
    """Save a PEFT adapter with random weights, large enough to change the images, and return the adapted model."""
    torch.manual_seed(seed)
    adapted = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=target, **settings))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    adapted.save_pretrained(folder)
    return adapted


def loaded(pipe):
    """Return the names of the loaded adapters."""
    return pipe.get_list_adapters()["model"]


def close(first, second):
    """Return whether tensors are equal up to rounding.

    They are sums of the same products in another order: in float32, 2e-7 was measured on logits of about 1.
    """
    return torch.allclose(first, second, atol=1e-5, rtol=0)


def is_untouched(pipe, base):
    """Return whether no adapter is loaded and all weights are those of the base model, bit by bit."""
    same_names = list(pipe.model.state_dict()) == list(base.model.state_dict())
    return same_names and same_weights(pipe.model, base.model) and pipe.get_list_adapters() == {}


def broken(adapters, folder, change):
    """Return the folder of a copy of adapter `a` after `change(tensors, config)`, which changes the two in place."""
    shutil.copytree(adapters / "a", folder)
    tensors = load_file(folder / WEIGHTS)
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    change(tensors, config)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def deltas(base, adapters, *scaled):
    """Return base weights plus the sum of `scale * alpha / r * B A` of the named adapters, computed by hand."""
    state_dict = {key: tensor.clone() for key, tensor in base.model.state_dict().items()}
    for name, scale in scaled:
        tensors = load_file(adapters / name / WEIGHTS)
        for key, down in tensors.items():
            if key.endswith("lora_A.weight"):
                up = tensors[key.replace("lora_A", "lora_B")]
                target = key.removeprefix("base_model.model.").replace(".lora_A.weight", ".weight")
                state_dict[target] += scale * (8 / 4) * up @ down
            elif "lora_B" not in key:
                state_dict[key.removeprefix("base_model.model.")] = tensors[key]
    return state_dict


def with_weights(base, state_dict):
    """Return a copy of the base pipeline with other weights."""
    other = copy_of(base)
    other.model.load_state_dict(state_dict)
    return other
