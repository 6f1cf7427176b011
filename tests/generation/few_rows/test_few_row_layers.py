"""Steps of quantised models with `few_row_linear`, which plain, captured and compiled steps use on CUDA.

torchao, which quantises, is installed by `make test-slow` (the extra `quant`).
"""

import copy
import logging
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from graph_emulator import EmulatedGraph
from janus_hf import JanusProForConditionalGeneration
from janus_hf.generation import drawing
from janus_hf.generation.decoders import CapturedDecoder, CompiledDecoder, plain
from janus_hf.generation.kernels.few_rows import FewRowLayers, FewRowLinear, few_row_layer, few_row_layers
from janus_hf.generation.kernels.x86 import model_kernels


CHECKPOINT = Path(__file__).parents[2] / "goldens" / "checkpoint"
LAYER = "model.language_model.layers.0.mlp.up_proj"
PROMPTS = torch.tensor([[0, 5, 6, 7, 1], [0, 9, 8, 7, 1]])

pytestmark = pytest.mark.slow


def load(bits: str, dtype: torch.dtype = torch.float32) -> JanusProForConditionalGeneration:
    return JanusProForConditionalGeneration.from_pretrained(CHECKPOINT, dtype=dtype, quantization_config=bits)


@pytest.fixture(scope="module", params=["int8", "fp8"])
def bits(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def quantised(bits: str) -> JanusProForConditionalGeneration:
    """A model that no test changes."""
    return load(bits)


class Operators(TorchDispatchMode):
    """Context that counts operators."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.counts[function.name()] += 1
        return function(*args, **(kwargs or {}))


def images(model: JanusProForConditionalGeneration, seed: int = 0) -> torch.Tensor:
    generators = [torch.Generator().manual_seed(seed + n) for n in range(len(PROMPTS))]
    return model.generate_images(PROMPTS, generator=generators, pad_token_id=2, do_sample=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(1,), (2, 1), (8, 2), (256,), (257,)])
@torch.no_grad()
def test_a_layer_computes_what_torchaos_layer_computes(quantised, dtype, shape, few_rows_anywhere):
    linear = quantised.get_submodule(LAYER)
    fast = few_row_layer(linear)
    x = torch.randn(*shape, linear.in_features, generator=torch.Generator().manual_seed(0)).to(dtype)
    with Operators() as operators:
        found = fast(x)
    expected = linear(x)
    assert operators.counts["janus_hf::few_row_linear"] == (shape != (257,))
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    # torchao's layers for fp8 round every weight to the input's dtype, and those for int8 round twice at the end.
    unit = torch.finfo(dtype).eps
    torch.testing.assert_close(found, expected, rtol=0, atol=4 * unit * expected.abs().max().item())


def with_adapter(linear: torch.nn.Linear) -> torch.nn.Module:
    from peft import LoraConfig, inject_adapter_in_model

    return inject_adapter_in_model(LoraConfig(target_modules=["0"], r=2), torch.nn.Sequential(linear))[0]


def hooked(linear: torch.nn.Linear) -> torch.nn.Module:
    linear.register_forward_hook(lambda *_: None)
    return linear


@pytest.mark.parametrize("change", [with_adapter, hooked, lambda linear: torch.nn.Linear(4, 4)])
def test_other_layers_stay(change, bits, few_rows_anywhere):
    linear = load(bits).get_submodule(LAYER)
    assert isinstance(few_row_layer(linear), FewRowLinear)
    assert few_row_layer(change(linear)) is None


def test_int4_keeps_its_own_kernel(few_rows_anywhere):
    assert few_row_layer(load("int4").get_submodule(LAYER)) is None


def test_a_cpu_keeps_torchaos_layers(quantised):
    assert few_row_layer(quantised.get_submodule(LAYER)) is None


@pytest.mark.parametrize("captured", [False, True])
def test_plain_and_captured_images_are_equal(captured, bits, quantised, few_rows_anywhere, monkeypatch):
    """Weights that are written to, or replaced, count from the next image on."""
    expected = images(quantised)
    model = load(bits)
    for module in (plain, drawing):
        monkeypatch.setattr(module, "few_kernels_pay", lambda device: True)
    monkeypatch.setattr("janus_hf.generation.decoders.captured.few_kernels_pay", lambda device: True)
    if captured:
        EmulatedGraph.reset()
        model._decoder = CapturedDecoder(graph_class=EmulatedGraph)
    with Operators() as operators:
        assert torch.equal(images(model), expected)
    steps = model.config.vq_config.num_image_tokens - 1
    assert operators.counts["janus_hf::few_row_linear"] >= 2 * 7 * (1 if captured else steps)
    assert torch.equal(images(model), expected)
    if captured:
        assert EmulatedGraph.captured == 1
        assert EmulatedGraph.replays == 2 * steps - 1

    other = copy.deepcopy(quantised)
    for changed in (model, other):
        changed.get_submodule(LAYER).weight.scale.mul_(-2)
    changed_images = images(other)
    assert not torch.equal(changed_images, expected)
    assert torch.equal(images(model), changed_images)
    model.get_submodule(LAYER).weight = copy.deepcopy(quantised.get_submodule(LAYER).weight)
    assert torch.equal(images(model), expected)


def test_compiled_images_are_equal(bits, quantised, few_rows_anywhere, caplog, monkeypatch):
    """Compiled as on CUDA: without packed weights. The model keeps its own layers outside of the steps."""
    monkeypatch.setattr(logging.getLogger("janus_hf"), "propagate", True)
    expected = images(quantised)
    model = load(bits)
    model._decoder = CompiledDecoder(torch.device("cpu"), mode="default")
    layers = list(model.modules())
    for _ in range(2):
        assert torch.equal(images(model), expected)
    assert all(one is other for one, other in zip(layers, model.modules(), strict=True))
    assert model.get_submodule(LAYER).weight.dtype == torch.float32
    said = [record.message.split()[0] for record in caplog.records if record.name.startswith("janus_hf")]
    assert said == ["Compiling", "Compiled"]

    for replaced in (model, other := copy.deepcopy(quantised)):
        weight = copy.deepcopy(quantised.get_submodule(LAYER).weight)
        weight.scale.mul_(-2)
        replaced.get_submodule(LAYER).weight = weight
    assert torch.equal(images(model), images(other))
    assert "compiling it anew" in caplog.text


def test_replaced_values_are_noticed(quantised, few_rows_anywhere, monkeypatch):
    monkeypatch.setattr(model_kernels, "kernels_fit", lambda device: False)
    model = copy.deepcopy(quantised)
    layers = FewRowLayers(model.model)
    assert layers.complete
    assert layers.is_current()
    weight = model.get_submodule(LAYER).weight
    weight.scale.mul_(2)
    assert layers.is_current()  # the same memory, which a step reads
    model.get_submodule(LAYER).weight = copy.deepcopy(weight)
    assert not layers.is_current()
    assert few_row_layers.values_and_scale(weight) is not None
