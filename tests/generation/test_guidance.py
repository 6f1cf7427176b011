"""Guidance, negative prompts and sampling settings of `generate_images`."""

import pytest
import torch
from image_prompts import BOI, BOS, LONG, PAD, SHORT, K, LanguageModelCalls, P, left_padded, seeds

from janus_hf.generation import ImageGenerationOutput, draw_reference


# --- guidance


def test_guidance_of_one_runs_no_unconditional_rows(tiny_model, prompts):
    with LanguageModelCalls(tiny_model) as calls:
        generated = tiny_model.generate_images(
            prompts, guidance_scale=1, do_sample=False, output_logits=True, return_dict_in_generate=True
        )
    assert set(calls.rows) == {2}
    with_twins = draw_reference(tiny_model, prompts, guidance_scale=1.0)
    assert torch.equal(generated.image_ids, with_twins)


def test_a_checkpoint_may_hold_its_guidance_scale(make_model, prompts, tmp_path):
    model = make_model()
    model.generation_config.image_guidance_scale = 1.5
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    for scale, same_as in ((None, 1.5), (5.0, 5.0)):
        generated = loaded.generate_images(prompts, guidance_scale=scale, do_sample=False)
        assert torch.equal(generated, draw_reference(model, prompts, guidance_scale=same_as))


def test_the_default_guidance_scale_is_the_originals(tiny_model, prompts):
    generated = tiny_model.generate_images(prompts, do_sample=False)
    assert torch.equal(generated, draw_reference(tiny_model, prompts, guidance_scale=5.0))


def test_guidance_of_zero_ignores_the_prompt(tiny_model, prompts):
    generated = tiny_model.generate_images(prompts, guidance_scale=0, do_sample=False)
    assert torch.equal(generated[0], generated[1])  # equal lengths, so equal twins
    twin = torch.tensor([[BOS] + [PAD] * (len(LONG) - 2) + [BOI]])
    assert torch.equal(generated[:1], tiny_model.generate_images(twin, guidance_scale=1, do_sample=False))


def test_guidance_below_one_interpolates(tiny_model, prompts):
    def first_logits(scale):
        generated = tiny_model.generate_images(
            prompts, guidance_scale=scale, do_sample=False, output_logits=True, return_dict_in_generate=True
        )
        return generated.logits[:, 0]

    # Measured 7.2e-7; the logits at 0 and 1 differ by units.
    torch.testing.assert_close(first_logits(0.5), (first_logits(0) + first_logits(1)) / 2, atol=1e-4, rtol=0)


@pytest.mark.parametrize("cache_implementation", ["static", "dynamic"])
def test_negative_prompts_that_are_the_twins_change_nothing(tiny_model, cache_implementation):
    ids, mask = left_padded(SHORT, LONG)
    twins, _ = left_padded([BOS, PAD, BOI], [BOS] + [PAD] * 5 + [BOI])
    settings = {"generator": None, "do_sample": False, "cache_implementation": cache_implementation}
    generated = tiny_model.generate_images(
        ids, mask, negative_input_ids=twins, negative_attention_mask=mask, **settings
    )
    assert torch.equal(generated, tiny_model.generate_images(ids, mask, **settings))


@pytest.mark.parametrize("negative", [[BOS, 30, BOI], [BOS, *range(30, 45), BOI]], ids=["shorter", "longer"])
def test_negative_prompts_of_another_length(tiny_model, prompts, negative):
    """The first logits combine those of prompt and negative prompt run alone, and a batch equals its images alone."""
    negatives = torch.tensor([negative] * 2)
    generated = tiny_model.generate_images(
        prompts,
        negative_input_ids=negatives,
        guidance_scale=3.0,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )

    def alone(ids):
        return tiny_model.model.generation_head(tiny_model.model(input_ids=ids).last_hidden_state[:, -1])

    with torch.no_grad():
        expected = alone(negatives) + 3 * (alone(prompts) - alone(negatives))
    # Measured 9.1e-6 on logits up to 12; without the negative prompt they differ by units.
    torch.testing.assert_close(generated.logits[:, 0], expected, atol=5e-4, rtol=0)
    single = tiny_model.generate_images(
        prompts[1:], negative_input_ids=negatives[1:], guidance_scale=3.0, do_sample=False
    )
    assert torch.equal(generated.image_ids[1:], single)
    assert not torch.equal(
        generated.image_ids, tiny_model.generate_images(prompts, guidance_scale=3.0, do_sample=False)
    )


# --- sampling settings


def test_by_default_the_full_softmax_is_sampled(tiny_model, prompts):
    generated = tiny_model.generate_images(
        prompts, output_logits=True, output_scores=True, return_dict_in_generate=True, generator=seeds(1, 2)
    )
    assert torch.equal(generated.logits, generated.scores)
    assert generated.scores.isfinite().all()


def test_samples_stay_inside_top_k_and_top_p(tiny_model, prompts):
    settings = {"output_logits": True, "output_scores": True, "return_dict_in_generate": True, "guidance_scale": 1.0}
    generated = tiny_model.generate_images(prompts, temperature=3.0, top_k=3, generator=seeds(1, 2), **settings)
    assert (generated.scores.isfinite().sum(-1) == 3).all()
    ranks = (generated.logits > generated.logits.gather(-1, generated.image_ids[..., None])).sum(-1)
    assert ranks.max() == 2  # the third most likely token is sampled sometimes, the fourth never
    generated = tiny_model.generate_images(prompts, temperature=3.0, top_p=0.6, generator=seeds(1, 2), **settings)
    probabilities = (generated.logits / 3).softmax(-1)
    sampled = probabilities.gather(-1, generated.image_ids[..., None])
    likelier = torch.where(probabilities > sampled, probabilities, 0).sum(-1)
    assert (likelier < 0.6).all()
    assert likelier.max() > 0


def test_top_k_of_one_and_low_temperature_are_greedy(tiny_model, prompts):
    greedy = tiny_model.generate_images(prompts, do_sample=False)
    assert torch.equal(greedy, tiny_model.generate_images(prompts, top_k=1))
    assert torch.equal(greedy, tiny_model.generate_images(prompts, temperature=1e-4))


def test_logits_and_scores_cover_every_step(tiny_model, prompts):
    generated = tiny_model.generate_images(
        prompts,
        temperature=2.0,
        do_sample=False,
        guidance_scale=1.0,
        output_logits=True,
        output_scores=True,
        return_dict_in_generate=True,
    )
    assert isinstance(generated, ImageGenerationOutput)
    assert generated.logits.shape == generated.scores.shape == (2, P, K)
    assert generated.logits.dtype == torch.float32
    assert torch.equal(generated.scores, generated.logits / 2)
    assert torch.equal(generated.logits.argmax(-1), generated.image_ids)
    # The same logits from one uncached forward pass over prompt and image.
    joint = torch.cat([prompts, generated.image_ids + tiny_model.config.text_config.vocab_size], dim=1)
    with torch.no_grad():
        hidden = tiny_model.model(input_ids=joint).last_hidden_state[:, prompts.shape[1] - 1 : -1]
        expected = tiny_model.model.generation_head(hidden)
    # Measured 4.9e-6 on logits up to 5; an off-by-one position changes them by more than 1.
    torch.testing.assert_close(generated.logits, expected, atol=2e-4, rtol=0)
    bare = tiny_model.generate_images(prompts, do_sample=False, return_dict_in_generate=True)
    assert bare.logits is None
    assert bare.scores is None
