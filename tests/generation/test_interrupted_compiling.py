"""Ctrl-C while the step is compiled reaches the caller, and leaves nothing half-compiled behind."""

import gc
import os
import signal
import subprocess
import sys

import pytest
import torch
from image_prompts import BOI, BOS, seeds
from step_kernels import OURS, THE_COMPILERS, choose_kernels, needs_kernels
from torch._inductor import config as inductor_config

from janus_hf.generation.kernels.x86 import cpu_kernels
from tiny import TINY_MODEL


PROMPT = torch.tensor([[BOS, 5, BOI]])

# Functions that are called while a step is compiled, in the order of their calls.
BEFORE_TRACING = {
    "whether compiling works": "janus_hf.generation.images.why_not_compilable",
    "building the kernels": "torch._inductor.codecache.CppCodeCache.load",
    "packing weights": "janus_hf.generation.kernels.x86.packed_linear.pack_weight",
    "the prompt": "janus_hf.generation.drawing.Drawing.start",
    "the step": "janus_hf.generation.decoders.compiled.StepByLayers",
}
FROM_TRACING_ON = {
    "tracing": "torch._dynamo.symbolic_convert.InstructionTranslator.run",
    "lowering": "torch._inductor.compile_fx.compile_fx",
    "loading code": "torch._inductor.codecache.PyCodeCache.load_by_key_path",
    "guards": "torch._dynamo.guards.CheckFunctionManager.__init__",
    "warming up": "janus_hf.generation.drawing.Drawing.accept",
}


def tensors():
    """Return the ids of all tensors that hold data."""
    gc.collect()
    return {id(x) for x in gc.get_objects() if type(x) in (torch.Tensor, torch.nn.Parameter) and x.numel()}


def interrupt(*_, **__):
    raise KeyboardInterrupt


def state(model):
    """Return what compiling changes for a time: the model's layers and attention, inductor's options, and stderr."""
    options = (inductor_config.freezing, inductor_config.max_autotune, inductor_config.autotune_num_choices_displayed)
    layers = [type(module) for module in model.modules()]
    return layers, model.config.text_config._attn_implementation, options, sys.stderr, os.fstat(2).st_ino


def interrupted(model, function):
    """Compile `model` with an interrupt in `function`, and check that it is as before and generates the same image."""
    image, before, held = draw(model), state(model), tensors()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(function, interrupt)
        with pytest.raises(KeyboardInterrupt):
            model.compile_generation(warm_up=[1])
    assert state(model) == before
    assert tensors() <= held
    assert torch.equal(draw(model, cache_implementation="dynamic"), image)  # a compiled model refuses this cache


def draw(model, **settings):
    return model.generate_images(PROMPT, generator=seeds(1), **settings)


@pytest.fixture
def kernels_not_built():
    """Make the process forget that the kernels of `x86/` were built."""
    for function in (cpu_kernels.load_kernels, cpu_kernels.kernels_can_be_built):
        function.cache_clear()


@needs_kernels
@pytest.mark.usefixtures("kernels_not_built")
@pytest.mark.parametrize("function", BEFORE_TRACING.values(), ids=BEFORE_TRACING)
def test_an_interrupt_before_tracing_leaves_the_model_as_it_was(make_model, function, monkeypatch):
    choose_kernels(monkeypatch, "all")
    interrupted(make_model(), function)


@pytest.mark.slow
@pytest.mark.parametrize("kernels", [OURS, THE_COMPILERS])
@pytest.mark.parametrize("function", FROM_TRACING_ON.values(), ids=FROM_TRACING_ON)
def test_an_interrupted_model_is_freed_or_compiled_again(make_model, function, kernels, monkeypatch):
    choose_kernels(monkeypatch, kernels)
    before = tensors()
    model = make_model()
    image = draw(model)
    interrupted(model, function)
    assert model.compile_generation(warm_up=[1])
    assert torch.equal(draw(model), image)
    interrupted(model, "janus_hf.generation.drawing.Drawing.step")
    del model, image
    assert tensors() <= before


@pytest.mark.slow
def test_a_generation_that_compiles_can_be_interrupted_and_repeated(make_model):
    model = make_model()
    image = draw(model)
    assert model.compile_generation()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch._inductor.compile_fx.compile_fx", interrupt)
        with pytest.raises(KeyboardInterrupt):
            draw(model)
    assert torch.equal(draw(model), image)


CTRL_C = """
import sys
from janus_hf import JanusProPipeline

pipe = JanusProPipeline.from_pretrained(sys.argv[1])
try:
    pipe.enable_fast_decoding()
except KeyboardInterrupt:
    print("interrupted", flush=True)
print("stderr works", file=sys.stderr)
print(tuple(pipe("a red circle", cache_implementation="dynamic", output_type="latent").images.shape))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="there are no process groups to signal")
def test_ctrl_c_reaches_the_caller_although_compilers_get_it_too(tmp_path):
    """A terminal and a Jupyter kernel signal the whole process group: also the compilers that inductor starts."""
    process = subprocess.Popen(
        [sys.executable, "-c", CTRL_C, TINY_MODEL],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)},  # so that compiling takes a while
    )
    with process:
        messages = iter(process.stderr)
        for message in messages:
            if "Compiling the generation step" in message:
                os.killpg(process.pid, signal.SIGINT)
                break
        assert process.stdout.read().split("\n")[:2] == ["interrupted", "(1, 64)"]
        assert "stderr works" in "".join(messages)
    assert process.returncode == 0
