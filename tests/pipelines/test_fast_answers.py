"""`ask` in fast steps: the answers are those of transformers' own loop, whichever decoder runs the steps.

Steps that a GPU runs are run here on a CPU: layers that launch few kernels, and graphs that are replayed blind to
Python.
"""

import threading
from contextlib import contextmanager

import pytest
import torch
from PIL import Image
from tiny_pipes import copy_of, generate_ids
from transformers import LogitsProcessor

from graph_emulator import EmulatedGraph, WrongGraph
from janus_hf import answering
from janus_hf.generation.decoders import CapturedDecoder, CompiledDecoder, plain
from janus_hf.generation.kernels.x86.cpu_kernels import kernels_fit
from janus_hf.generation.text import answer_steps
from janus_hf.processing.image_steps import ImageSteps


QUESTIONS = ["what is this?", "what colour is the large thing on the left?", "a", "is it red or is it blue?"]


@contextmanager
def few_kernels(pays=True):
    with pytest.MonkeyPatch.context() as patch:
        for module in (plain, answer_steps):
            patch.setattr(module, "few_kernels_pay", lambda device: pays)
        yield


def ask(pipe, image, question, count=12, **settings):
    settings = {"suppress_tokens": [pipe.processor.eos_token_id], "max_new_tokens": count, **settings}
    return pipe.ask(image, question, **settings)


def ask_all(pipe, image):
    """Single questions and lists of them, about one image and two, with and without sampling."""
    two = [image, Image.new("RGB", (64, 64), "red")]
    found = [ask(pipe, image, text) for text in QUESTIONS]
    found += ask(pipe, image, QUESTIONS) + ask(pipe, two, QUESTIONS[1:3], 5)
    found += [ask(pipe, two, "same?", 70), ask(pipe, image, "one token?", 1)]
    found += [ask(pipe, image, "twice?", repetition_penalty=1.5, no_repeat_ngram_size=2)]
    torch.manual_seed(0)
    found += ask(pipe, image, QUESTIONS[:2], do_sample=True, temperature=1.5, top_k=20)
    assert len(set(found)) > 8  # equality of constants would prove little
    return found


@pytest.fixture(scope="module")
def expected(pipe, image):
    """The answers of transformers' loop with transformers' cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(answering, "_HARMLESS", set())  # no setting fits, and all calls have some
        patch.setattr(answer_steps.AnswerCache, "next_logits", None)  # not called
        return ask_all(pipe, image)


@pytest.fixture
def captured(own_pipe):
    """A pipeline with captured steps."""
    EmulatedGraph.reset()
    own_pipe.model._decoder = CapturedDecoder(graph_class=EmulatedGraph)
    return own_pipe


@pytest.fixture
def warnings_of(caplog):
    def read():
        return [record.getMessage() for record in caplog.records if "plain steps" in record.getMessage()]

    return read


def test_growing_cache(pipe, image, expected):
    assert ask_all(pipe, image) == expected


@pytest.mark.parametrize("room", [512, 3])
def test_few_kernels(own_pipe, image, expected, monkeypatch, room):
    """With a little room the cache is made anew while the answer grows."""
    monkeypatch.setattr(answer_steps, "_ROOM", room)
    with few_kernels():
        assert ask_all(own_pipe, image) == expected


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("room", [512, 3])
def test_captured_steps(captured, image, expected, warnings_of, monkeypatch, fused, room):
    monkeypatch.setattr(answer_steps, "_ROOM", room)
    with few_kernels(fused):
        assert ask_all(captured, image) == expected
        made = EmulatedGraph.captured
        assert made < 10
        assert EmulatedGraph.replays > 100
        if room == 512:  # with few sizes, all graphs are kept
            assert [ask(captured, image, text) for text in QUESTIONS] == expected[:4]
            assert EmulatedGraph.captured - made <= 1
    assert warnings_of() == []


@pytest.mark.skipif(not kernels_fit(torch.device("cpu")), reason="needs the kernels for x86")
def test_packed_layers(own_pipe, image, expected):
    own_pipe.model._decoder = CompiledDecoder(torch.device("cpu"))
    calls = []
    running = CompiledDecoder.running
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CompiledDecoder, "running", lambda self, model: calls.append(0) or running(self, model))
        assert ask_all(own_pipe, image) == expected
    assert len(calls) > 100
    own_pipe.disable_fast_decoding()
    assert ask(own_pipe, image, QUESTIONS[0]) == expected[0]


def test_a_compiled_step_of_a_gpu_leaves_answers_to_plain_steps(own_pipe, image, expected):
    own_pipe.model._decoder = CompiledDecoder(torch.device("cpu"), mode="default")
    with few_kernels():
        assert ask_all(own_pipe, image) == expected


def test_images_and_answers_share_a_decoder(captured, pipe, image, expected):
    with few_kernels():
        for _ in range(2):
            assert torch.equal(generate_ids(captured), generate_ids(pipe))
            assert ask(captured, image, QUESTIONS[0]) == expected[0]
    assert EmulatedGraph.captured == 2


@torch.no_grad()
def write_in_place(model):
    for layer in model.model.language_model.layers:
        layer.mlp.down_proj.weight.mul_(-1)


@torch.no_grad()
def write_to_head(model):
    model.lm_head.weight.copy_(model.lm_head.weight.flip(0))


def replace_head(model):
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().flip(0).clone())


@torch.no_grad()
def replace_embeddings(model):
    embeddings = model.get_input_embeddings()
    embeddings.weight.data = embeddings.weight.roll(1, 0)


def replace_layer(model):
    layer = model.model.language_model.layers[0]
    layer.self_attn.v_proj = torch.nn.Linear(layer.self_attn.v_proj.in_features, layer.self_attn.v_proj.out_features)
    torch.nn.init.constant_(layer.self_attn.v_proj.weight, 0.01)
    torch.nn.init.zeros_(layer.self_attn.v_proj.bias)


@pytest.mark.parametrize(
    "change",
    [write_in_place, write_to_head, replace_head, replace_embeddings, replace_layer],
    ids=lambda f: f.__name__,
)
@pytest.mark.parametrize("captures", [False, True])
def test_changed_models(own_pipe, image, change, captures):
    other = copy_of(own_pipe)
    if captures:
        own_pipe.model._decoder = CapturedDecoder(graph_class=EmulatedGraph)
    with few_kernels():
        before = ask(own_pipe, image, QUESTIONS[0])
        for pipe in (own_pipe, other):
            change(pipe.model)
        found = [ask(own_pipe, image, text) for text in QUESTIONS[:2]]
    assert found == [ask(other, image, text) for text in QUESTIONS[:2]]
    assert found[0] != before


def hook_on_a_layer(model):
    model.model.language_model.layers[0].register_forward_hook(lambda *args: None)


def hook_on_the_head(model):
    model.lm_head.register_forward_hook(lambda *args: None)


def train(model):
    model.train()


def eager_attention(model):
    model.set_attn_implementation("eager")


@pytest.mark.parametrize(
    "change", [hook_on_a_layer, hook_on_the_head, train, eager_attention], ids=lambda f: f.__name__
)
def test_models_that_keep_transformers_loop(captured, image, expected, warnings_of, change):
    """The reason is said once, and hooks are called for every token."""
    change(captured.model)
    with few_kernels():
        assert [ask(captured, image, text) for text in QUESTIONS] == expected[:4]
    assert EmulatedGraph.captured == 0
    assert len(warnings_of()) == 1


@pytest.mark.parametrize("settings", [{"num_beams": 2}, {"cache_implementation": "static"}, {"use_cache": False}])
def test_settings_that_keep_transformers_cache(captured, pipe, image, settings):
    with few_kernels():
        assert ask(captured, image, QUESTIONS[0], **settings) == ask(pipe, image, QUESTIONS[0], **settings)
    captured.model.generation_config.num_beams = 2
    with few_kernels():
        beams = ask(captured, image, QUESTIONS[0])
    assert beams == ask(pipe, image, QUESTIONS[0], num_beams=2)
    assert EmulatedGraph.captured == 0


def test_a_wrong_replay_is_noticed(own_pipe, image, expected, warnings_of):
    own_pipe.model._decoder = CapturedDecoder(graph_class=WrongGraph)
    with few_kernels():
        assert [ask(own_pipe, image, text) for text in QUESTIONS] == expected[:4]
    assert len(warnings_of()) == 1
    assert "disagreed" in warnings_of()[0]


def test_inference_mode(captured, image, expected):
    """Caches and graphs of a call inside serve calls outside, and the other way round."""
    with few_kernels():
        for inside in (True, False, True):
            with torch.inference_mode(inside):
                assert ask(captured, image, QUESTIONS[0]) == expected[0]


def test_threads_take_turns(captured, image, expected):
    found = {}
    with few_kernels():
        threads = [
            threading.Thread(target=lambda text=text: found.update({text: ask(captured, image, text)}))
            for text in QUESTIONS[:2]
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [found[text] for text in QUESTIONS[:2]] == expected[:2]


class AskAgain(LogitsProcessor):
    """Asks another question with the same pipeline in the middle of an answer."""

    def __init__(self, pipe, image):
        self.pipe, self.image, self.answer, self.calls = pipe, image, None, 0

    def __call__(self, input_ids, scores):
        self.calls += 1
        if self.calls == 4:
            self.answer = ask(self.pipe, self.image, QUESTIONS[1])
        return scores


def test_a_question_inside_an_answer(captured, image, expected, warnings_of):
    inner = AskAgain(captured, image)
    with few_kernels():
        assert ask(captured, image, QUESTIONS[0], logits_processor=[inner]) == expected[0]
    assert inner.answer == expected[1]
    assert len(warnings_of()) == 1


def test_an_image_in_several_questions_is_prepared_once(pipe, image, monkeypatch):
    prepared = []
    prepare = ImageSteps.understanding
    monkeypatch.setattr(ImageSteps, "understanding", lambda self, one: prepared.append(one) or prepare(self, one))
    pipe.ask(image, QUESTIONS, max_new_tokens=1)
    assert len(prepared) == 1
    pipe.ask([image, image.copy()], QUESTIONS, max_new_tokens=1)
    assert len(prepared) == 3


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_answers_on_a_gpu(own_pipe, image, expected):
    own_pipe.to("cuda")
    for captures in (False, True):
        if captures:
            assert own_pipe.enable_fast_decoding(mode="graph", batch_sizes=[])
        assert [ask(own_pipe, image, text) for text in QUESTIONS] == expected[:4]
        assert ask(own_pipe, image, QUESTIONS) == expected[4:8]
