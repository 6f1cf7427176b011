"""`generate_images` equals the plain loop, whatever the batch, the cache and the language model."""

import pytest
import torch
from image_prompts import LONG, OTHER, SHORT, K, LanguageModelCalls, P, left_padded, seeds

from janus_hf.generation import draw_reference
from janus_hf.generation.sampling import draw_keys


CACHES = ["static", "dynamic"]


# --- the loop


@pytest.mark.parametrize("cache_implementation", CACHES)
@pytest.mark.parametrize("guidance_scale", [5.0, 2.0, 0.0])
def test_greedy_equals_the_plain_loop(tiny_model, prompts, cache_implementation, guidance_scale):
    generated = tiny_model.generate_images(
        prompts, do_sample=False, guidance_scale=guidance_scale, cache_implementation=cache_implementation
    )
    assert torch.equal(generated, draw_reference(tiny_model, prompts, guidance_scale=guidance_scale))
    assert generated.shape == (2, P)
    assert generated.dtype == torch.int64
    assert generated.unique().numel() > 4  # a model that always generates one token would pass anything


@pytest.mark.parametrize("cache_implementation", CACHES)
def test_sampled_equals_the_plain_loop(tiny_model, prompts, cache_implementation):
    keys = draw_keys(2, seeds(1, 2), torch.device("cpu"))
    generated = tiny_model.generate_images(prompts, generator=seeds(1, 2), cache_implementation=cache_implementation)
    assert torch.equal(generated, draw_reference(tiny_model, prompts, keys=keys))
    assert not torch.equal(generated, draw_reference(tiny_model, prompts))


def test_one_call_per_token(tiny_model, prompts):
    with LanguageModelCalls(tiny_model) as calls:
        tiny_model.generate_images(prompts)
    assert calls.lengths == [len(LONG)] + [1] * (P - 1)
    assert calls.rows == [3] + [4] * (P - 1)  # both prompts have the same unconditional twin, which runs once


def test_equal_prompts_are_run_once(tiny_model):
    ids, mask = left_padded(SHORT, LONG, SHORT, LONG, LONG)
    with LanguageModelCalls(tiny_model) as calls:
        tiny_model.generate_images(ids, mask, image_ids=torch.tensor([[1], [1], [1], [1], [2]]))
    # Three different pairs of prompt and given token, each with its own twin.
    assert calls.rows == [6] + [10] * (P - 2)


def test_it_neither_trains_nor_changes_its_inputs(tiny_model, prompts):
    ids, mask = left_padded(SHORT, LONG)
    before = ids.clone(), mask.clone()
    generated = tiny_model.generate_images(ids, mask, output_logits=True, return_dict_in_generate=True)
    assert not generated.logits.requires_grad
    assert torch.equal(ids, before[0])
    assert torch.equal(mask, before[1])


# --- batching


@pytest.mark.parametrize("cache_implementation", CACHES)
@pytest.mark.parametrize("guidance_scale", [5.0, 1.0])
@pytest.mark.parametrize("do_sample", [True, False])
def test_a_batch_of_mixed_lengths_equals_singles(tiny_model, cache_implementation, guidance_scale, do_sample):
    rows = [SHORT, LONG, OTHER, SHORT]
    settings = {
        "guidance_scale": guidance_scale,
        "do_sample": do_sample,
        "cache_implementation": cache_implementation,
    }
    ids, mask = left_padded(*rows)
    together = tiny_model.generate_images(ids, mask, generator=seeds(1, 2, 3, 4), **settings)
    alone = [
        tiny_model.generate_images(torch.tensor([row]), generator=seeds(seed), **settings)
        for seed, row in enumerate(rows, 1)
    ]
    assert torch.equal(together, torch.cat(alone))
    assert torch.equal(together[0], together[3]) is not do_sample  # rows 0 and 3 have one prompt and different seeds


def test_a_boolean_mask_is_a_mask(tiny_model):
    ids, mask = left_padded(SHORT, LONG)
    generated = [tiny_model.generate_images(ids, m, do_sample=False) for m in (mask, mask.bool(), mask.float())]
    assert torch.equal(generated[0], generated[1])
    assert torch.equal(generated[0], generated[2])


def test_a_single_generator_serves_the_images_in_turn(tiny_model, prompts):
    generated = tiny_model.generate_images(prompts, generator=torch.Generator().manual_seed(5))
    again = tiny_model.generate_images(prompts, generator=torch.Generator().manual_seed(5))
    first = tiny_model.generate_images(prompts[:1], generator=torch.Generator().manual_seed(5))
    assert torch.equal(generated, again)
    assert torch.equal(generated[:1], first)


def test_the_global_seed_counts_without_a_generator(tiny_model, prompts):
    torch.manual_seed(7)
    generated = tiny_model.generate_images(prompts)
    torch.manual_seed(7)
    assert torch.equal(generated, tiny_model.generate_images(prompts))
    assert not torch.equal(generated, tiny_model.generate_images(prompts))


# --- continuing, callbacks


@pytest.mark.parametrize("cache_implementation", CACHES)
@pytest.mark.parametrize("given", [1, 7, P - 1, P])
@pytest.mark.parametrize("guidance_scale", [5.0, 1.0])
def test_continuing_an_image_gives_the_same_image(tiny_model, cache_implementation, given, guidance_scale):
    ids, mask = left_padded(SHORT, LONG)
    settings = {"cache_implementation": cache_implementation, "guidance_scale": guidance_scale}
    whole = tiny_model.generate_images(ids, mask, generator=seeds(1, 2), **settings)
    continued = tiny_model.generate_images(ids, mask, image_ids=whole[:, :given], generator=seeds(1, 2), **settings)
    assert torch.equal(continued, whole)


def test_another_prefix_gives_another_image(tiny_model, prompts):
    whole = tiny_model.generate_images(prompts, do_sample=False)
    prefix = (whole[:, :4] + 1) % K
    generated = tiny_model.generate_images(
        prompts, image_ids=prefix.int(), do_sample=False, output_logits=True, return_dict_in_generate=True
    )
    assert torch.equal(generated.image_ids[:, :4], prefix)
    assert not torch.equal(generated.image_ids[:, 4:], whole[:, 4:])
    assert generated.logits.shape == (2, P - 4, K)


def test_a_full_prefix_runs_no_model(tiny_model, prompts):
    tokens = torch.zeros(2, P, dtype=torch.long)
    with LanguageModelCalls(tiny_model) as calls:
        generated = tiny_model.generate_images(prompts, image_ids=tokens, return_dict_in_generate=True)
    assert torch.equal(generated.image_ids, tokens)
    assert calls.rows == []


def test_the_callback_receives_every_token(tiny_model, prompts):
    seen = []
    generated = tiny_model.generate_images(
        prompts, do_sample=False, callback=lambda step, tokens: seen.append((step, tokens.clone()))
    )
    assert [step for step, _ in seen] == list(range(P))
    assert all(torch.equal(tokens, generated[:, : step + 1]) for step, tokens in seen)


def test_the_callback_may_replace_tokens(tiny_model, prompts):
    """Forcing the first tokens of an image is the same as continuing from them."""
    forced = torch.tensor([[3, 1, 4], [1, 5, 9]])
    generated = tiny_model.generate_images(
        prompts, do_sample=False, callback=lambda step, tokens: forced[:, step] if step < 3 else None
    )
    assert torch.equal(generated, tiny_model.generate_images(prompts, image_ids=forced, do_sample=False))


@pytest.mark.parametrize(
    ("replacement", "message"), [([0], r"shape \(2,\), got \(1,\)"), ([0, K], "got values from 0 to 40")]
)
def test_impossible_replacements_are_refused(tiny_model, prompts, replacement, message):
    with pytest.raises(ValueError, match=message):
        tiny_model.generate_images(prompts, callback=lambda step, tokens: torch.tensor(replacement))


# --- precision, other language models


def test_bfloat16_is_close_to_float32(make_model, prompts):
    """The models are compared by their logits for the tokens of the float32 image (teacher forcing)."""
    model = make_model()
    tokens = model.generate_images(prompts, do_sample=False)

    def logits(model):
        generated = model.generate_images(
            prompts,
            do_sample=False,
            guidance_scale=1,
            callback=lambda step, _: tokens[:, step],
            output_logits=True,
            return_dict_in_generate=True,
        )
        assert torch.equal(generated.image_ids, tokens)
        return generated.logits

    full, half = logits(model), logits(model.to(torch.bfloat16))
    assert half.dtype == torch.float32
    # Relative error of all logits: measured 0.019, with activations rounded to 2**-9. A position or a mask that went
    # through a type of too few bits gives errors of order 1.
    assert (full - half).norm() / full.norm() < 0.04


@pytest.mark.parametrize("text", [{"model_type": "qwen2"}, {"model_type": "gemma", "head_dim": 12}])
def test_other_language_models_generate_too(make_model, tiny_config, prompts, text):
    model = make_model(tiny_config(text=text))
    for cache_implementation in CACHES:
        generated = model.generate_images(prompts, do_sample=False, cache_implementation=cache_implementation)
        assert torch.equal(generated, draw_reference(model, prompts))
