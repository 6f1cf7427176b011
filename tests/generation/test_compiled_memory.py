"""A compiled step leaves nothing behind: its graphs, caches and packed weights are freed with it."""

import copy
import gc
import os
import sys

import pytest
import torch
from image_prompts import seeds
from step_kernels import OUR_ATTENTION, OURS, THE_COMPILERS, choose_kernels
from torch import nn
from torch._inductor import config as inductor_config

from janus_hf.generation.decoders.step_graph import compile_step, keeping_constants_out_of_tables
from janus_hf.modeling.quantisation.weight_only import weight_only_config


peft = pytest.importorskip("peft")  # not within a test, because importing it makes tensors that stay

KERNELS = [OURS, OUR_ATTENTION, THE_COMPILERS]


class Scale(nn.Module):
    """Stand-in for a model, with a weight that takes a second to compile into a graph."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(64, 64, bias=False)


def scale_step(model, x):
    """Stand-in for `decode_step`."""
    return torch.sin(model.linear(x))


def tensors():
    """Return the ids of all tensors that hold data. (PyTorch's records of traced shapes keep some empty ones.)"""
    gc.collect()
    return {id(x) for x in gc.get_objects() if type(x) in (torch.Tensor, torch.nn.Parameter) and x.numel()}


def enable(model, mixed, sizes=(3,)):
    """Compile the step for these numbers of images, and generate three images of the prompts `mixed`."""
    assert model.compile_generation(warm_up=sizes)
    return model.generate_images(*mixed, generator=seeds(1, 2, 3))


@pytest.mark.parametrize("packed", [False, True], ids=["weights are inputs", "weights are constants"])
@torch.no_grad()
def test_a_compiled_step_is_freed_and_the_callers_own_functions_stay(packed, monkeypatch):
    monkeypatch.setattr("janus_hf.generation.decoders.step_graph.decode_step", scale_step)
    own = torch.compile(lambda x: torch.cos(x), fullgraph=True)
    x = torch.ones(2, 64)
    expected = own(x)
    before = tensors()
    for _ in range(3):
        model = Scale().eval()
        step = compile_step(None)
        with inductor_config.patch(freezing=packed), keeping_constants_out_of_tables():
            torch.testing.assert_close(step(model, x), scale_step(model, x), rtol=0, atol=1e-4)
        assert len(tensors() - before) >= (2 if packed else 1)  # the weight, and what it became as a constant
        del model, step
        assert tensors() <= before
    with torch.compiler.set_stance("fail_on_recompile"):
        assert torch.equal(own(x), expected)


@pytest.mark.slow
@pytest.mark.parametrize("kernels", KERNELS)
def test_three_rounds_leave_no_tensor(make_model, mixed, kernels, monkeypatch):
    """Load, compile, generate and delete a model three times; only the second round undoes compiling before."""
    choose_kernels(monkeypatch, kernels)
    before = tensors()
    for number in range(3):
        model = make_model(seed=number)
        loaded = tensors()
        enable(model, mixed)
        assert len(tensors()) > len(loaded)
        if number == 1:
            assert model.compile_generation(False) is False
            assert tensors() <= loaded
        del model
        assert tensors() <= before


def several_sizes(model, mixed):
    enable(model, mixed, sizes=(1, 2))


def several_settings(model, mixed):
    enable(model, mixed)
    for settings in ({"guidance_scale": 1.0}, {"speculative_window": 4}, {"top_k": 3}):
        model.generate_images(*mixed, **settings)


def compiled_twice(model, mixed):
    enable(model, mixed)
    enable(model, mixed)


def changed_weights(model, mixed):
    """Packed weights are packed again, or the graph is compiled anew."""
    enable(model, mixed)
    with torch.no_grad():
        model.model.language_model.layers[0].mlp.down_proj.weight.mul_(-1)
    model.generate_images(*mixed)


def replaced_layer(model, mixed):
    enable(model, mixed)
    mlp = model.model.language_model.layers[0].mlp
    mlp.down_proj = copy.deepcopy(mlp.down_proj)
    model.generate_images(*mixed)


def switched_adapter(model, mixed):
    """Whether adapters are used is decided at every step, which compiles a second graph for the same size."""
    model.add_adapter(peft.LoraConfig(target_modules=["q_proj", "down_proj"], r=4, init_lora_weights=False))
    enable(model.eval(), mixed)
    model.disable_adapters()
    model.generate_images(*mixed)
    model.enable_adapters()


def another_mode(model, mixed):
    model.compile_generation(mode="default")
    model.generate_images(*mixed)


def a_copy(model, mixed):
    """A copy has the same weights and compiles for itself."""
    enable(model, mixed)
    copy.deepcopy(model).generate_images(*mixed)


def half_precision(model, mixed):
    enable(model.bfloat16(), mixed)


def int8_weights(model, mixed):
    quantization = pytest.importorskip("torchao.quantization")
    config = weight_only_config("int8", torch.device("cpu")).get_apply_tensor_subclass()
    quantization.quantize_(model.model.language_model, config)
    enable(model, mixed)


@pytest.mark.slow
@pytest.mark.parametrize("kernels", [OURS, THE_COMPILERS])
@pytest.mark.parametrize(
    "use",
    [
        several_sizes,
        several_settings,
        compiled_twice,
        changed_weights,
        replaced_layer,
        switched_adapter,
        another_mode,
        a_copy,
        half_precision,
        int8_weights,
    ],
)
def test_nothing_stays_of_a_model_however_it_was_used(make_model, mixed, kernels, use, monkeypatch):
    choose_kernels(monkeypatch, kernels)
    before = tensors()
    model = make_model()
    use(model, mixed)
    model.compile_generation(False)
    if use is not int8_weights:  # whose parameters consist of several tensors
        assert tensors() - before <= {id(x) for x in (*model.parameters(), *model.buffers())}
    del model
    assert tensors() <= before


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the memory of the process from /proc")
def test_the_process_does_not_grow(make_model, tiny_config, mixed, monkeypatch):
    """Each round of the two measured would add the model and its packed copy, twice 100 MB or more."""
    choose_kernels(monkeypatch, "all")

    def resident():
        gc.collect()
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    after = []
    for _ in range(3):
        model = make_model(tiny_config(text={"intermediate_size": 200_000}))
        size = sum(weight.nbytes for weight in model.parameters())
        enable(model, mixed)
        del model
        after.append(resident())
    assert size > 100e6
    assert after[2] - after[0] < size


@pytest.mark.slow
def test_what_the_caller_compiled_stays(make_model, mixed, monkeypatch):
    """Neither the caller's own functions nor another compiled model compile again after a model was freed."""
    own = torch.compile(lambda x: torch.sin(x) + 1, fullgraph=True)
    x = torch.arange(3.0)
    expected = own(x)
    other = make_model(seed=1)
    images = enable(other, mixed)
    model = make_model()
    enable(model, mixed)
    model.compile_generation(False)
    del model
    gc.collect()
    with torch.compiler.set_stance("fail_on_recompile"):
        assert torch.equal(own(x), expected)
        assert torch.equal(other.generate_images(*mixed, generator=seeds(1, 2, 3)), images)
