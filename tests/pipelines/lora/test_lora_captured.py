"""Captured steps generate with the adapters that are loaded and active now."""

import torch
from tiny_pipes import copy_of, generate_ids

from graph_emulator import EmulatedGraph
from janus_hf.generation.decoders import CapturedDecoder


def test_adapters_are_loaded_scaled_fused_and_unloaded(pipe, base, adapters, caplog):
    EmulatedGraph.reset()
    plain = copy_of(base)
    pipe.model._decoder = CapturedDecoder(graph_class=EmulatedGraph)
    changes = [
        lambda one: None,
        lambda one: one.load_lora_weights(adapters / "a", "a"),
        lambda one: one.set_adapters("a", 0.3),
        lambda one: one.set_adapters("a", 1.7),
        lambda one: one.load_lora_weights(adapters / "w", "w"),
        lambda one: one.load_lora_weights(adapters / "b", "b"),
        lambda one: one.set_adapters(["a", "b"], [1.0, 0.5]),
        lambda one: one.disable_lora(),
        lambda one: one.enable_lora(),
        lambda one: one.delete_adapters("a"),
        lambda one: one.fuse_lora(lora_scale=0.5),
        lambda one: one.unfuse_lora(),
        lambda one: one.fuse_lora(),
        lambda one: one.unload_lora_weights(),
    ]
    images = []
    hot = {"seeds": (5, 6), "temperature": 3.0, "num_images_per_prompt": 2}  # where small changes of logits show
    for number, change in enumerate(changes):
        for one in (pipe, plain):
            change(one)
        images.append(generate_ids(pipe, **hot))
        assert torch.equal(images[-1], generate_ids(plain, **hot)), number
    assert caplog.text.count("plain steps") == 0
    # Disabling and enabling again gives an image from before, and so does fusing without a scale and unloading.
    assert len({tuple(image.flatten().tolist()) for image in images}) >= 7
    assert EmulatedGraph.captured >= 10
    assert EmulatedGraph.alive() == 1
