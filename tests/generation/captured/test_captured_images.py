"""Captured steps generate the images of the plain loop, whatever changes between calls."""

import pytest
import torch
from image_prompts import BOI, BOS, LONG, OTHER, SHORT, K, P, left_padded, seeds

from graph_emulator import EmulatedGraph
from janus_hf.generation import draw_reference
from janus_hf.generation.sampling import draw_keys


MIXED, PAIR, SINGLE = left_padded(SHORT, LONG, OTHER), left_padded(OTHER, LONG), left_padded(SHORT)
VERY_LONG = left_padded([BOS, *range(3, 53), BOI])  # its cache is longer than that of the others

CALLS = {
    "plain": (MIXED, {}),
    "other prompts": (tuple(part.flip(0) for part in MIXED), {}),
    "one image": (SINGLE, {}),
    "two images": (PAIR, {}),
    "a long prompt": (VERY_LONG, {}),
    "no guidance": (MIXED, {"guidance_scale": 1.0}),
    "other guidance": (MIXED, {"guidance_scale": 2.5}),
    "colder": (MIXED, {"temperature": 0.6}),
    "top_k": (MIXED, {"top_k": 7}),
    "other top_k": (MIXED, {"top_k": 3}),
    "top_p": (MIXED, {"top_p": 0.8}),
    "other top_p": (MIXED, {"top_p": 0.4}),
    "greedy": (MIXED, {"do_sample": False}),
    "a window": (MIXED, {"speculative_window": 4}),
    "a window without guidance": (PAIR, {"speculative_window": 3, "guidance_scale": 1.0}),
    "negative prompts": (PAIR, {"negative_input_ids": MIXED[0][:2], "negative_attention_mask": MIXED[1][:2]}),
    "continued": (MIXED, {"image_ids": torch.arange(15).reshape(3, 5)}),
}


def generate(model, call, seed=0, **settings):
    (ids, mask), more = CALLS[call]
    generators = seeds(*range(seed, seed + len(ids)))
    return model.generate_images(ids, mask, generator=generators, **(more | settings))


@pytest.mark.parametrize("call", CALLS)
def test_captured_images_are_the_plain_ones(make_captured, tiny_model, call):
    """The second image is drawn by replays alone."""
    captured = make_captured()
    for seed in (0, 10):
        assert torch.equal(generate(captured, call, seed), generate(tiny_model, call, seed))
    assert EmulatedGraph.captured == 1
    steps = P - 1 - CALLS[call][1].get("image_ids", torch.empty(0, 0)).shape[1]
    assert EmulatedGraph.replays == 2 * steps - 1 or CALLS[call][1].get("speculative_window")


def test_one_model_draws_all_of_them_in_any_order(make_captured, tiny_model):
    """More sizes than graphs are kept, so graphs are dropped and captured again, and their caches with them."""
    captured = make_captured(max_graphs=3)
    for number, call in enumerate([*CALLS, *reversed(CALLS), *list(CALLS)[::3]]):
        assert torch.equal(generate(captured, call, number), generate(tiny_model, call, number)), call
        assert EmulatedGraph.alive() <= 3


def test_values_of_settings_share_a_graph(make_captured):
    captured = make_captured()
    for call in ("plain", "other prompts", "other guidance", "colder", "continued"):
        generate(captured, call)
    assert EmulatedGraph.captured == 1
    for call in ("top_p", "other top_p"):
        generate(captured, call)
    assert EmulatedGraph.captured == 2


@pytest.mark.parametrize("window", [1, 4])
def test_callbacks_may_replace_tokens(make_captured, tiny_model, window):
    def replace(position, tokens):
        assert tokens.shape == (3, position + 1)
        return (tokens[:, -1] + 1) % K if position % 3 == 1 else None

    captured = make_captured()
    for seed in (0, 10):
        images = [generate(model, "plain", seed, callback=replace) for model in (tiny_model, captured)]
        windowed = generate(captured, "plain", seed, callback=replace, speculative_window=window)
        assert torch.equal(*images)
        assert torch.equal(windowed, images[0])
    assert EmulatedGraph.captured == (1 if window == 1 else 2)


@pytest.mark.parametrize("window", [1, 3])
def test_logits_and_scores_of_all_steps_are_collected(make_captured, tiny_model, window):
    """A replay overwrites the output of the one before."""
    captured = make_captured()
    settings = {"output_logits": True, "output_scores": True, "return_dict_in_generate": True, "top_k": 9}
    for seed in (0, 10):
        ours, plain = (
            generate(model, "plain", seed, speculative_window=window, **settings) for model in (captured, tiny_model)
        )
        assert torch.equal(ours.image_ids, plain.image_ids)
        torch.testing.assert_close(ours.logits, plain.logits, rtol=0, atol=1e-4)
        torch.testing.assert_close(ours.scores, plain.scores, rtol=0, atol=1e-4)
        assert ours.num_model_steps == plain.num_model_steps


def test_captured_equals_the_reference(make_captured):
    captured, prompts = make_captured(), torch.tensor([LONG, OTHER])
    for seed in (4, 6):
        generated = captured.generate_images(prompts, generator=seeds(seed, seed + 1))
        keys = draw_keys(2, seeds(seed, seed + 1), prompts.device)
        assert torch.equal(generated, draw_reference(captured, prompts, keys=keys))


def test_inference_mode_changes_nothing(make_captured, tiny_model):
    captured = make_captured()
    for seed in (0, 10):
        with torch.inference_mode():
            inside = generate(captured, "plain", seed)
        assert torch.equal(inside, generate(captured, "plain", seed))
        assert torch.equal(inside, generate(tiny_model, "plain", seed))
    assert EmulatedGraph.captured == 1


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_images_of_a_few_steps(make_captured, tiny_model, steps):
    """A batch may end before its graph was replayed, and the next one replays it."""
    captured = make_captured()
    given = generate(tiny_model, "plain")[:, : P - steps]
    for seed in (0, 10, 20):
        images = [generate(model, "plain", seed, image_ids=given) for model in (tiny_model, captured)]
        assert torch.equal(*images)


@pytest.mark.parametrize("rope", [{"rope_type": "linear", "factor": 2.0}, {"rope_type": "yarn", "factor": 2.0}])
def test_kinds_of_rope(make_captured, make_model, tiny_config, rope):
    config = tiny_config(text={"rope_parameters": {"rope_theta": 10000.0, **rope}})
    captured, plain = make_captured(config=config), make_model(config)
    for seed in (0, 10):
        assert torch.equal(generate(captured, "plain", seed), generate(plain, "plain", seed))
    assert EmulatedGraph.captured == 1
