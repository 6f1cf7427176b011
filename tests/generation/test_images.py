"""`generate_images`: equal to the plain loop, independent of batch and cache, and refusing what it cannot draw."""

import pytest
import torch

from janus_hf.generation import ImageGenerationOutput, draw_reference
from janus_hf.generation.sampling import draw_keys


P, K, PAD, BOS, BOI = 16, 40, 91, 92, 94  # of the tiny config
CACHES = ["static", "dynamic"]


def seeds(*values):
    return [torch.Generator().manual_seed(value) for value in values]


def left_padded(*rows):
    length = max(map(len, rows))
    ids = torch.tensor([[PAD] * (length - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows])
    return ids, mask


SHORT, LONG, OTHER = [BOS, 5, BOI], [BOS, 7, 8, 9, 10, 11, BOI], [BOS, 20, 21, 22, 3, 4, BOI]


@pytest.fixture
def prompts():
    return torch.tensor([LONG, OTHER])


class Rows:
    """Counts the rows of every call of the language model."""

    def __init__(self, model):
        self.counts, self.lengths = [], []
        self.hook = model.model.language_model.register_forward_pre_hook(self, with_kwargs=True)

    def __call__(self, module, args, kwargs):
        self.counts.append(kwargs["inputs_embeds"].shape[0])
        self.lengths.append(kwargs["inputs_embeds"].shape[1])

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.hook.remove()


# --- the loop


@pytest.mark.parametrize("cache_implementation", CACHES)
@pytest.mark.parametrize("guidance_scale", [5.0, 2.0, 0.0])
def test_greedy_equals_the_plain_loop(tiny_model, prompts, cache_implementation, guidance_scale):
    drawn = tiny_model.generate_images(
        prompts, do_sample=False, guidance_scale=guidance_scale, cache_implementation=cache_implementation
    )
    assert torch.equal(drawn, draw_reference(tiny_model, prompts, guidance_scale=guidance_scale))
    assert drawn.shape == (2, P)
    assert drawn.dtype == torch.int64
    assert drawn.unique().numel() > 4  # a model that always draws one code would pass anything


@pytest.mark.parametrize("cache_implementation", CACHES)
def test_sampled_equals_the_plain_loop(tiny_model, prompts, cache_implementation):
    keys = draw_keys(2, seeds(1, 2), torch.device("cpu"))
    drawn = tiny_model.generate_images(prompts, generator=seeds(1, 2), cache_implementation=cache_implementation)
    assert torch.equal(drawn, draw_reference(tiny_model, prompts, keys=keys))
    assert not torch.equal(drawn, draw_reference(tiny_model, prompts))


def test_one_call_per_code(tiny_model, prompts):
    with Rows(tiny_model) as rows:
        tiny_model.generate_images(prompts)
    assert rows.lengths == [len(LONG)] + [1] * (P - 1)
    assert rows.counts == [3] + [4] * (P - 1)  # both prompts have the same unconditional twin, which is run once


def test_equal_prompts_are_run_once(tiny_model):
    ids, mask = left_padded(SHORT, LONG, SHORT, LONG, LONG)
    with Rows(tiny_model) as rows:
        tiny_model.generate_images(ids, mask, image_ids=torch.tensor([[1], [1], [1], [1], [2]]))
    # Three different (prompt, given code), each with a twin of its own.
    assert rows.counts == [6] + [10] * (P - 2)


def test_it_neither_trains_nor_changes_its_inputs(tiny_model, prompts):
    ids, mask = left_padded(SHORT, LONG)
    before = ids.clone(), mask.clone()
    drawn = tiny_model.generate_images(ids, mask, output_logits=True, return_dict_in_generate=True)
    assert not drawn.logits.requires_grad
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
    assert torch.equal(together[0], together[3]) is not do_sample  # one prompt: other seeds, other pictures


def test_a_boolean_mask_is_a_mask(tiny_model):
    ids, mask = left_padded(SHORT, LONG)
    drawn = [tiny_model.generate_images(ids, m, do_sample=False) for m in (mask, mask.bool(), mask.float())]
    assert torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[0], drawn[2])


def test_a_single_generator_serves_the_pictures_in_turn(tiny_model, prompts):
    drawn = tiny_model.generate_images(prompts, generator=torch.Generator().manual_seed(5))
    again = tiny_model.generate_images(prompts, generator=torch.Generator().manual_seed(5))
    first = tiny_model.generate_images(prompts[:1], generator=torch.Generator().manual_seed(5))
    assert torch.equal(drawn, again)
    assert torch.equal(drawn[:1], first)


def test_the_global_seed_counts_without_a_generator(tiny_model, prompts):
    torch.manual_seed(7)
    drawn = tiny_model.generate_images(prompts)
    torch.manual_seed(7)
    assert torch.equal(drawn, tiny_model.generate_images(prompts))
    assert not torch.equal(drawn, tiny_model.generate_images(prompts))


# --- guidance


def test_guidance_of_one_runs_undoubled(tiny_model, prompts):
    with Rows(tiny_model) as rows:
        drawn = tiny_model.generate_images(
            prompts, guidance_scale=1, do_sample=False, output_logits=True, return_dict_in_generate=True
        )
    assert set(rows.counts) == {2}
    doubled = draw_reference(tiny_model, prompts, guidance_scale=1.0)
    assert torch.equal(drawn.image_ids, doubled)


def test_a_checkpoint_may_bring_its_guidance(make_model, prompts, tmp_path):
    model = make_model()
    model.generation_config.image_guidance_scale = 1.5
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    for scale, same_as in ((None, 1.5), (5.0, 5.0)):
        drawn = loaded.generate_images(prompts, guidance_scale=scale, do_sample=False)
        assert torch.equal(drawn, draw_reference(model, prompts, guidance_scale=same_as))


def test_without_one_guidance_is_the_originals(tiny_model, prompts):
    drawn = tiny_model.generate_images(prompts, do_sample=False)
    assert torch.equal(drawn, draw_reference(tiny_model, prompts, guidance_scale=5.0))


def test_guidance_of_zero_ignores_the_prompt(tiny_model, prompts):
    drawn = tiny_model.generate_images(prompts, guidance_scale=0, do_sample=False)
    assert torch.equal(drawn[0], drawn[1])  # equal lengths, so equal twins
    twin = torch.tensor([[BOS] + [PAD] * (len(LONG) - 2) + [BOI]])
    assert torch.equal(drawn[:1], tiny_model.generate_images(twin, guidance_scale=1, do_sample=False))


def test_guidance_below_one_interpolates(tiny_model, prompts):
    def first_logits(scale):
        drawn = tiny_model.generate_images(
            prompts, guidance_scale=scale, do_sample=False, output_logits=True, return_dict_in_generate=True
        )
        return drawn.logits[:, 0]

    # Measured 7.2e-7; the two ends lie units apart.
    torch.testing.assert_close(first_logits(0.5), (first_logits(0) + first_logits(1)) / 2, atol=1e-4, rtol=0)


@pytest.mark.parametrize("cache_implementation", CACHES)
def test_negative_prompts_that_are_the_twins_change_nothing(tiny_model, cache_implementation):
    ids, mask = left_padded(SHORT, LONG)
    twins, _ = left_padded([BOS, PAD, BOI], [BOS] + [PAD] * 5 + [BOI])
    settings = {"generator": None, "do_sample": False, "cache_implementation": cache_implementation}
    drawn = tiny_model.generate_images(ids, mask, negative_input_ids=twins, negative_attention_mask=mask, **settings)
    assert torch.equal(drawn, tiny_model.generate_images(ids, mask, **settings))


@pytest.mark.parametrize("negative", [[BOS, 30, BOI], [BOS, *range(30, 45), BOI]], ids=["shorter", "longer"])
def test_negative_prompts_of_another_length(tiny_model, prompts, negative):
    """The first logits combine those of both prompts run by themselves; batched equals alone."""
    negatives = torch.tensor([negative] * 2)
    drawn = tiny_model.generate_images(
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
    torch.testing.assert_close(drawn.logits[:, 0], expected, atol=5e-4, rtol=0)
    single = tiny_model.generate_images(
        prompts[1:], negative_input_ids=negatives[1:], guidance_scale=3.0, do_sample=False
    )
    assert torch.equal(drawn.image_ids[1:], single)
    assert not torch.equal(drawn.image_ids, tiny_model.generate_images(prompts, guidance_scale=3.0, do_sample=False))


# --- sampling settings


def test_by_default_the_full_softmax_is_sampled(tiny_model, prompts):
    drawn = tiny_model.generate_images(
        prompts, output_logits=True, output_scores=True, return_dict_in_generate=True, generator=seeds(1, 2)
    )
    assert torch.equal(drawn.logits, drawn.scores)
    assert drawn.scores.isfinite().all()


def test_samples_stay_inside_top_k_and_top_p(tiny_model, prompts):
    settings = {"output_logits": True, "output_scores": True, "return_dict_in_generate": True, "guidance_scale": 1.0}
    drawn = tiny_model.generate_images(prompts, temperature=3.0, top_k=3, generator=seeds(1, 2), **settings)
    assert (drawn.scores.isfinite().sum(-1) == 3).all()
    ranks = (drawn.logits > drawn.logits.gather(-1, drawn.image_ids[..., None])).sum(-1)
    assert ranks.max() == 2  # the third likeliest is drawn at times, the fourth never
    drawn = tiny_model.generate_images(prompts, temperature=3.0, top_p=0.6, generator=seeds(1, 2), **settings)
    probabilities = (drawn.logits / 3).softmax(-1)
    likelier = torch.where(probabilities > probabilities.gather(-1, drawn.image_ids[..., None]), probabilities, 0).sum(
        -1
    )
    assert (likelier < 0.6).all()
    assert likelier.max() > 0


def test_top_k_of_one_and_low_temperature_are_greedy(tiny_model, prompts):
    greedy = tiny_model.generate_images(prompts, do_sample=False)
    assert torch.equal(greedy, tiny_model.generate_images(prompts, top_k=1))
    assert torch.equal(greedy, tiny_model.generate_images(prompts, temperature=1e-4))


def test_logits_and_scores_cover_every_step(tiny_model, prompts):
    drawn = tiny_model.generate_images(
        prompts,
        temperature=2.0,
        do_sample=False,
        guidance_scale=1.0,
        output_logits=True,
        output_scores=True,
        return_dict_in_generate=True,
    )
    assert isinstance(drawn, ImageGenerationOutput)
    assert drawn.logits.shape == drawn.scores.shape == (2, P, K)
    assert drawn.logits.dtype == torch.float32
    assert torch.equal(drawn.scores, drawn.logits / 2)
    assert torch.equal(drawn.logits.argmax(-1), drawn.image_ids)
    # The same logits from one uncached forward pass over prompt and picture.
    joint = torch.cat([prompts, drawn.image_ids + tiny_model.config.text_config.vocab_size], dim=1)
    with torch.no_grad():
        hidden = tiny_model.model(input_ids=joint).last_hidden_state[:, prompts.shape[1] - 1 : -1]
        expected = tiny_model.model.generation_head(hidden)
    # Measured 4.9e-6 on logits up to 5; an off-by-one position moves them by more than 1.
    torch.testing.assert_close(drawn.logits, expected, atol=2e-4, rtol=0)
    bare = tiny_model.generate_images(prompts, do_sample=False, return_dict_in_generate=True)
    assert bare.logits is None
    assert bare.scores is None


# --- continuing, callbacks


@pytest.mark.parametrize("cache_implementation", CACHES)
@pytest.mark.parametrize("given", [1, 7, P - 1, P])
@pytest.mark.parametrize("guidance_scale", [5.0, 1.0])
def test_continuing_a_picture_gives_the_same_picture(tiny_model, cache_implementation, given, guidance_scale):
    ids, mask = left_padded(SHORT, LONG)
    settings = {"cache_implementation": cache_implementation, "guidance_scale": guidance_scale}
    whole = tiny_model.generate_images(ids, mask, generator=seeds(1, 2), **settings)
    continued = tiny_model.generate_images(ids, mask, image_ids=whole[:, :given], generator=seeds(1, 2), **settings)
    assert torch.equal(continued, whole)


def test_another_prefix_gives_another_picture(tiny_model, prompts):
    whole = tiny_model.generate_images(prompts, do_sample=False)
    prefix = (whole[:, :4] + 1) % K
    drawn = tiny_model.generate_images(
        prompts, image_ids=prefix.int(), do_sample=False, output_logits=True, return_dict_in_generate=True
    )
    assert torch.equal(drawn.image_ids[:, :4], prefix)
    assert not torch.equal(drawn.image_ids[:, 4:], whole[:, 4:])
    assert drawn.logits.shape == (2, P - 4, K)


def test_a_full_prefix_runs_no_model(tiny_model, prompts):
    codes = torch.zeros(2, P, dtype=torch.long)
    with Rows(tiny_model) as rows:
        drawn = tiny_model.generate_images(prompts, image_ids=codes, return_dict_in_generate=True)
    assert torch.equal(drawn.image_ids, codes)
    assert rows.counts == []


def test_the_callback_sees_every_code(tiny_model, prompts):
    seen = []
    drawn = tiny_model.generate_images(
        prompts, do_sample=False, callback=lambda step, codes: seen.append((step, codes.clone()))
    )
    assert [step for step, _ in seen] == list(range(P))
    assert all(torch.equal(codes, drawn[:, : step + 1]) for step, codes in seen)


def test_the_callback_may_replace_codes(tiny_model, prompts):
    """Forcing the first codes of a picture is the same as continuing from them."""
    forced = torch.tensor([[3, 1, 4], [1, 5, 9]])
    drawn = tiny_model.generate_images(
        prompts, do_sample=False, callback=lambda step, codes: forced[:, step] if step < 3 else None
    )
    assert torch.equal(drawn, tiny_model.generate_images(prompts, image_ids=forced, do_sample=False))


@pytest.mark.parametrize(
    ("codes", "message"), [([0], r"shape \(2,\), got \(1,\)"), ([0, K], "got values from 0 to 40")]
)
def test_impossible_replacements_are_refused(tiny_model, prompts, codes, message):
    with pytest.raises(ValueError, match=message):
        tiny_model.generate_images(prompts, callback=lambda step, drawn: torch.tensor(codes))


# --- bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"guidance_scale": -1.0}, "guidance_scale must be 0 or more, got -1.0"),
        ({"guidance_scale": float("nan")}, "guidance_scale must be 0 or more, got nan"),
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"top_k": 0}, "top_k must be at least 1"),
        ({"top_p": 0.0}, "top_p must lie in"),
        ({"generator": seeds(1)}, "one generator per picture, 2 in all, got a list of 1"),
        ({"generator": seeds(1, 2, 3)}, "got a list of 3"),
        ({"cache_implementation": "quantized"}, "'static' or 'dynamic', got 'quantized'"),
        ({"image_ids": torch.tensor([[K], [0]])}, "got values from 0 to 40"),
        ({"image_ids": torch.tensor([[-1], [0]])}, "got values from -1 to 0"),
        ({"image_ids": torch.zeros(1, 2, dtype=torch.long)}, r"\(2, p\) with p <= 16 codes.*\(1, 2\)"),
        ({"image_ids": torch.zeros(2, P + 1, dtype=torch.long)}, r"\(2, p\) with p <= 16 codes.*\(2, 17\)"),
        ({"image_ids": torch.zeros(2, dtype=torch.long)}, r"got \(2,\)"),
        ({"attention_mask": torch.ones(2, 3)}, r"shape \(2, 7\), got \(2, 3\)"),
        ({"attention_mask": torch.tensor([[1] * 7, [1] * 6 + [0]])}, "padded on the left"),
        ({"attention_mask": torch.tensor([[1] * 7, [1, 0, 0, 1, 1, 1, 1]])}, "padded on the left"),
        ({"negative_input_ids": torch.tensor([LONG])}, "one negative prompt per prompt, 2 in all, got 1"),
        ({"negative_input_ids": torch.tensor([LONG] * 2), "guidance_scale": 1.0}, "acts through guidance"),
        (
            {"negative_input_ids": torch.tensor([LONG] * 2), "negative_attention_mask": torch.ones(2, 3)},
            r"attention mask of negative_input_ids.*\(2, 3\)",
        ),
        ({"negative_input_ids": torch.full((2, 150), 3)}, "150 tokens and a picture takes 16 more.*holds 160"),
    ],
)
def test_bad_arguments_are_refused(tiny_model, prompts, arguments, message):
    with Rows(tiny_model) as rows, pytest.raises(ValueError, match=message):
        tiny_model.generate_images(prompts, **arguments)
    assert rows.counts == []  # before any work is done


@pytest.mark.parametrize("shape", [(0, 7), (2, 0), (7,)])
def test_empty_batches_are_refused(tiny_model, shape):
    with pytest.raises(ValueError, match=r"input_ids of shape \(B, T\) with at least one prompt"):
        tiny_model.generate_images(torch.zeros(shape, dtype=torch.long))


def test_prompts_beyond_the_context_are_refused(tiny_model):
    limit = tiny_model.config.text_config.max_position_embeddings
    with pytest.raises(ValueError, match=f"has {limit - P + 1} tokens.*holds {limit}.*to {limit - P} tokens"):
        tiny_model.generate_images(torch.full((1, limit - P + 1), 3))
    assert tiny_model.generate_images(torch.full((1, limit - P), 3)).shape == (1, P)


def test_the_padding_id_must_be_known(make_model, prompts):
    model = make_model()
    model.generation_config.pad_token_id = None
    with pytest.raises(ValueError, match="pad_token_id"):
        model.generate_images(prompts)
    drawn = model.generate_images(prompts, pad_token_id=PAD, do_sample=False)
    assert model.generate_images(prompts, guidance_scale=1.0).shape == (2, P)  # needs no twin
    model.generation_config.pad_token_id = PAD
    assert torch.equal(drawn, model.generate_images(prompts, do_sample=False))


@pytest.mark.parametrize("do_sample", [True, False])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_stop_the_drawing(make_model, prompts, do_sample, value):
    model = make_model()
    with torch.no_grad():
        model.model.generation_head.vision_head.bias[3] = value
    with Rows(model) as rows, pytest.raises(FloatingPointError, match="not finite.*bfloat16"):
        model.generate_images(prompts, do_sample=do_sample)
    assert len(rows.counts) <= 4  # noticed within a row of the picture


def test_logits_that_stop_being_finite_late_are_noticed(make_model, prompts):
    model = make_model()
    calls = []

    def spoil(module, args, logits):
        calls.append(0)
        return logits * float("nan") if len(calls) == P else logits

    model.model.generation_head.register_forward_hook(spoil)
    with pytest.raises(FloatingPointError):
        model.generate_images(prompts)


# --- precision, other language models


def test_bfloat16_is_close_to_float32(make_model, prompts):
    """Teacher-forced: the logits along the float32 picture."""
    model = make_model()
    codes = model.generate_images(prompts, do_sample=False)

    def logits(model):
        drawn = model.generate_images(
            prompts,
            do_sample=False,
            guidance_scale=1,
            callback=lambda step, _: codes[:, step],
            output_logits=True,
            return_dict_in_generate=True,
        )
        assert torch.equal(drawn.image_ids, codes)
        return drawn.logits

    full, half = logits(model), logits(model.to(torch.bfloat16))
    assert half.dtype == torch.float32
    # Relative error of all logits: measured 0.019, with activations rounded to 2**-9. A position or a mask that went
    # through a type of too few bits gives errors of order 1.
    assert (full - half).norm() / full.norm() < 0.04


@pytest.mark.parametrize("text", [{"model_type": "qwen2"}, {"model_type": "gemma", "head_dim": 12}])
def test_other_language_models_draw_too(make_model, tiny_config, prompts, text):
    model = make_model(tiny_config(text=text))
    for cache_implementation in CACHES:
        drawn = model.generate_images(prompts, do_sample=False, cache_implementation=cache_implementation)
        assert torch.equal(drawn, draw_reference(model, prompts))
