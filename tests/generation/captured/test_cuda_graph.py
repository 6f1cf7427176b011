"""`CudaGraph` with `torch.cuda` stood in for: the order of its calls, and what it refuses before it captures."""

import contextlib
import itertools
import threading

import pytest
import torch
from image_prompts import LONG, OTHER, seeds

from graph_emulator import Recorder
from janus_hf.generation.decoders import CapturedDecoder
from janus_hf.generation.decoders.cuda_graph import CudaGraph


NUMBERS = itertools.count(1)


class FakeCuda:
    """Streams, graphs and pools of one device, which write down what happens to them."""

    def __init__(self):
        self.device = torch.device("cuda", next(NUMBERS))
        self.events, self.captures = [], []
        self.streams = [self.make_stream(self.device, "current")]
        self.fails = False

    def make_stream(self, device, name=None):
        cuda = self

        class Stream:
            def wait_stream(self, other):
                cuda.events.append((name or "side", "waits for", other.name))

            def record_event(self):
                cuda.events.append((self.name, "ends"))
                return f"end on {self.name}"

            def wait_event(self, event):
                cuda.events.append((self.name, "waits for", event))

        stream = Stream()
        stream.name = name or "side"
        return stream

    def current_stream(self, device=None):
        return self.streams[-1]

    @contextlib.contextmanager
    def stream(self, stream):
        depth = len(self.streams)
        self.streams.append(stream)
        try:
            yield
        finally:
            del self.streams[depth:]

    class CUDAGraph:
        def __init__(self):
            self.recorder, self.own_pool = Recorder(), None

        def pool(self):
            assert self.own_pool is not None, "the pool of a graph that was never captured"
            return self.own_pool

        def replay(self):
            self.recorder.replay()

    def graph(self, graph, pool, stream, capture_error_mode):
        """As `torch.cuda.graph`, which leaves its stream in place if the capture fails."""
        cuda = self

        class Capture:
            def __enter__(self):
                cuda.captures.append((pool, stream, capture_error_mode))
                graph.own_pool = pool or f"pool {len(cuda.captures)}"
                cuda.streams.append(stream)
                graph.recorder.__enter__()

            def __exit__(self, *error):
                graph.recorder.__exit__(*error)
                if cuda.fails:
                    raise RuntimeError("operation failed due to a previous error during capture")
                cuda.streams.pop()

        return Capture()


@pytest.fixture
def cuda(monkeypatch):
    fake = FakeCuda()
    for name in ("current_stream", "stream", "CUDAGraph", "graph"):
        monkeypatch.setattr(torch.cuda, name, getattr(fake, name))
    monkeypatch.setattr(torch.cuda, "Stream", fake.make_stream)
    monkeypatch.setattr(torch.cuda, "device", contextlib.nullcontext)
    return fake


def test_the_rehearsal_runs_on_a_side_stream(cuda):
    seen = []
    CudaGraph(cuda.device).rehearse(lambda: seen.append(cuda.current_stream().name))
    assert seen == ["side"]
    assert cuda.events == [("side", "waits for", "current"), ("current", "waits for", "side")]
    assert cuda.current_stream().name == "current"


NUMBERS_3, MASK = torch.arange(3), torch.tensor([True, False, True])
REFUSED = {
    "item": lambda: NUMBERS_3.sum().item(),
    "if": lambda: 1 if NUMBERS_3.any() else 0,
    "tolist": lambda: [int(number) for number in NUMBERS_3],
    "nonzero": lambda: NUMBERS_3.nonzero(),
    "mask": lambda: NUMBERS_3[MASK],
    "masked_select": lambda: NUMBERS_3.masked_select(MASK),
    "unique": lambda: NUMBERS_3.unique(),
    "equal": lambda: torch.equal(NUMBERS_3, NUMBERS_3),
    "repeat_interleave": lambda: NUMBERS_3.repeat_interleave(NUMBERS_3),
    "to another device": lambda: NUMBERS_3.to("meta"),
    "a number to another device": lambda: torch.tensor(1.0).to("meta"),
    "copy_": lambda: torch.empty(3, dtype=torch.long, device="meta").copy_(NUMBERS_3),
}
ALLOWED = {
    "arithmetic": lambda: (NUMBERS_3 + 1) * torch.tensor(2.0),
    "a number on the CPU": lambda: torch.ones(3, device="meta") * torch.tensor(2.0),
    "indices": lambda: NUMBERS_3[NUMBERS_3],
    "index_copy_": lambda: torch.zeros(3).index_copy_(0, NUMBERS_3, torch.ones(3)),
    "where": lambda: torch.where(MASK, NUMBERS_3, 0),
    "masked_fill": lambda: NUMBERS_3.masked_fill(MASK, 1),
    "sort and top-k": lambda: (NUMBERS_3.sort(), NUMBERS_3.topk(2)),
    "copies in place": lambda: torch.empty(3).copy_(torch.ones(3)),
    "dtypes": lambda: NUMBERS_3.float().to(torch.bfloat16),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_waits_for_the_device_is_found_before_the_capture(cuda, name):
    """A capture that fails leaves the memory allocator of the process unusable."""
    with pytest.raises(RuntimeError, match=r"the operator aten::\S+ (waits for the device|copies between devices)"):
        CudaGraph(cuda.device).rehearse(REFUSED[name])
    assert cuda.events[-1] == ("current", "waits for", "side")
    assert cuda.current_stream().name == "current"


@pytest.mark.parametrize("name", ALLOWED)
def test_what_can_be_captured_is_allowed(cuda, name):
    CudaGraph(cuda.device).rehearse(ALLOWED[name])


def test_other_threads_may_wait_during_a_rehearsal(cuda):
    waited = []

    def rehearsed():
        thread = threading.Thread(target=lambda: waited.append(NUMBERS_3.sum().item()))
        thread.start()
        thread.join()

    CudaGraph(cuda.device).rehearse(rehearsed)
    assert waited == [3]


def test_captures_share_a_stream_and_the_pool_of_the_graph_beside(cuda):
    numbers, first = torch.zeros(2), CudaGraph(cuda.device)
    doubled = first.capture(lambda: numbers * 2)
    second = CudaGraph(cuda.device, first)
    tripled = second.capture(lambda: numbers * 3)
    CudaGraph(cuda.device).capture(lambda: numbers)
    pools, streams, modes = zip(*cuda.captures, strict=True)
    assert pools == (None, "pool 1", None)
    assert len(set(streams)) == 1
    assert streams[0] is not cuda.current_stream()
    assert set(modes) == {"thread_local"}
    numbers += 5
    first.replay()
    second.replay()
    assert (doubled.tolist(), tripled.tolist()) == ([10, 10], [15, 15])


def test_a_failed_capture_restores_the_stream(cuda):
    cuda.fails = True
    with pytest.raises(RuntimeError, match="previous error during capture"):
        CudaGraph(cuda.device).capture(lambda: NUMBERS_3 + 1)
    assert cuda.current_stream().name == "current"


def test_one_capture_at_a_time(cuda):
    """torch does not allow more in a process."""
    inside, most = [], []

    def captured():
        inside.append(1)
        most.append(len(inside))
        threading.Event().wait(0.01)
        inside.pop()

    threads = [threading.Thread(target=CudaGraph(cuda.device).capture, args=(captured,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1, 1, 1, 1]


class OnAnyDevice(CudaGraph):
    """A CUDA graph, for a model on the CPU."""

    @staticmethod
    def why_impossible(device):
        return None


def test_images_through_the_whole_class(cuda, make_model, tiny_model):
    prompts, model = torch.tensor([LONG, OTHER]), make_model()
    model._decoder = CapturedDecoder(max_graphs=2, graph_class=OnAnyDevice)
    for number, settings in enumerate(({}, {"top_k": 3}, {}, {"speculative_window": 3}, {"top_k": 3}, {})):
        images = [one.generate_images(prompts, generator=seeds(number, 9), **settings) for one in (model, tiny_model)]
        assert torch.equal(*images)
    # A pool is shared with a graph that lives, and the last of them hands it on.
    assert [pool for pool, _, _ in cuda.captures] == [None, "pool 1", "pool 1", "pool 1", "pool 1"]
    model.compile_generation(False)
    model._decoder = CapturedDecoder(max_graphs=1, graph_class=OnAnyDevice)
    for settings in ({}, {"top_k": 3}):
        model.generate_images(prompts, **settings)
    assert [pool for pool, _, _ in cuda.captures[5:]] == [None, None]


def test_a_turn_on_another_stream_waits_for_the_kernels_of_the_one_before(cuda, make_model, monkeypatch):
    """Threads of a server may have a stream each, and the turn ends before its kernels do."""
    model = make_model()
    decoder = CapturedDecoder(graph_class=OnAnyDevice)
    weight = next(model.model.language_model.parameters())
    monkeypatch.setattr(type(weight), "device", cuda.device, raising=False)
    with torch.no_grad():
        for name in ("first", "second"):
            with torch.cuda.stream(cuda.make_stream(cuda.device, name)), decoder.turn(model):
                decoder.prepare(model.model)
    assert cuda.events == [("first", "ends"), ("second", "waits for", "end on first"), ("second", "ends")]
