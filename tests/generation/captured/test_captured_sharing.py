"""How many graphs a captured decoder keeps, and how threads, callbacks, copies and global settings share them."""

import copy
import gc
import itertools
import pickle
import threading

import pytest
import torch
from image_prompts import LONG, OTHER, seeds

from graph_emulator import EmulatedGraph
from janus_hf.generation.decoders import CapturedDecoder, PlainDecoder


PAIR = torch.tensor([LONG, OTHER])


def generate(model, seed=0, ids=PAIR, **settings):
    return model.generate_images(ids, generator=seeds(*range(seed, seed + len(ids))), **settings)


# --- bounds


@pytest.mark.parametrize("max_graphs", [1, 2, 4])
def test_the_graph_that_was_not_used_for_the_longest_time_goes(make_captured, tiny_model, max_graphs):
    captured, kept = make_captured(max_graphs=max_graphs), []
    for top_k in (2, 3, 4, 5, 2, 6, 2, 3, 3, 6, 4):
        captures = EmulatedGraph.captured
        assert torch.equal(generate(captured, top_k=top_k), generate(tiny_model, top_k=top_k))
        assert EmulatedGraph.captured == captures + (top_k not in kept)
        kept = [*(one for one in kept if one != top_k), top_k][-max_graphs:]
        assert EmulatedGraph.alive() == len(kept)


def test_four_graphs_are_kept_by_default():
    assert CapturedDecoder().max_graphs == 4


def caches():
    gc.collect()
    return [one for one in gc.get_objects() if type(one).__name__ == "StaticCache" and one.layers[0].is_initialized]


def test_caches_go_with_their_graphs(make_captured):
    gc.collect()
    before = len(caches())
    captured = make_captured(max_graphs=2)
    for number in (1, 2, 1):
        generate(captured, ids=PAIR[:number])
        generate(captured, ids=PAIR[:number], top_k=3)
        assert len(caches()) == before + 1, "both graphs use one cache, and the cache of the other size is freed"
    captured.compile_generation(False)
    assert (len(caches()), EmulatedGraph.alive()) == (before, 0)
    assert isinstance(captured._decoder, PlainDecoder)


def test_a_plain_model_keeps_nothing(make_captured):
    """Graphs and caches are freed where steps are plain, so that a model that was moved away leaves nothing."""
    before = len(caches())
    captured = make_captured()
    generate(captured)
    captured.train()
    generate(captured)
    assert (len(caches()), EmulatedGraph.alive()) == (before, 0)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"mode": "graph", "max_graphs": 0}, ValueError, "`max_graphs` must be"),
        ({"mode": "graph", "max_graphs": 2.0}, TypeError, "`max_graphs` must be"),
        (
            {"mode": "graph", "max_graphs": 2, "warm_up": [1, 2, 3]},
            ValueError,
            "`max_graphs` must be at least .* 3, got 2",
        ),
        ({"mode": "graph", "warm_up": [1, 2, 3, 4, 5, 5]}, ValueError, "at least .* 5, got 4"),
        ({"max_graphs": 4}, ValueError, "`max_graphs` must be None unless mode='graph', got 4 with mode=None"),
        ({"mode": "default", "max_graphs": 4}, ValueError, "got 4 with mode='default'"),
        ({"mode": "graphs"}, ValueError, "`mode` must be .*'graph'"),
    ],
)
def test_numbers_of_graphs_that_are_refused(tiny_model, arguments, error, message):
    with pytest.raises(error, match=message):
        tiny_model.compile_generation(**arguments)
    assert isinstance(tiny_model._decoder, PlainDecoder)


def test_the_public_switch(make_model, tiny_model, monkeypatch):
    """Warming up captures and checks the graph, so later images are replays only."""
    monkeypatch.setattr("janus_hf.generation.decoders.captured.CudaGraph", EmulatedGraph)
    monkeypatch.setitem(CapturedDecoder.__init__.__kwdefaults__, "graph_class", EmulatedGraph)
    EmulatedGraph.reset()
    model = make_model()
    assert model.compile_generation(mode="graph", warm_up=[2, 1], max_graphs=7) is True
    assert (EmulatedGraph.captured, EmulatedGraph.replays, model._decoder.max_graphs) == (2, 4, 7)
    assert torch.equal(generate(model), generate(tiny_model))
    assert (EmulatedGraph.captured, EmulatedGraph.replays) == (2, 4 + 15)
    assert model.compile_generation(False) is False
    assert torch.equal(generate(model, 3), generate(tiny_model, 3))
    assert EmulatedGraph.replays == 4 + 15


# --- threads and callbacks


def test_threads_take_turns(make_captured, tiny_model):
    captured = make_captured()
    expected = {seed: generate(tiny_model, seed) for seed in range(12)}
    drawn, inside = {}, []

    def draw(numbers):
        def look(position, tokens):
            inside.append(threading.get_ident())

        for seed in numbers:
            drawn[seed] = generate(captured, seed, callback=look)

    threads = [threading.Thread(target=draw, args=(range(first, 12, 4),)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(drawn[seed], expected[seed]) for seed in expected)
    assert EmulatedGraph.captured == 1
    changes = sum(a != b for a, b in itertools.pairwise(inside))
    assert changes < 12, "one batch runs after the other"


def test_an_error_gives_the_turn_away(make_captured, tiny_model):
    captured = make_captured()

    def fail(position, tokens):
        raise KeyError(position)

    for _ in range(2):
        with pytest.raises(KeyError):
            generate(captured, callback=fail)
    thread = threading.Thread(target=generate, args=(captured,))
    thread.start()
    thread.join(30)
    assert not thread.is_alive()
    assert torch.equal(generate(captured), generate(tiny_model))


def test_a_callback_may_generate_with_the_same_model(make_captured, tiny_model, caplog):
    captured, inner = make_captured(), []

    def draw(position, tokens):
        if position in (3, 9):
            inner.append(generate(captured, position))

    for seed in (0, 10):
        assert torch.equal(generate(captured, seed, callback=draw), generate(tiny_model, seed))
    assert all(torch.equal(image, generate(tiny_model, seed)) for image, seed in zip(inner, (3, 9) * 2, strict=True))
    assert EmulatedGraph.captured == 1
    assert caplog.text.count("a callback generates with the model that is generating") == 1


# --- copies


def pickled(one):
    return pickle.loads(pickle.dumps(one))


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickled])
def test_copies_of_the_decoder_have_no_graphs(make_captured, copied):
    captured = make_captured(max_graphs=3)
    generate(captured)
    other = copied(captured._decoder)
    assert type(other) is CapturedDecoder
    assert (other.max_graphs, other._graph_class) == (3, EmulatedGraph)
    model = copy.deepcopy(captured)
    model._decoder = other
    generate(model)
    assert EmulatedGraph.captured == 2


def test_copies_of_the_model_capture_for_themselves(make_captured):
    captured = make_captured()
    expected = generate(captured)
    for copied in (copy.deepcopy(captured), pickled(captured)):
        assert torch.equal(generate(copied), expected)
    assert EmulatedGraph.captured == 3


# --- settings of the whole process


@pytest.mark.parametrize(
    "setting",
    [
        (torch.set_float32_matmul_precision, "high", "highest"),
        (torch.backends.cuda.enable_flash_sdp, False, True),
        (torch.use_deterministic_algorithms, True, False),
    ],
    ids=lambda setting: setting[0].__name__,
)
def test_settings_that_choose_kernels_are_part_of_the_graph(make_captured, tiny_model, setting):
    change, there, back = setting
    captured = make_captured()
    for captures, value in ((1, back), (2, there), (2, back), (2, there)):
        try:
            change(value)
            assert torch.equal(generate(captured), generate(tiny_model))
        finally:
            change(back)
        assert EmulatedGraph.captured == captures


# --- life of the model


def test_graphs_are_freed_with_the_model(make_captured):
    before = len(caches())
    captured = make_captured()
    generate(captured)
    del captured
    assert EmulatedGraph.alive() == 0, "without a search for reference cycles"
    assert len(caches()) == before


def test_a_warm_up_that_is_interrupted_leaves_plain_steps(make_model, tiny_model, monkeypatch):
    monkeypatch.setitem(CapturedDecoder.__init__.__kwdefaults__, "graph_class", EmulatedGraph)
    EmulatedGraph.reset()

    def interrupt(graph, function):
        raise KeyboardInterrupt

    model = make_model()
    with monkeypatch.context() as patch:
        patch.setattr(EmulatedGraph, "capture", interrupt)
        with pytest.raises(KeyboardInterrupt):
            model.compile_generation(mode="graph", warm_up=[2])
    assert isinstance(model._decoder, PlainDecoder)
    assert torch.equal(generate(model), generate(tiny_model))


def test_an_interrupted_capture_is_done_again(make_captured, tiny_model, monkeypatch):
    captured = make_captured()

    def interrupt(graph, function):
        function()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(EmulatedGraph, "capture", interrupt)
        with pytest.raises(KeyboardInterrupt):
            generate(captured)
    for seed in (0, 10):
        assert torch.equal(generate(captured, seed), generate(tiny_model, seed))
    assert EmulatedGraph.captured == 1
