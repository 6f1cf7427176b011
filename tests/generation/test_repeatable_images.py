"""Equal seeds give equal images: nothing that a step reads is uninitialised, overwritten or left by another batch."""

import threading

import pytest
import torch
from hostile_decoder import HostileDecoder
from image_prompts import LONG, OTHER, SHORT, left_padded, seeds

from janus_hf.generation.kernels.attention_kernels import repeatable_attention


SETTINGS = [
    {},
    {"guidance_scale": 1.0},
    {"speculative_window": 4},
    {"cache_implementation": "dynamic"},
    {"top_k": 9, "top_p": 0.9, "temperature": 0.7},
    {"do_sample": False},
]


def draw(model, settings, rows=(SHORT, LONG, OTHER)):
    """Return tokens, logits and scores of one image per prompt."""
    ids, mask = left_padded(*rows)
    outputs = {"output_logits": True, "output_scores": True, "return_dict_in_generate": True}
    drawn = model.generate_images(ids, mask, generator=seeds(*range(len(rows))), **settings, **outputs)
    return drawn.image_ids, drawn.logits, drawn.scores


def assert_equal(first, second):
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("settings", SETTINGS)
def test_calls_repeat_after_other_batches(tiny_model, settings):
    expected = draw(tiny_model, settings)
    for rows in ((LONG,), (OTHER, SHORT, SHORT), (SHORT,) * 5):
        draw(tiny_model, settings, rows)
        assert_equal(draw(tiny_model, settings), expected)


@pytest.mark.parametrize("settings", SETTINGS)
def test_uninitialised_memory_is_not_read(tiny_model, settings):
    """PyTorch fills new memory with NaN, or with the largest integer, while it is asked for deterministic results."""
    expected = draw(tiny_model, settings)
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.empty(1).isnan()
        assert_equal(draw(tiny_model, settings), expected)
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("settings", SETTINGS)
def test_overwritten_inputs_outputs_and_caches_are_not_read(tiny_model, settings, monkeypatch):
    expected = draw(tiny_model, settings)
    monkeypatch.setattr(tiny_model, "_decoder", HostileDecoder(tiny_model._decoder))
    for _ in range(3):
        assert_equal(draw(tiny_model, settings), expected)


@pytest.mark.parametrize("guidance_scale", [5.0, 1.0])
@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_the_split_into_batches_does_not_matter(tiny_model, guidance_scale, size):
    """A batch is padded to its longest prompt, so the split changes the padding too."""
    rows, numbers = [SHORT, LONG, OTHER, SHORT, LONG], list(range(5))

    def parts(size):
        for start in range(0, len(rows), size):
            ids, mask = left_padded(*rows[start : start + size])
            generators = seeds(*numbers[start : start + size])
            yield tiny_model.generate_images(ids, mask, generator=generators, guidance_scale=guidance_scale)

    assert torch.equal(torch.cat(list(parts(size))), torch.cat(list(parts(len(rows)))))


# --- attention kernels that repeat


@pytest.fixture(autouse=True)
def cudnn_enabled():
    """Enable cuDNN's attention before every test, and check that the test leaves it enabled."""
    torch.backends.cuda.enable_cudnn_sdp(True)
    yield
    assert torch.backends.cuda.cudnn_sdp_enabled()


def test_images_are_drawn_without_attention_of_cudnn(tiny_model, prompts):
    seen = []
    tiny_model.generate_images(prompts, callback=lambda *_: seen.append(torch.backends.cuda.cudnn_sdp_enabled()))
    assert set(seen) == {False}


def test_an_error_enables_it_again(tiny_model, prompts):
    with pytest.raises(ZeroDivisionError):
        tiny_model.generate_images(prompts, callback=lambda *_: 1 / 0)


def test_the_last_thread_to_leave_enables_it_again():
    entered, leave = threading.Barrier(3), [threading.Event(), threading.Event()]

    def work(event):
        with repeatable_attention():
            entered.wait()
            event.wait()

    threads = [threading.Thread(target=work, args=[event]) for event in leave]
    for thread in threads:
        thread.start()
    entered.wait()
    for event, thread in zip(leave, threads, strict=True):
        assert not torch.backends.cuda.cudnn_sdp_enabled()
        event.set()
        thread.join()


@pytest.mark.parametrize("enabled", [True, False])
def test_the_callers_choice_is_kept(enabled):
    """A caller who has disabled every other kernel gets cuDNN's; one who has disabled cuDNN's finds it disabled."""
    switches = torch.backends.cuda
    others = [switches.enable_flash_sdp, switches.enable_mem_efficient_sdp, switches.enable_math_sdp]
    switches.enable_cudnn_sdp(enabled)
    for switch in others:
        switch(not enabled)
    try:
        with repeatable_attention():
            assert switches.cudnn_sdp_enabled() is enabled
        assert switches.cudnn_sdp_enabled() is enabled
    finally:
        for switch in (*others, switches.enable_cudnn_sdp):
            switch(True)
