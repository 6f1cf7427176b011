"""`generate_images` refuses arguments that it cannot use, and logits that are not finite."""

import pytest
import torch
from image_prompts import LONG, PAD, K, LanguageModelCalls, P, seeds


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"guidance_scale": -1.0}, "`guidance_scale` must be 0 or more, got -1.0"),
        ({"guidance_scale": float("nan")}, "`guidance_scale` must be 0 or more, got nan"),
        ({"temperature": 0.0}, "`temperature` must be positive, got 0.0"),
        ({"top_k": 0}, "`top_k` must be at least 1, got 0"),
        ({"top_p": 0.0}, "`top_p` must lie in"),
        (
            {"generator": seeds(1)},
            "one generator per image, 2 in all, got a list of 1",
        ),
        ({"generator": seeds(1, 2, 3)}, "got a list of 3"),
        ({"cache_implementation": "quantized"}, "'static' or 'dynamic', got 'quantized'"),
        ({"image_ids": torch.tensor([[K], [0]])}, "got values from 0 to 40"),
        ({"image_ids": torch.tensor([[-1], [0]])}, "got values from -1 to 0"),
        ({"image_ids": torch.zeros(1, 2, dtype=torch.long)}, r"\(2, p\) with p <= 16 image tokens.*\(1, 2\)"),
        ({"image_ids": torch.zeros(2, P + 1, dtype=torch.long)}, r"\(2, p\) with p <= 16 image tokens.*\(2, 17\)"),
        ({"image_ids": torch.zeros(2, dtype=torch.long)}, r"got \(2,\)"),
        ({"attention_mask": torch.ones(2, 3)}, r"shape \(2, 7\), got \(2, 3\)"),
        ({"attention_mask": torch.tensor([[1] * 7, [1] * 6 + [0]])}, "padded on the left"),
        ({"attention_mask": torch.tensor([[1] * 7, [1, 0, 0, 1, 1, 1, 1]])}, "padded on the left"),
        ({"negative_input_ids": torch.tensor([LONG])}, "one negative prompt per prompt, 2 in all, got 1"),
        (
            {"negative_input_ids": torch.tensor([LONG] * 2), "guidance_scale": 1.0},
            "`guidance_scale` must not be 1 with a negative prompt",
        ),
        (
            {"negative_input_ids": torch.tensor([LONG] * 2), "negative_attention_mask": torch.ones(2, 3)},
            r"attention mask of `negative_input_ids`.*\(2, 3\)",
        ),
        ({"negative_input_ids": torch.full((2, 150), 3)}, "got 150 tokens: an image takes 16 more.*holds 160"),
    ],
)
def test_bad_arguments_are_refused(tiny_model, prompts, arguments, message):
    with LanguageModelCalls(tiny_model) as calls, pytest.raises(ValueError, match=message):
        tiny_model.generate_images(prompts, **arguments)
    assert calls.rows == []  # before any work is done


@pytest.mark.parametrize("shape", [(0, 7), (2, 0), (7,)])
def test_empty_batches_are_refused(tiny_model, shape):
    with pytest.raises(ValueError, match=r"`input_ids` must be of shape \(B, T\) with at least one prompt"):
        tiny_model.generate_images(torch.zeros(shape, dtype=torch.long))


def test_prompts_beyond_the_context_are_refused(tiny_model):
    limit = tiny_model.config.text_config.max_position_embeddings
    with pytest.raises(ValueError, match=f"at most {limit - P} tokens, got {limit - P + 1} tokens.*holds {limit}"):
        tiny_model.generate_images(torch.full((1, limit - P + 1), 3))
    assert tiny_model.generate_images(torch.full((1, limit - P), 3)).shape == (1, P)


def test_the_padding_id_must_be_known(make_model, prompts):
    model = make_model()
    model.generation_config.pad_token_id = None
    with pytest.raises(ValueError, match="`pad_token_id` must be"):
        model.generate_images(prompts)
    generated = model.generate_images(prompts, pad_token_id=PAD, do_sample=False)
    assert model.generate_images(prompts, guidance_scale=1.0).shape == (2, P)  # needs no twin
    model.generation_config.pad_token_id = PAD
    assert torch.equal(generated, model.generate_images(prompts, do_sample=False))


@pytest.mark.parametrize("do_sample", [True, False])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_stop_the_generation(make_model, prompts, do_sample, value):
    model = make_model()
    with torch.no_grad():
        model.model.generation_head.vision_head.bias[3] = value
    with LanguageModelCalls(model) as calls, pytest.raises(FloatingPointError, match="not finite.*check its weights"):
        model.generate_images(prompts, do_sample=do_sample)
    assert len(calls.rows) <= 4  # noticed within one row of the image


def test_logits_that_stop_being_finite_late_are_noticed(make_model, prompts):
    model = make_model()
    calls = []

    def spoil(module, args, logits):
        calls.append(0)
        return logits * float("nan") if len(calls) == P else logits

    model.model.generation_head.register_forward_hook(spoil)
    with pytest.raises(FloatingPointError):
        model.generate_images(prompts)
