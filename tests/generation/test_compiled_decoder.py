"""The compiled step generates the images of the plain loop."""

import copy
import logging
import pickle

import pytest
import torch
from hostile_decoder import HostileDecoder
from image_prompts import BOI, BOS, K, P, seeds
from step_kernels import CPU, OUR_ATTENTION, OURS, THE_COMPILERS, choose_kernels, needs_kernels

from janus_hf.generation import draw_reference
from janus_hf.generation.decoders import CompiledDecoder, why_not_compilable
from janus_hf.generation.sampling import draw_keys


@pytest.fixture(scope="module", params=[OURS, OUR_ATTENTION, THE_COMPILERS])
def compiled(make_model, request):
    """A compiled model. Every size takes ten seconds to compile, so most tests generate three images with guidance."""
    model = make_model()
    with pytest.MonkeyPatch.context() as patch:
        choose_kernels(patch, request.param)
        assert model.compile_generation()
        yield model


@pytest.mark.parametrize(
    ("guidance_scale", "window"),
    [(5.0, 1), *(pytest.param(*values, marks=pytest.mark.slow) for values in ((5.0, 4), (1.0, 1), (1.0, 4)))],
)
def test_compiled_images_are_the_plain_ones(compiled, tiny_model, mixed, guidance_scale, window):
    """The step is one graph: `fullgraph=True` refuses host synchronisation and shapes that depend on data."""
    settings = {"guidance_scale": guidance_scale, "speculative_window": window}
    generated = compiled.generate_images(*mixed, generator=seeds(1, 2, 3), **settings)
    assert torch.equal(
        generated, tiny_model.generate_images(*mixed, generator=seeds(1, 2, 3), guidance_scale=guidance_scale)
    )


def test_compiled_equals_the_reference(compiled, mixed):
    prompts = torch.cat([mixed[0][1:], mixed[0][1:2]])
    generated = compiled.generate_images(prompts, generator=seeds(4, 5, 6))
    assert torch.equal(generated, draw_reference(compiled, prompts, keys=draw_keys(3, seeds(4, 5, 6), CPU)))


def test_other_settings_and_prompts_reuse_the_graph(compiled, tiny_model, mixed, caplog):
    """No step compiles again, also for prompts of another length."""
    compiled.generate_images(*mixed, generator=seeds(1, 2, 3))
    short = torch.tensor([[BOS, 3, 4, BOI]] * 3)
    with caplog.at_level(logging.WARNING, logger="janus_hf"), torch.compiler.set_stance("fail_on_recompile"):
        for settings in ({"temperature": 0.7}, {"guidance_scale": 3.5}, {}):
            for prompts in ((mixed[0].flip(0), mixed[1].flip(0)), (short, None)):
                generated = compiled.generate_images(*prompts, generator=seeds(7, 8, 9), **settings)
                assert torch.equal(
                    generated, tiny_model.generate_images(*prompts, generator=seeds(7, 8, 9), **settings)
                )
    assert "Compiling" not in caplog.text


def test_calls_repeat_whatever_is_overwritten(compiled, mixed, monkeypatch):
    """Graphs own the memory of outputs and caches; they must not read what an earlier step or batch left there."""
    settings = {"output_logits": True, "return_dict_in_generate": True}
    expected = compiled.generate_images(*mixed, generator=seeds(1, 2, 3), **settings)
    monkeypatch.setattr(compiled, "_decoder", HostileDecoder(compiled._decoder))
    for _ in range(3):
        compiled.generate_images(*mixed, generator=seeds(7, 8, 9))
        generated = compiled.generate_images(*mixed, generator=seeds(1, 2, 3), **settings)
        assert torch.equal(generated.image_ids, expected.image_ids)
        assert torch.equal(generated.logits, expected.logits)


def test_inference_mode_changes_nothing(compiled, mixed):
    with torch.inference_mode():
        inside = compiled.generate_images(*mixed, generator=seeds(1, 2, 3))
    assert torch.equal(inside, compiled.generate_images(*mixed, generator=seeds(1, 2, 3)))


def test_a_copy_compiles_for_itself(compiled, mixed, caplog):
    """Graphs belong to one model's weights and cannot be pickled."""
    expected = compiled.generate_images(*mixed, generator=seeds(1, 2, 3))
    copied = pickle.loads(pickle.dumps(compiled))
    with caplog.at_level(logging.WARNING, logger="janus_hf"):
        assert torch.equal(copied.generate_images(*mixed, generator=seeds(1, 2, 3)), expected)
    assert caplog.text.count("Compiling the generation step") == 1


def merge_like_peft(weight):
    weight.data += 1


def write_in_place(weight):
    with torch.no_grad():
        weight.mul_(-1)


@pytest.mark.slow
@pytest.mark.parametrize("change", [merge_like_peft, write_in_place])
@pytest.mark.parametrize("kernels", [OURS, THE_COMPILERS])
def test_changed_weights_are_noticed(make_model, mixed, change, kernels, monkeypatch, caplog):
    """On a CPU the step uses packed copies. `x86/` packs again; the compiler's copies are constants of its graph."""
    choose_kernels(monkeypatch, kernels)
    model, plain = make_model(), make_model()
    model.compile_generation()
    before = model.generate_images(*mixed, generator=seeds(1, 2, 3))
    for one in (model, plain):
        change(one.model.language_model.layers[0].mlp.down_proj.weight)
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="janus_hf"):
        after = model.generate_images(*mixed, generator=seeds(1, 2, 3))
    assert ("compiling it anew" in caplog.text) is (kernels == "none")
    assert torch.equal(after, plain.generate_images(*mixed, generator=seeds(1, 2, 3)))
    assert not torch.equal(after, before)


@needs_kernels
def test_the_model_is_as_it_was_after_a_step(make_model, monkeypatch):
    choose_kernels(monkeypatch, "all")
    model = make_model()
    language_model, decoder = model.model.language_model, CompiledDecoder(CPU)
    names = [type(module).__name__ for module in model.modules()]
    decoder.prepare(model.model)
    with decoder.running(model.model):
        assert "PackedLinear" in [type(module).__name__ for module in model.modules()]
        assert language_model.config._attn_implementation == "janus_few_queries"
    with pytest.raises(ValueError, match="exactly one of"), decoder.running(model.model):
        language_model()
    assert [type(module).__name__ for module in model.modules()] == names
    assert language_model.config._attn_implementation == "sdpa"


@needs_kernels
def test_interrupted_packing_is_done_again(make_model, monkeypatch):
    choose_kernels(monkeypatch, "all")
    model, decoder = make_model(), CompiledDecoder(CPU)
    layer = model.model.language_model.layers[0].mlp.down_proj

    def interrupt(*_):
        raise KeyboardInterrupt

    def check():
        decoder.prepare(model.model)
        with decoder.running(model.model):
            packed = model.model.language_model.layers[0].mlp.down_proj
            x = torch.ones(1, layer.in_features)
            torch.testing.assert_close(packed(x), layer(x), rtol=0, atol=1e-5)

    for _ in range(2):  # first packing, then packing again
        with monkeypatch.context() as patch:
            patch.setattr("janus_hf.generation.kernels.x86.packed_linear.pack_weight", interrupt)
            with pytest.raises(KeyboardInterrupt):
                decoder.prepare(model.model)
        check()
        write_in_place(layer.weight)


@pytest.mark.slow
@needs_kernels
@torch.no_grad()
def test_half_precision_is_no_further_from_float32_than_plain_steps(make_model, mixed, monkeypatch):
    choose_kernels(monkeypatch, "all")
    exact = make_model()
    plain, compiled = copy.deepcopy(exact).bfloat16(), copy.deepcopy(exact).bfloat16()
    exact.load_state_dict(plain.state_dict())
    compiled.compile_generation()
    forced = torch.randint(K, (P, 3), generator=torch.Generator().manual_seed(0))

    def logits(model):
        output = model.generate_images(
            *mixed, callback=lambda step, tokens: forced[step], output_logits=True, return_dict_in_generate=True
        )
        return torch.stack(list(output.logits))

    expected = logits(exact)
    errors = [(logits(model) - expected).abs().mean().item() for model in (plain, compiled)]
    assert 0 < errors[1] <= errors[0]


@pytest.mark.slow
def test_adapters_are_switched_off_and_on(make_model, mixed):
    """The linear layers of adapters are packed like others; whether they are used is decided at every step."""
    peft = pytest.importorskip("peft")
    model, plain = make_model(), make_model()
    for one in (model, plain):
        one.add_adapter(peft.LoraConfig(target_modules=["q_proj", "down_proj"], r=4, init_lora_weights=False))
        one.eval()
    plain.load_state_dict(model.state_dict())
    model.compile_generation()
    generated = []
    for switch in ("enable_adapters", "disable_adapters", "enable_adapters"):
        for one in (model, plain):
            getattr(one, switch)()
        generated.append(model.generate_images(*mixed, generator=seeds(1, 2, 3)))
        assert torch.equal(generated[-1], plain.generate_images(*mixed, generator=seeds(1, 2, 3)))
    assert not torch.equal(generated[0], generated[1])


@pytest.mark.slow
def test_warming_up_and_going_back(make_model, mixed, caplog):
    model = make_model()
    with caplog.at_level(logging.WARNING, logger="janus_hf"):
        model.compile_generation(warm_up=[3])
        assert caplog.text.count("Compiling the generation step for 3 image(s)") == 1
        with torch.compiler.set_stance("fail_on_recompile"):
            model.generate_images(*mixed)
    assert caplog.text.count("Compiling") == 1
    assert model.compile_generation(False) is False
    model.generate_images(*mixed, cache_implementation="dynamic")


def test_a_compiled_model_needs_the_static_cache(compiled, mixed):
    with pytest.raises(ValueError, match="must be 'static' for a compiled model, got 'dynamic'"):
        compiled.generate_images(*mixed, cache_implementation="dynamic")


def test_flash_attention_cannot_be_compiled(make_model, monkeypatch):
    model = make_model()
    monkeypatch.setattr(model.config.text_config, "_attn_implementation_internal", "flash_attention_2")
    with pytest.raises(ValueError, match="`attn_implementation` must work with a static cache.*got flash-attention"):
        model.compile_generation()


def test_without_a_compiler_generation_works_as_before(make_model, mixed, monkeypatch, caplog):
    monkeypatch.setattr("janus_hf.generation.images.why_not_compilable", lambda device: "no C++ compiler found")
    model = make_model()
    with caplog.at_level(logging.WARNING):
        assert model.compile_generation() is False
    model.generate_images(*mixed)


def test_a_missing_compiler_is_noticed(monkeypatch):
    assert why_not_compilable(CPU) is None
    monkeypatch.setattr(torch, "compile", lambda *args, **kwargs: lambda x: 1 / 0)
    assert why_not_compilable(CPU) == "division by zero"


def test_a_spread_model_is_refused(make_model):
    model = make_model()
    model.model.vqmodel.to("meta")
    with pytest.raises(ValueError, match="must be on one device to be compiled"):
        model.compile_generation()
