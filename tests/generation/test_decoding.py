"""The compiled step and guessed codes draw the pictures of the plain loop."""

import copy
import logging
import pickle

import pytest
import torch

from janus_hf.generation import decoding, draw_reference
from janus_hf.generation.sampling import draw_keys
from janus_hf.generation.x86.cpu_kernels import kernels_fit


P, K, PAD, BOS, BOI = 16, 40, 91, 92, 94  # of the tiny config
CPU = torch.device("cpu")
SHORT, LONG, OTHER = [BOS, 5, BOI], [BOS, 7, 8, 9, 10, 11, BOI], [BOS, 20, 21, 22, 3, 4, BOI]


def seeds(*values):
    return [torch.Generator().manual_seed(value) for value in values]


@pytest.fixture
def mixed():
    rows = [SHORT, LONG, OTHER]
    ids = torch.tensor([[PAD] * (7 - len(row)) + row for row in rows])
    return ids, torch.tensor([[0] * (7 - len(row)) + [1] * len(row) for row in rows])


# --- guessed codes


@pytest.mark.parametrize("cache_implementation", ["static", "dynamic"])
@pytest.mark.parametrize("window", [2, 3, 8, 40])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"guidance_scale": 1.0},
        {"do_sample": False},
        {"temperature": 0.5, "top_k": 9},
        {"top_p": 0.8, "guidance_scale": 2.0},
    ],
    ids=str,
)
def test_guessing_changes_no_picture(tiny_model, mixed, cache_implementation, window, settings):
    def draw(window):
        return tiny_model.generate_images(
            *mixed,
            speculative_window=window,
            cache_implementation=cache_implementation,
            generator=seeds(1, 2, 3),
            output_logits=True,
            output_scores=True,
            return_dict_in_generate=True,
            **settings,
        )

    plain, guessed = draw(1), draw(window)
    assert torch.equal(guessed.image_ids, plain.image_ids)
    assert guessed.num_model_steps <= plain.num_model_steps == P
    # Measured 5e-6: rows of several positions are summed in another order. A wrong position or mask moves units.
    torch.testing.assert_close(guessed.logits, plain.logits, atol=2e-4, rtol=0)
    torch.testing.assert_close(guessed.scores, plain.scores, atol=4e-4, rtol=0)


def test_guesses_that_come_true_save_steps(make_model, mixed):
    """A model that always draws the same code is guessed right, but for the first codes."""
    model = make_model()
    with torch.no_grad():
        model.model.generation_head.vision_head.bias[7] += 1000
    drawn = model.generate_images(*mixed, speculative_window=8, return_dict_in_generate=True)
    assert (drawn.image_ids == 7).all()
    assert drawn.num_model_steps == 3  # the prompt draws 1, two windows 8 each


def test_guesses_save_steps_of_a_model_that_has_learned(tiny_model, mixed):
    """Even of one that has not: at a low temperature draws hang on little."""
    settings = {"temperature": 0.1, "guidance_scale": 1.0, "return_dict_in_generate": True}
    ids = mixed[0][1:2]
    steps = [
        tiny_model.generate_images(ids, generator=seeds(s), speculative_window=8, **settings).num_model_steps
        for s in range(10)
    ]
    assert sum(steps) < 10 * P


@pytest.mark.parametrize("window", [2, 5])
@pytest.mark.parametrize("given", [1, 7, P - 1])
def test_guessing_continues_pictures(tiny_model, mixed, window, given):
    whole = tiny_model.generate_images(*mixed, generator=seeds(1, 2, 3))
    continued = tiny_model.generate_images(
        *mixed, image_ids=whole[:, :given], generator=seeds(1, 2, 3), speculative_window=window
    )
    assert torch.equal(continued, whole)


def test_callbacks_see_and_replace_guessed_codes(tiny_model, mixed):
    seen = {}
    for window in (1, 5):
        shown = []

        def callback(step, codes, shown=shown):
            shown.append((step, codes.tolist()))
            return (codes[:, -1] + 1) % K if step % 3 == 0 else None

        drawn = tiny_model.generate_images(
            *mixed, generator=seeds(1, 2, 3), speculative_window=window, callback=callback
        )
        seen[window] = (shown, drawn.tolist())
    assert seen[1] == seen[5]
    assert [step for step, _ in seen[5][0]] == list(range(P))


def test_a_window_below_one_is_refused(tiny_model, mixed):
    with pytest.raises(ValueError, match="speculative_window must be at least 1, got 0"):
        tiny_model.generate_images(*mixed, speculative_window=0)


# --- compiled


needs_kernels = pytest.mark.skipif(not kernels_fit(CPU), reason="the kernels are for processors with AVX2 or AVX-512")
OURS = pytest.param("all", marks=needs_kernels, id="our kernels")
OUR_ATTENTION = pytest.param("attention", marks=[needs_kernels, pytest.mark.slow], id="our attention")


def choose_kernels(patch, kernels):
    """ "attention" alone is what processors that multiply bfloat16 get."""
    patch.setattr(decoding, "kernels_fit", lambda device: kernels != "none")
    patch.setattr(decoding, "multiplies_bfloat16", lambda: kernels == "attention")


THE_COMPILERS = pytest.param("none", marks=pytest.mark.slow, id="the compiler's kernels")


@pytest.fixture(scope="module", params=[OURS, OUR_ATTENTION, THE_COMPILERS])
def compiled(make_model, request):
    """Every size costs ten seconds of compiling, so most tests draw three pictures with guidance."""
    model = make_model()
    with pytest.MonkeyPatch.context() as patch:
        choose_kernels(patch, request.param)
        assert model.compile_generation()
        yield model


@pytest.mark.parametrize(
    ("guidance_scale", "window"),
    [(5.0, 1), *(pytest.param(*values, marks=pytest.mark.slow) for values in ((5.0, 4), (1.0, 1), (1.0, 4)))],
)
def test_compiled_pictures_are_the_plain_ones(compiled, tiny_model, mixed, guidance_scale, window):
    """In one graph: `fullgraph=True` refuses host synchronisation and shapes that depend on data."""
    settings = {"guidance_scale": guidance_scale, "speculative_window": window}
    drawn = compiled.generate_images(*mixed, generator=seeds(1, 2, 3), **settings)
    assert torch.equal(
        drawn, tiny_model.generate_images(*mixed, generator=seeds(1, 2, 3), guidance_scale=guidance_scale)
    )


def test_compiled_equals_the_reference(compiled, mixed):
    prompts = torch.cat([mixed[0][1:], mixed[0][1:2]])
    drawn = compiled.generate_images(prompts, generator=seeds(4, 5, 6))
    assert torch.equal(drawn, draw_reference(compiled, prompts, keys=draw_keys(3, seeds(4, 5, 6), CPU)))


def test_settings_and_prompts_reuse_what_is_compiled(compiled, tiny_model, mixed, caplog):
    """Prompts of other lengths too."""
    compiled.generate_images(*mixed, generator=seeds(1, 2, 3))
    short = torch.tensor([[BOS, 3, 4, BOI]] * 3)
    with caplog.at_level(logging.WARNING, logger="janus_hf"), torch.compiler.set_stance("fail_on_recompile"):
        for settings in ({"temperature": 0.7}, {"guidance_scale": 3.5}, {}):
            for prompts in ((mixed[0].flip(0), mixed[1].flip(0)), (short, None)):
                drawn = compiled.generate_images(*prompts, generator=seeds(7, 8, 9), **settings)
                assert torch.equal(drawn, tiny_model.generate_images(*prompts, generator=seeds(7, 8, 9), **settings))
    assert "Compiling" not in caplog.text


def test_inference_mode_and_copies(compiled, tiny_model, mixed):
    with torch.inference_mode():
        inside = compiled.generate_images(*mixed, generator=seeds(1, 2, 3))
    assert torch.equal(inside, compiled.generate_images(*mixed, generator=seeds(1, 2, 3)))
    copied = pickle.loads(pickle.dumps(compiled._decoder))
    assert (copied.device, copied._graphs) == (CPU, {})


def merge_like_peft(weight):
    weight.data += 1


def write_in_place(weight):
    with torch.no_grad():
        weight.mul_(-1)


@pytest.mark.slow
@pytest.mark.parametrize("change", [merge_like_peft, write_in_place])
@pytest.mark.parametrize("kernels", [OURS, THE_COMPILERS])
def test_changed_weights_are_noticed(make_model, mixed, change, kernels, monkeypatch, caplog):
    """On a CPU the compiled step holds packed copies. Ours are packed again, the compiler's are constants."""
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
    language_model, decoder = model.model.language_model, decoding.CompiledDecoder(CPU)
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
    model, decoder = make_model(), decoding.CompiledDecoder(CPU)
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
            patch.setattr("janus_hf.generation.x86.packed_linear._pack", interrupt)
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
            *mixed, callback=lambda step, codes: forced[step], output_logits=True, return_dict_in_generate=True
        )
        return torch.stack(list(output.logits))

    expected = logits(exact)
    errors = [(logits(model) - expected).abs().mean().item() for model in (plain, compiled)]
    assert 0 < errors[1] <= errors[0]


@pytest.mark.slow
def test_adapters_are_switched_off_and_on(make_model, mixed):
    """Their layers are packed like others; what they do with them is not."""
    peft = pytest.importorskip("peft")
    model, plain = make_model(), make_model()
    for one in (model, plain):
        one.add_adapter(peft.LoraConfig(target_modules=["q_proj", "down_proj"], r=4, init_lora_weights=False))
        one.eval()
    plain.load_state_dict(model.state_dict())
    model.compile_generation()
    drawn = []
    for switch in ("enable_adapters", "disable_adapters", "enable_adapters"):
        for one in (model, plain):
            getattr(one, switch)()
        drawn.append(model.generate_images(*mixed, generator=seeds(1, 2, 3)))
        assert torch.equal(drawn[-1], plain.generate_images(*mixed, generator=seeds(1, 2, 3)))
    assert not torch.equal(drawn[0], drawn[1])


@pytest.mark.slow
def test_warming_up_and_going_back(make_model, mixed):
    model = make_model()
    model.compile_generation(warm_up=[3])
    assert [size[:3] for size in model._decoder._graphs] == [(3, 1, 64)]
    with torch.compiler.set_stance("fail_on_recompile"):
        model.generate_images(*mixed)
    assert model.compile_generation(False) is False
    model.generate_images(*mixed, cache_implementation="dynamic")


def test_a_compiled_model_needs_the_static_cache(compiled, mixed):
    with pytest.raises(ValueError, match="needs cache_implementation='static', got 'dynamic'"):
        compiled.generate_images(*mixed, cache_implementation="dynamic")


def test_flash_attention_cannot_be_compiled(make_model, monkeypatch):
    model = make_model()
    monkeypatch.setattr(model.config.text_config, "_attn_implementation_internal", "flash_attention_2")
    with pytest.raises(ValueError, match="Flash-attention knows no static cache"):
        model.compile_generation()


def test_without_a_compiler_drawing_goes_on(make_model, mixed, monkeypatch, caplog):
    monkeypatch.setattr("janus_hf.generation.images.why_not_compilable", lambda device: "no C++ compiler found")
    model = make_model()
    with caplog.at_level(logging.WARNING):
        assert model.compile_generation() is False
    model.generate_images(*mixed)


def test_the_compiler_is_found_missing(monkeypatch):
    assert decoding.why_not_compilable(CPU) is None
    monkeypatch.setattr(torch, "compile", lambda *args, **kwargs: lambda x: 1 / 0)
    assert decoding.why_not_compilable(CPU) == "division by zero"


def test_a_spread_model_is_refused(make_model):
    model = make_model()
    model.model.vqmodel.to("meta")
    with pytest.raises(ValueError, match="Only a model on one device can be compiled"):
        model.compile_generation()
