"""`speculative_window` changes no image: guessed tokens are accepted only where they are those of the plain loop."""

import pytest
import torch
from image_prompts import K, P, seeds


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
def test_guessing_changes_no_image(tiny_model, mixed, cache_implementation, window, settings):
    def generate(window):
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

    plain, guessed = generate(1), generate(window)
    assert torch.equal(guessed.image_ids, plain.image_ids)
    assert guessed.num_model_steps <= plain.num_model_steps == P
    # Measured 5e-6: rows of several positions are summed in another order. A wrong position or mask changes
    # logits by units.
    torch.testing.assert_close(guessed.logits, plain.logits, atol=2e-4, rtol=0)
    torch.testing.assert_close(guessed.scores, plain.scores, atol=4e-4, rtol=0)


def test_correct_guesses_save_steps(make_model, mixed):
    """A model that always generates the same token is guessed correctly, except for the first tokens."""
    model = make_model()
    with torch.no_grad():
        model.model.generation_head.vision_head.bias[7] += 1000
    generated = model.generate_images(*mixed, speculative_window=8, return_dict_in_generate=True)
    assert (generated.image_ids == 7).all()
    assert generated.num_model_steps == 3  # the prompt samples 1 token, two windows 8 each


def test_some_guesses_of_an_untrained_model_are_correct(tiny_model, mixed):
    """At a low temperature a token depends little on those before it, so some steps are saved."""
    settings = {"temperature": 0.1, "guidance_scale": 1.0, "return_dict_in_generate": True}
    ids = mixed[0][1:2]
    steps = [
        tiny_model.generate_images(ids, generator=seeds(s), speculative_window=8, **settings).num_model_steps
        for s in range(10)
    ]
    assert sum(steps) < 10 * P


@pytest.mark.parametrize("window", [2, 5])
@pytest.mark.parametrize("given", [1, 7, P - 1])
def test_guessing_continues_images(tiny_model, mixed, window, given):
    whole = tiny_model.generate_images(*mixed, generator=seeds(1, 2, 3))
    continued = tiny_model.generate_images(
        *mixed, image_ids=whole[:, :given], generator=seeds(1, 2, 3), speculative_window=window
    )
    assert torch.equal(continued, whole)


def test_callbacks_receive_and_replace_guessed_tokens(tiny_model, mixed):
    seen = {}
    for window in (1, 5):
        shown = []

        def callback(step, tokens, shown=shown):
            shown.append((step, tokens.tolist()))
            return (tokens[:, -1] + 1) % K if step % 3 == 0 else None

        generated = tiny_model.generate_images(
            *mixed, generator=seeds(1, 2, 3), speculative_window=window, callback=callback
        )
        seen[window] = (shown, generated.tolist())
    assert seen[1] == seen[5]
    assert [step for step, _ in seen[5][0]] == list(range(P))


def test_a_window_below_one_is_refused(tiny_model, mixed):
    with pytest.raises(ValueError, match="`speculative_window` must be at least 1, got 0"):
        tiny_model.generate_images(*mixed, speculative_window=0)
