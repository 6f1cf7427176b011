"""The pipeline as a diffusers pipeline: components, dtypes, devices and offloading."""

import json

import numpy as np
import pytest
import torch
from accelerate import cpu_offload_with_hook
from diffusers import DiffusionPipeline
from tiny_pipes import NUM_TOKENS, SIDE, generate_ids, load, same_weights, seeded

from janus_hf import JanusProPipeline


PARTS = (
    *(f"model.{part}" for part in ("vision_model", "aligner", "vqmodel", "language_model")),
    *(f"model.generation_{part}" for part in ("embeddings", "aligner", "head")),
    "lm_head",
)


@pytest.mark.parametrize("device_map", ["cpu", dict.fromkeys(PARTS, "disk") | {"lm_head": "cpu"}])
def test_device_map(pipe, image, tmp_path, device_map):
    mapped = load(device_map=device_map, offload_folder=tmp_path / "offload")
    expected = generate_ids(pipe)
    tokens = generate_ids(mapped, image_ids=expected[:, :48])  # every step reads all weights from the disk
    assert torch.equal(tokens, expected)
    assert torch.equal(mapped.encode(image), pipe.encode(image))
    assert torch.equal(mapped.decode(tokens, "pt"), pipe.decode(tokens, "pt"))
    assert mapped.ask(image, "what?", max_new_tokens=5) == pipe.ask(image, "what?", max_new_tokens=5)
    mapped.save_pretrained(tmp_path / "saved")
    assert same_weights(load(tmp_path / "saved").model, pipe.model)


def test_components_make_another_pipeline(pipe):
    assert isinstance(pipe, DiffusionPipeline)
    assert pipe.components == {"model": pipe.model, "processor": pipe.processor}
    for other in (JanusProPipeline(**pipe.components), JanusProPipeline.from_pipe(pipe)):
        other.set_progress_bar_config(disable=True)
        assert other.model is pipe.model
        assert torch.equal(generate_ids(other), generate_ids(pipe))


def test_to_dtype(own_pipe, image):
    assert own_pipe.to(torch.bfloat16) is own_pipe
    assert (own_pipe.dtype, own_pipe.model.dtype, own_pipe.device.type) == (torch.bfloat16, torch.bfloat16, "cpu")
    output = own_pipe("a", generator=seeded(0), output_type="np")
    assert (output.images.dtype, output.images.shape) == (np.float32, (1, SIDE, SIDE, 3))
    assert own_pipe.encode(image).shape == (1, NUM_TOKENS)
    assert isinstance(own_pipe.ask(image, "what?", max_new_tokens=2), str)


def test_printing_names_the_components(pipe):
    assert json.loads(repr(pipe).removeprefix("JanusProPipeline "))["model"] == [
        "janus_hf",
        "JanusProForConditionalGeneration",
    ]


@pytest.mark.parametrize("action", ["generate", "decode", "encode", "ask"])
def test_cpu_offload_brings_the_model_in_before_working(own_pipe, image, action):
    """accelerate's hook runs before `model.forward` only; generating, encoding and decoding call other methods."""
    model, _ = cpu_offload_with_hook(own_pipe.model, execution_device="cpu")
    events = []
    bring_in = model._hf_hook.pre_forward
    model._hf_hook.pre_forward = lambda *a, **k: (events.append("hook"), bring_in(*a, **k))[1]
    for module in model.modules():
        if not list(module.children()):
            module.register_forward_pre_hook(lambda *_: events.append("work"))
    {
        "generate": lambda: generate_ids(own_pipe),
        "decode": lambda: own_pipe.decode(torch.zeros(1, NUM_TOKENS, dtype=torch.long)),
        "encode": lambda: own_pipe.encode(image),
        "ask": lambda: own_pipe.ask(image, "what?", max_new_tokens=2),
    }[action]()
    assert events[0] == "hook"
    assert "work" in events


def test_enable_model_cpu_offload(own_pipe, pipe, image):
    own_pipe.enable_model_cpu_offload(device="cpu")
    first = own_pipe.model._hf_hook
    assert torch.equal(generate_ids(own_pipe), generate_ids(pipe))
    assert own_pipe.model._hf_hook is not first  # offloaded again after generating, for the next call
    assert own_pipe.ask(image, "what?", max_new_tokens=4) == pipe.ask(image, "what?", max_new_tokens=4)
    own_pipe.remove_all_hooks()
    assert torch.equal(generate_ids(own_pipe), generate_ids(pipe))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("mode", ["to", "enable_model_cpu_offload", "enable_sequential_cpu_offload"])
def test_on_a_gpu(own_pipe, pipe, image, mode):
    own_pipe.to("cuda") if mode == "to" else getattr(own_pipe, mode)()
    tokens = generate_ids(own_pipe, do_sample=False)
    assert tokens.device.type == "cuda"
    # float32 on another device rounds differently: the first image tokens agree, one flip changes all that follow.
    assert torch.equal(tokens[:, :8].cpu(), generate_ids(pipe, do_sample=False)[:, :8])
    assert own_pipe.decode(tokens.cpu(), "pt").shape == (1, 3, SIDE, SIDE)
    # Tokens of neighbours in the codebook may flip by rounding, most do not.
    assert (own_pipe.encode(image).cpu() == pipe.encode(image)).float().mean() > 0.9
    assert isinstance(own_pipe.ask(image, "what?", max_new_tokens=4), str)
    if mode == "enable_model_cpu_offload":
        assert own_pipe.model.device.type == "cpu"
