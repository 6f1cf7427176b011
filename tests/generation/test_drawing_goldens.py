"""`generate_images` gives the tokens, guided logits and pixels of the original code's loop."""

import pytest
import torch

from janus_hf.generation.prompt_rows import add_unconditional_twins


@pytest.fixture(scope="module")
def prompts(golden):
    """Prompts 0 and 1, which have equal length: the conditional ones of the original's interleaved rows."""
    return golden["gen.input_tokens"][0::2]


@pytest.fixture(scope="module")
def mixed_batch(golden, golden_checkpoint, manifest):
    """All three prompts, left-padded, tokenized by the checkpoint's tokenizer file without a processor."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(golden_checkpoint / "tokenizer.json"))
    special = manifest["special_ids"]
    rows = [tokenizer.encode(text, add_special_tokens=False).ids for text in manifest["strings"]["t2i"]["rendered"]]
    rows = [row if row[0] == special["bos"] else [special["bos"], *row] for row in rows]
    length = max(map(len, rows))
    ids = torch.tensor([[special["pad"]] * (length - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows])
    assert torch.equal(ids[:2], golden["gen.input_tokens"][0::2])
    assert mask.sum(-1).unique().numel() > 1
    return ids, mask


@pytest.mark.parametrize("cache_implementation", ["static", "dynamic"])
def test_greedy_codes_and_guided_logits(golden_model, golden, prompts, cache_implementation):
    generated = golden_model.generate_images(
        prompts,
        do_sample=False,
        cache_implementation=cache_implementation,
        output_logits=True,
        return_dict_in_generate=True,
    )
    assert torch.equal(generated.image_ids, golden["gen.batched_ids"])
    # Measured 3.2e-5: guidance multiplies the difference of two rows, each correct to 5e-6, by five. Greedy tokens
    # stay the same up to half their smallest margin, 0.02. A mask on the unconditional padding changes logits by more.
    torch.testing.assert_close(generated.logits, golden["gen.batched_cfg_logits"], atol=1e-4, rtol=0)


def test_one_prompt_alone(golden_model, golden, prompts):
    for i in range(2):
        generated = golden_model.generate_images(prompts[i : i + 1], do_sample=False)
        assert torch.equal(generated[0], golden[f"gen.prompt{i}_ids"])


@pytest.mark.parametrize("cache_implementation", ["static", "dynamic"])
def test_left_padded_batch_reproduces_every_row(golden_model, golden, mixed_batch, cache_implementation):
    ids, mask = mixed_batch
    generated = golden_model.generate_images(
        ids,
        mask,
        do_sample=False,
        cache_implementation=cache_implementation,
        output_logits=True,
        return_dict_in_generate=True,
    )
    for i in range(3):
        assert torch.equal(generated.image_ids[i], golden[f"gen.prompt{i}_ids"])
    torch.testing.assert_close(
        generated.logits[2], golden["gen.prompt2_cfg_logits"], atol=1e-4, rtol=0
    )  # measured 2.7e-5


def test_guidance_of_one(golden_model, golden, prompts):
    generated = golden_model.generate_images(prompts[:1], do_sample=False, guidance_scale=1.0)
    assert torch.equal(generated[0], golden["gen.prompt0_cfg1_ids"])


def test_pixels(golden_model, golden):
    codes = torch.stack([golden[f"gen.prompt{i}_ids"] for i in range(3)])
    # Measured 7.2e-6; half a grey level, which would change an image, is 3.9e-3.
    torch.testing.assert_close(golden_model.decode_image_ids(codes), golden["gen.pixels"], atol=1e-4, rtol=0)


def test_unconditional_rows_are_the_originals(golden_model, golden, prompts):
    rows, mask = add_unconditional_twins(
        prompts, torch.ones_like(prompts), golden_model.generation_config.pad_token_id
    )
    assert torch.equal(rows[len(prompts) :], golden["gen.input_tokens"][1::2])
    assert mask.all()
