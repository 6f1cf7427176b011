"""`generate` refuses ids of no token, and in negative prompts those of images; codes are read where they are meant."""

import pytest
import torch
from transformers import GenerationConfig

from janus_hf import JanusProForConditionalGeneration
from tiny import TINY_MODEL


@pytest.fixture(scope="module")
def model():
    return JanusProForConditionalGeneration.from_pretrained(TINY_MODEL).eval()


def wrong(model):
    """Ids that no token has: two beyond both vocabularies, and a negative one."""
    end = model.config.text_config.vocab_size + model.config.vq_config.num_embeddings
    return (end, end + 9, -1)


MODES = {
    "greedy": {},
    "sample": {"do_sample": True},
    "beams": {"num_beams": 2},
    "lookup": {"prompt_lookup_num_tokens": 2},
    "configuration": {"generation_config": GenerationConfig(max_new_tokens=2)},
}


@pytest.mark.parametrize("mode", MODES)
def test_ids_of_no_token_are_refused(model, mode):
    settings = {"max_new_tokens": 2} | MODES[mode]
    for number in wrong(model):
        ids = torch.tensor([[1, number, 2]])
        for call in (
            lambda ids: model.generate(ids, **settings),
            lambda ids: model.generate(input_ids=ids, **settings),
            lambda ids: model.generate(ids, attention_mask=torch.ones_like(ids), **settings),
        ):
            with pytest.raises(
                ValueError, match=r"`input_ids`, the tokens .* have ids below .*resize_token_embeddings"
            ):
                call(ids)
        with pytest.raises(ValueError, match=r"`inputs`, the tokens of a text,"):
            model.generate_batch([ids[0].tolist()])


@pytest.mark.parametrize("mode", MODES)
def test_negative_prompts_are_texts(model, mode):
    settings = {"max_new_tokens": 2} | MODES[mode]
    for number in (model.config.text_config.vocab_size, *wrong(model)):
        negative = {"negative_prompt_ids": torch.tensor([[1, number, 2]]), "guidance_scale": 2.0}
        with pytest.raises((TypeError, ValueError), match="`negative_prompt_ids`"):
            model.generate(torch.tensor([[1, 2]]), **settings, **negative)


@pytest.mark.parametrize("ids", ["abc", [[1, 2]], torch.ones(1, 2)])
def test_ids_are_a_tensor_of_integers(model, ids):
    with pytest.raises(TypeError, match="`input_ids` must be a tensor of integers"):
        model.generate(input_ids=ids, max_new_tokens=1)


def test_codes_are_read_where_they_are_meant(model):
    num_text, num_tokens = model.config.text_config.vocab_size, model.config.vq_config.num_image_tokens
    ids = torch.tensor([[1, num_text, num_text + 3]])
    with torch.no_grad():
        assert model(input_ids=ids, labels=ids).loss.isfinite()
        codes = torch.zeros(1, num_tokens, dtype=torch.long)
        prompt = torch.ones(1, 3, dtype=torch.long)
        assert torch.equal(model.generate_images(prompt, image_ids=codes, guidance_scale=1), codes)


def test_a_call_that_generates_nothing_has_logits_of_no_steps(model):
    vq = model.config.vq_config
    codes = torch.zeros(2, vq.num_image_tokens, dtype=torch.long)
    prompt = torch.ones(2, 3, dtype=torch.long)
    settings = {"image_ids": codes, "guidance_scale": 1, "return_dict_in_generate": True}
    output = model.generate_images(prompt, output_logits=True, output_scores=True, **settings)
    assert output.logits.shape == output.scores.shape == (2, 0, vq.num_embeddings)
    assert model.generate_images(prompt, **settings).logits is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"output_logits": True}, "`return_dict_in_generate` must be True with `output_logits`"),
        ({"output_scores": True}, "`return_dict_in_generate` must be True with `output_logits` and `output_scores`"),
        ({"negative_attention_mask": torch.ones(1, 3)}, "`negative_attention_mask` must come together with"),
        ({"negative_input_ids": torch.ones(1, 3).long(), "guidance_scale": 1}, "`guidance_scale` must not be 1 with"),
    ],
)
def test_arguments_of_images_that_would_have_no_effect(model, arguments, words):
    with pytest.raises(ValueError, match=words):
        model.generate_images(torch.ones(1, 3, dtype=torch.long), **arguments)
