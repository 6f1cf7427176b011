"""`batch_size="auto"`: as many images at once as the memory holds, fewer after running out, and the same images."""

import logging
from contextlib import nullcontext

import pytest
import torch
from tiny_pipes import generate_ids, seeded

from janus_hf.generation import batch_sizes
from janus_hf.generation.batch_sizes import LARGEST, bytes_per_image, codec_bytes, largest_batch, run_in_batches


CPU = torch.device("cpu")
PROMPTS = ["a", "a red fox in the snow", "b c", "d", "e f g", "h"]
SEEDS = tuple(range(6))


@pytest.fixture
def at_once(pipe, monkeypatch):
    """Make batches of more images than `limit` run out of memory; return the list of batches that were started."""
    started, generate = [], pipe.model.generate_images

    def limited(input_ids, *args, **kwargs):
        started.append(len(input_ids))
        output = generate(input_ids, *args, **kwargs)  # before the error, so that the generators have been used
        if len(input_ids) > at_once.limit:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return output

    def at_once(limit):
        at_once.limit = limit
        monkeypatch.setattr(pipe.model, "generate_images", limited)
        return started

    return at_once


@pytest.mark.parametrize(
    ("limit", "expected"), [(100, [6]), (5, [6, 3, 3]), (2, [6, 3, 2, 2, 2]), (1, [6, 3, 2, 1, 1, 1, 1, 1, 1])]
)
def test_a_batch_that_runs_out_of_memory_is_halved(pipe, at_once, caplog, limit, expected):
    images = generate_ids(pipe, PROMPTS, SEEDS)
    started = at_once(limit)
    with caplog.at_level(logging.WARNING, logger="janus_hf"):
        assert torch.equal(generate_ids(pipe, PROMPTS, SEEDS, batch_size="auto"), images)
    assert started == expected
    assert caplog.text.count("ran out of memory: generating") == sum(size > limit for size in expected)


def test_a_single_generator_and_the_global_one_are_put_back(pipe, at_once):
    def draw(generator, **settings):
        torch.manual_seed(3)
        return pipe(PROMPTS, generator=generator, output_type="latent", **settings).images

    expected = [draw(torch.Generator().manual_seed(1)), draw(None)]
    at_once(2)
    assert torch.equal(draw(torch.Generator().manual_seed(1), batch_size="auto"), expected[0])
    assert torch.equal(draw(None, batch_size="auto"), expected[1])


def test_a_single_image_that_does_not_fit_is_an_error(pipe, at_once):
    at_once(0)
    with pytest.raises(torch.OutOfMemoryError):
        pipe("a", batch_size="auto")


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (
            "MPS backend out of memory (MPS allocated: 9 GB).",
            [slice(0, 4), slice(0, 2), slice(2, 4)],
        ),
        ("[enforce fail] DefaultCPUAllocator: can't allocate memory.", [slice(0, 4), slice(0, 2), slice(2, 4)]),
        ("CUDA error: device-side assert triggered", [slice(0, 4)]),
    ],
)
def test_running_out_of_memory_is_told_from_other_errors(message, expected):
    tried = []

    def work(part):
        tried.append(part)
        if part.stop - part.start > 2:
            raise RuntimeError(message)

    raised = pytest.raises(RuntimeError, match=message) if len(expected) == 1 else nullcontext()
    with raised:
        list(run_in_batches(4, "auto", work, choose=lambda: 4, generator=None, device=CPU))
    assert tried == expected


def test_a_batch_size_of_the_caller_is_not_changed(pipe, at_once):
    started = at_once(2)
    with pytest.raises(torch.OutOfMemoryError):
        pipe(PROMPTS, batch_size=4)
    assert started == [4]


def test_the_progress_bar_goes_back(pipe, at_once, monkeypatch):
    at_once(2)
    counted = []

    class Bar:
        n = 0

        def __init__(self, total):
            self.total = total

        def __enter__(self):
            return self

        def __exit__(self, *exception):
            counted.append((self.n, self.total))

        def update(self, count):
            self.n += count

    monkeypatch.setattr(pipe, "progress_bar", Bar)
    pipe(PROMPTS, batch_size="auto", output_type="latent")
    assert counted == [(6 * 64, 6 * 64)]


@pytest.mark.parametrize("value", ["all", "8", None, 1.5, 0, True])
def test_other_values_are_refused(pipe, value):
    with pytest.raises((TypeError, ValueError), match="`batch_size`"):
        pipe("a", batch_size=value)


# --- the choice


@pytest.mark.parametrize("guided", [True, False])
@pytest.mark.parametrize("size", [1, 2, 16, 64, 128])
def test_the_largest_batch_that_fits_is_chosen(pipe, monkeypatch, guided, size):
    config, dtype = pipe.model.config, torch.float32
    need = size * bytes_per_image(config, dtype, guided=guided) + codec_bytes(config, dtype, size)
    for free, expected in ((need / 0.79, size), (need / 0.81, max(size // 2, 1))):
        monkeypatch.setattr(batch_sizes, "free_memory", lambda device, free=free: int(free))
        assert largest_batch(config, dtype, dtype, CPU, guided=guided) == expected


def test_more_memory_does_not_make_it_larger_than_the_limit(pipe, monkeypatch):
    monkeypatch.setattr(batch_sizes, "free_memory", lambda device: 2**60)
    assert largest_batch(pipe.model.config, torch.float16, torch.float32, CPU, guided=True) == LARGEST
    monkeypatch.setattr(batch_sizes, "free_memory", lambda device: None)
    assert largest_batch(pipe.model.config, torch.float16, torch.float32, CPU, guided=True) == 8


def test_guidance_and_the_free_memory_decide(pipe, monkeypatch):
    """A call asks the device that the model runs on, once."""
    asked = []
    monkeypatch.setattr(batch_sizes, "free_memory", lambda device: asked.append(device) or 2**60)
    pipe(PROMPTS[:2], batch_size="auto", guidance_scale=1.0, generator=seeded(0, 1), output_type="latent")
    pipe(PROMPTS[:2], batch_size=2, generator=seeded(0, 1), output_type="latent")
    assert asked == [CPU]


def test_no_more_than_the_images_that_are_wanted():
    parts = list(run_in_batches(3, "auto", lambda part: part, choose=lambda: 64, generator=None, device=CPU))
    assert parts == [slice(0, 3)]
