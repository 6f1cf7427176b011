"""The layers of a compiled step share one graph on a CPU, and layers that differ get graphs of their own."""

import pytest
import torch
from image_prompts import seeds
from step_kernels import choose_kernels, needs_kernels
from torch._inductor import compile_fx as module

from janus_hf.generation.decoders import CompiledDecoder
from janus_hf.generation.decoders.step_by_layers import StepByLayers


pytestmark = needs_kernels


@pytest.fixture
def graphs(monkeypatch):
    """Return a list that gets an entry for every graph that is compiled."""
    compiled = []
    compile_fx = module.compile_fx

    def count(graph, *arguments, **settings):
        compiled.append(graph)
        return compile_fx(graph, *arguments, **settings)

    monkeypatch.setattr(module, "compile_fx", count)
    return compiled


@pytest.mark.slow
@pytest.mark.parametrize("layers", [2, 5])
def test_the_number_of_graphs_does_not_depend_on_the_number_of_layers(
    make_model, tiny_config, mixed, graphs, layers, monkeypatch
):
    choose_kernels(monkeypatch, "all")
    model = make_model(tiny_config(text={"num_hidden_layers": layers}))
    plain = model.generate_images(*mixed, generator=seeds(1, 2, 3))
    model.compile_generation()
    graphs.clear()  # of the check that compiling works
    assert torch.equal(model.generate_images(*mixed, generator=seeds(1, 2, 3)), plain)
    assert len(graphs) == 2  # a layer, and the image head with sampling


@pytest.mark.slow
def test_layers_with_adapters_of_their_own_get_a_graph_each(make_model, mixed, graphs, monkeypatch):
    """PyTorch's limit of graphs per function, 1 in this test, does not stop a model whose layers differ."""
    peft = pytest.importorskip("peft")
    choose_kernels(monkeypatch, "all")
    model = make_model()
    config = peft.LoraConfig(target_modules=["q_proj"], layers_to_transform=[0], r=4, init_lora_weights=False)
    model.add_adapter(config)
    plain = model.eval().generate_images(*mixed, generator=seeds(1, 2, 3))
    model.compile_generation()
    graphs.clear()
    with torch._dynamo.config.patch(recompile_limit=1):
        assert torch.equal(model.generate_images(*mixed, generator=seeds(1, 2, 3)), plain)
    assert len(graphs) == 3


def test_the_layers_are_as_they_were_after_an_error(make_model, mixed, monkeypatch):
    choose_kernels(monkeypatch, "all")
    model = make_model()
    layers, numbers = list(model.model.language_model.layers), []
    model.compile_generation()

    def fail(step, *arguments):
        numbers.append([type(layer).__name__ for layer in model.model.language_model.layers])
        raise RuntimeError("the step fails")

    monkeypatch.setattr("janus_hf.generation.decoders.step_by_layers.run_tokens", fail)
    with pytest.raises(RuntimeError, match="the step fails"):
        model.generate_images(*mixed)
    assert numbers == [["_SharedLayer"] * len(layers)]
    assert all(now is before for now, before in zip(model.model.language_model.layers, layers, strict=True))


@pytest.mark.parametrize(("kernels", "by_layers"), [("all", True), ("attention", False), ("none", False)])
def test_layers_share_a_graph_where_the_compiler_packs_nothing(make_model, kernels, by_layers, monkeypatch):
    choose_kernels(monkeypatch, kernels)
    model, decoder = make_model(), CompiledDecoder(torch.device("cpu"))
    decoder.prepare(model.model)
    assert isinstance(decoder._make_graph(model.model), StepByLayers) is by_layers
    assert decoder.packs_by_compiler is not by_layers
