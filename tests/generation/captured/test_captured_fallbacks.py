"""Where steps cannot be captured they are plain, the images are the same, and a warning says why once."""

import functools
import logging

import accelerate
import pytest
import torch
from image_prompts import LONG, OTHER, seeds
from torch import nn

from graph_emulator import (
    DriftingGraph,
    EmulatedGraph,
    HungryGraph,
    IdleGraph,
    UncapturableGraph,
    WrongGraph,
)
from janus_hf.generation.decoders import CapturedDecoder
from janus_hf.generation.decoders.captured_step import CapturedStep


PAIR = torch.tensor([LONG, OTHER])


def generate(model, seed=0, ids=PAIR, **settings):
    return model.generate_images(ids, generator=seeds(*range(seed, seed + len(ids))), **settings)


@pytest.fixture
def warnings_of(caplog):
    """Function that returns the warnings of captured decoders so far."""
    caplog.set_level(logging.WARNING, logger="janus_hf")
    return lambda: [text for record in caplog.records if "plain steps instead of" in (text := record.getMessage())]


# --- the model as it is


def train(model):
    model.train()


def train_one_layer(model):
    model.model.language_model.layers[1].mlp.train()


def offload_by_hooks(model):
    accelerate.cpu_offload(model.model.language_model, torch.device("cpu"))


def offload_between_calls(model):
    """As `enable_model_cpu_offload` of a pipeline does."""
    accelerate.cpu_offload_with_hook(model, execution_device="cpu")


def offload_groups(model):
    model.model.language_model.layers[0]._diffusers_hook = object()


def spread(model):
    model.hf_device_map = {"model": 0, "lm_head": 1}


def keep_on_disk(model):
    model.hf_device_map = {"model": "cpu", "lm_head": "disk"}


def hook(model):
    model.model.language_model.layers[0].mlp.register_forward_hook(lambda module, args, output: output * 2)


def hook_before(model):
    model.model.generation_head.register_forward_pre_hook(lambda module, args: None)


def use_eager_attention(model):
    model.set_attn_implementation("eager")


def mark_as_zero3(model):
    next(model.model.language_model.parameters()).ds_id = 0
    model.model.language_model.layers[0].mlp.up_proj.weight.ds_id = 1


def mark_as_fsdp(model):
    class Wrapped(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self._fsdp_wrapped_module = inner

        def forward(self, *args, **kwargs):
            return self._fsdp_wrapped_module(*args, **kwargs)

    model.model.language_model.layers[0] = Wrapped(model.model.language_model.layers[0]).eval()


REASONS = {
    train: "the model is in training mode",
    train_one_layer: "the model is in training mode",
    offload_by_hooks: "the model is offloaded",
    offload_between_calls: "the model is offloaded",
    offload_groups: "the model is offloaded",
    spread: r"spread over several devices (cpu, cuda:0, cuda:1)",
    keep_on_disk: r"spread over several devices (cpu, disk)",
    hook: "layers have forward hooks",
    hook_before: "layers have forward hooks",
    use_eager_attention: "'eager'",
    mark_as_zero3: "the weights are sharded",
    mark_as_fsdp: "the weights are sharded",
}


@pytest.mark.parametrize("change", REASONS, ids=lambda change: change.__name__)
def test_models_that_are_not_captured(make_captured, make_model, warnings_of, change):
    captured, plain = make_captured(), make_model()
    generate(captured)
    assert (EmulatedGraph.captured, warnings_of()) == (1, [])
    for model in (captured, plain):
        change(model)
    for seed in (0, 10):
        assert torch.equal(generate(captured, seed), generate(plain, seed))
    assert (EmulatedGraph.captured, EmulatedGraph.alive()) == (1, 0)
    assert len(warnings_of()) == 1
    assert REASONS[change] in warnings_of()[0]


def test_whole_models_on_one_device_with_a_map_are_captured(make_captured, warnings_of):
    captured = make_captured()
    captured.hf_device_map = {"": 0}
    generate(captured)
    assert (EmulatedGraph.captured, warnings_of()) == (1, [])


def test_steps_are_captured_again_when_the_obstacle_is_gone(make_captured, tiny_model, warnings_of):
    captured = make_captured()
    for seed in (0, 10, 20):
        captured.train()
        assert torch.equal(generate(captured, seed), generate(tiny_model, seed))
        captured.eval()
        assert torch.equal(generate(captured, seed), generate(tiny_model, seed))
    assert EmulatedGraph.captured == 3
    assert len(warnings_of()) == 1


def test_gradients_are_recorded_by_plain_steps(make_captured, warnings_of):
    """`generate_images` records none; code that drives a decoder itself may."""
    captured = make_captured()
    decoder, text = captured._decoder, captured.config.text_config
    decoder.prepare(captured.model)
    assert decoder.make_cache("static", text, 2, 20).get_max_length() == 20
    assert ["gradients are recorded" in message for message in warnings_of()] == [True]
    with torch.no_grad():
        decoder.prepare(captured.model)
    assert decoder.make_cache("static", text, 2, 20).get_max_length() == 64
    captured.requires_grad_(False)
    decoder.prepare(captured.model)
    assert decoder.make_cache("static", text, 2, 20).get_max_length() == 64


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast(make_captured, make_model, warnings_of, dtype):
    captured, plain = make_captured().to(dtype), make_model().to(dtype)
    generate(captured)
    for seed in (0, 10):
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(generate(captured, seed), generate(plain, seed))
    assert (EmulatedGraph.captured, EmulatedGraph.alive()) == (1, 0)
    assert ["autocast is enabled" in message for message in warnings_of()] == [True]


@pytest.mark.parametrize("device", ["cpu", "mps", "xpu"])
def test_only_cuda_has_graphs(device):
    reason = CapturedDecoder()._graph_class.why_impossible(torch.device(device))
    assert reason == f"the model is on {device!r}, and only CUDA devices have graphs"


def test_without_cuda_the_public_switch_says_so(make_model, tiny_model, warnings_of):
    model = make_model()
    assert model.compile_generation(mode="graph", warm_up=[2]) is False
    for seed in (0, 10):
        assert torch.equal(generate(model, seed), generate(tiny_model, seed))
    assert len(warnings_of()) == 1
    assert "the model is on 'cpu', and only CUDA devices have graphs" in warnings_of()[0]
    model.compile_generation(False)
    assert torch.equal(generate(model, cache_implementation="dynamic"), generate(tiny_model))


def test_a_dynamic_cache_is_still_possible(make_captured, tiny_model, warnings_of):
    captured = make_captured()
    for seed in (0, 10):
        assert torch.equal(generate(captured, seed, cache_implementation="dynamic"), generate(tiny_model, seed))
    assert EmulatedGraph.captured == 0
    assert ["'dynamic'" in message for message in warnings_of()] == [True]
    with pytest.raises(ValueError, match="`cache_implementation` must be 'static' or 'dynamic', got 'sliding'"):
        generate(captured, cache_implementation="sliding")


# --- found by trying


class Reads(nn.Module):
    """A layer that reads a value on the host."""

    def forward(self, x):
        return x * 2 if torch.ones_like(x).sum().item() > 0 else x


@pytest.mark.parametrize("window", [1, 3])
def test_layers_that_do_not_capture(make_captured, make_model, warnings_of, window):
    captured, plain = make_captured(), make_model()
    kept = [model.model.language_model.layers[0].mlp.act_fn for model in (captured, plain)]
    for model in (captured, plain):
        model.model.language_model.layers[0].mlp.act_fn = Reads().eval()
    for seed in (0, 10):
        assert torch.equal(generate(captured, seed, speculative_window=window), generate(plain, seed))
    assert (EmulatedGraph.captured, EmulatedGraph.alive()) == (0, 0)
    assert len(warnings_of()) == 1
    assert "the step cannot be captured (RuntimeError: operation not permitted" in warnings_of()[0]
    # The model is tried again when it has changed.
    for model, layer in zip((captured, plain), kept, strict=True):
        model.model.language_model.layers[0].mlp.act_fn = layer
    for seed in (0, 10):
        assert torch.equal(generate(captured, seed), generate(plain, seed))
    assert EmulatedGraph.captured == 1


def test_rope_that_depends_on_the_longest_sequence(make_captured, make_model, tiny_config, warnings_of):
    """transformers reads the largest position on the host for this kind."""
    config = tiny_config(text={"rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}})
    captured, plain = make_captured(config=config), make_model(config)
    for seed in (0, 10):
        assert torch.equal(generate(captured, seed), generate(plain, seed))
    assert len(warnings_of()) == 1


@pytest.mark.parametrize("graph", [UncapturableGraph, HungryGraph])
def test_captures_that_fail(make_captured, tiny_model, warnings_of, graph):
    captured = make_captured(graph)
    for seed in (0, 10, 20):
        assert torch.equal(generate(captured, seed), generate(tiny_model, seed))
        assert EmulatedGraph.alive() == 0
    assert EmulatedGraph.captured == 1
    assert len(warnings_of()) == 1
    reason = "memory of the device" if graph is HungryGraph else "operation not permitted when stream is capturing)"
    assert reason in warnings_of()[0]


def test_a_large_batch_does_not_fit_and_a_small_one_does(make_captured, tiny_model, warnings_of, monkeypatch):
    """The graphs that are there are freed, and batches of another size are tried again."""
    captured = make_captured()
    generate(captured, ids=PAIR[:1])
    capture = EmulatedGraph.capture

    def capture_small(graph, function):
        output = capture(graph, function)
        if len(output.tokens) > 1:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return output

    monkeypatch.setattr(EmulatedGraph, "capture", capture_small)
    for seed in (0, 10):
        assert torch.equal(generate(captured, seed), generate(tiny_model, seed))
        assert EmulatedGraph.alive() == (seed > 0)
        assert torch.equal(generate(captured, seed, PAIR[:1]), generate(tiny_model, seed, PAIR[:1]))
        assert EmulatedGraph.alive() == 1
    assert len(warnings_of()) == 1


def test_an_error_of_the_step_itself_is_raised(make_captured):
    def fail(*arguments):
        raise ArithmeticError("broken head")

    captured = make_captured(run_step=fail)
    with pytest.raises(ArithmeticError, match="broken head"):
        generate(captured)


# --- the comparison with a plain step


@pytest.mark.parametrize("window", [1, 3])
@pytest.mark.parametrize("graph", [IdleGraph, WrongGraph, DriftingGraph])
def test_a_wrong_replay_is_noticed(make_captured, tiny_model, warnings_of, graph, window):
    """The image is right from its first token on, because the plain step's results are restored."""
    captured = make_captured(graph)
    for seed in (0, 10):
        assert torch.equal(generate(captured, seed, speculative_window=window), generate(tiny_model, seed))
    assert (EmulatedGraph.captured, EmulatedGraph.replays, EmulatedGraph.alive()) == (1, 1, 0)
    assert len(warnings_of()) == 1
    assert "a captured step has disagreed with the plain step" in warnings_of()[0]
    # It stays so, also if the model changes, until the switch is used again.
    captured.double()
    generate(captured)
    assert EmulatedGraph.captured == 1


@pytest.mark.parametrize("name", ["tokens", "positions"])
def test_an_input_that_is_not_read_is_noticed(make_captured, tiny_model, warnings_of, monkeypatch, name):
    """The first replay has another input than the capture, so a graph that kept an input samples other tokens."""
    replay = CapturedStep.replay

    def replay_without(captured, step):
        target = getattr(captured._inputs, name)
        captured.graph.forget = functools.partial(target.copy_, target.clone())
        return replay(captured, step)

    class Stale(EmulatedGraph):
        def replay(self):
            self.forget()
            super().replay()

    monkeypatch.setattr(CapturedStep, "replay", replay_without)
    captured = make_captured(Stale)
    assert torch.equal(generate(captured), generate(tiny_model))
    assert len(warnings_of()) == 1


def test_rounding_is_no_disagreement(make_captured, warnings_of):
    class Rounding(DriftingGraph):
        factor = 1 + 2e-7

    captured = make_captured(Rounding)
    generate(captured)
    assert (EmulatedGraph.captured, EmulatedGraph.replays) == (1, 14)
    assert warnings_of() == []


def test_logits_that_are_not_finite_are_reported_as_such(make_captured, warnings_of):
    captured, fresh = make_captured(), make_captured()
    generate(captured)
    for model in (captured, captured, fresh):
        with torch.no_grad():
            for parameter in model.model.generation_head.parameters():
                parameter.fill_(float("nan"))
        with pytest.raises(FloatingPointError, match="not finite"):
            generate(model)
    assert warnings_of() == []
