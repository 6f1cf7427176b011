"""Captured steps on a CUDA device, through the public switch and the real `CudaGraph`."""

import pytest
import torch
from image_prompts import LONG, OTHER, SHORT, left_padded, seeds


pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.fixture
def models(make_model):
    """A captured and a plain model on the device, and prompts."""
    captured, plain = make_model().cuda(), make_model().cuda()
    assert captured.compile_generation(mode="graph")
    return captured, plain, [part.cuda() for part in left_padded(SHORT, LONG, OTHER)]


def count_graphs(model):
    return len(model._decoder._graphs)


def test_captured_images_are_the_plain_ones(models, caplog):
    captured, plain, prompts = models
    for settings in ({}, {"guidance_scale": 1.0}, {"speculative_window": 4}, {"top_k": 5, "top_p": 0.9}, {}):
        for seed in (0, 10):
            images = [
                model.generate_images(*prompts, generator=seeds(seed, seed + 1, seed + 2), **settings)
                for model in (captured, plain)
            ]
            assert torch.equal(*images), settings
    assert count_graphs(captured) == 4
    assert "plain steps" not in caplog.text


def test_changes_are_seen(models, caplog):
    captured, plain, prompts = models

    def compare():
        images = [model.generate_images(*prompts, generator=seeds(1, 2, 3)) for model in (captured, plain)]
        assert torch.equal(*images)
        return images[0]

    before = compare()
    with torch.no_grad():
        for model in (captured, plain):
            model.model.language_model.layers[0].mlp.down_proj.weight.mul_(-1)
    written = compare()
    for model in (captured, plain):
        model.model.language_model.layers[0].mlp.up_proj.weight.data = torch.ones(64, 48, device="cuda")
    replaced = compare()
    assert not torch.equal(before, written)
    assert not torch.equal(written, replaced)
    assert "plain steps" not in caplog.text


def test_layers_that_wait_leave_the_process_usable(models, caplog):
    captured, plain, prompts = models

    class Reads(torch.nn.Module):
        def forward(self, x):
            return x * 2 if torch.ones_like(x).sum().item() > 0 else x

    for model in (captured, plain):
        model.model.language_model.layers[0].mlp.act_fn = Reads().eval()
    images = [model.generate_images(*prompts, generator=seeds(1, 2, 3)) for model in (captured, plain)]
    assert torch.equal(*images)
    assert caplog.text.count("waits for the device") == 1
    torch.cuda.empty_cache()  # raises an error after a capture that failed


def test_the_switch_frees_the_memory(models):
    captured, _, prompts = models
    captured.compile_generation(False)
    before = torch.cuda.memory_allocated()
    assert captured.compile_generation(mode="graph")
    captured.generate_images(*prompts)
    assert torch.cuda.memory_allocated() > before
    captured.compile_generation(False)
    # Matrix kernels keep one workspace for the stream on which graphs are captured.
    assert torch.cuda.memory_allocated() - before < 40 * 2**20
