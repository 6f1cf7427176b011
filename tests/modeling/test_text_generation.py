"""`generate` with images: every decoding mode, drafts, embeddings, soft prompts, long contexts."""

import copy
import inspect
import subprocess
import sys
from pathlib import Path

import peft
import pytest
import torch
from transformers import GenerationConfig, GenerationMixin, LlamaConfig, LlamaForCausalLM
from transformers.generation.configuration_utils import GenerationMode

from janus_hf.generation.context import context_length
from janus_hf.generation.text import text_generation as text_module


# One more than the rows of any other weight, because PEFT looks for the embeddings by that number.
V, IMAGE, PAD, BOS, CONTEXT = 97, 90, 91, 92, 160
PLACEHOLDERS = [IMAGE] * 9
PROMPT = torch.tensor([[BOS, 3, *PLACEHOLDERS, 4, *PLACEHOLDERS, 7, 8, 9, 3]])
SETTINGS = {"max_new_tokens": 8, "do_sample": False}


def images(count, seed=0):
    return torch.rand(count, 3, 12, 12, generator=torch.Generator().manual_seed(seed)) * 2 - 1


PICTURES = images(2)


@pytest.fixture(scope="module")
def model(make_model, tiny_config):
    return make_model(tiny_config(text={"vocab_size": V}))


@pytest.fixture(scope="module")
def greedy(model):
    """The greedy answer, computed without a cache, token by token."""
    ids = PROMPT
    with torch.no_grad():
        for _ in range(SETTINGS["max_new_tokens"]):
            token = model(input_ids=ids, pixel_values=PICTURES).logits[:, -1:].argmax(-1)
            assert token != IMAGE  # the loop could not tell it from an image
            ids = torch.cat([ids, token], dim=1)
    return ids


def generate(model, ids=PROMPT, **settings):
    return model.generate(ids, pixel_values=PICTURES, **{**SETTINGS, **settings})


# --- every decoding mode


WORKS = {
    GenerationMode.GREEDY_SEARCH: {},
    GenerationMode.SAMPLE: {"do_sample": True, "top_k": 1},
    GenerationMode.BEAM_SEARCH: {"num_beams": 3},
    GenerationMode.BEAM_SAMPLE: {"num_beams": 3, "do_sample": True},
    GenerationMode.ASSISTED_GENERATION: {"prompt_lookup_num_tokens": 4},
}
REFUSED = {
    GenerationMode.CONTRASTIVE_SEARCH: {"penalty_alpha": 0.6, "top_k": 4},
    GenerationMode.DOLA_GENERATION: {"dola_layers": "low"},
    GenerationMode.GROUP_BEAM_SEARCH: {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 1.0},
    GenerationMode.CONSTRAINED_BEAM_SEARCH: {"num_beams": 2, "force_words_ids": [[5]]},
}


def test_every_mode_is_sorted():
    assert WORKS.keys() == set(text_module.MODES)
    assert WORKS.keys() | REFUSED.keys() == set(GenerationMode)


@pytest.mark.parametrize("mode", sorted(WORKS, key=str))
def test_modes_that_read_the_images(model, greedy, mode):
    settings = WORKS[mode]
    assert GenerationConfig(**settings).get_generation_mode() == mode
    torch.manual_seed(0)
    found = generate(model, **settings)
    assert found.shape == greedy.shape
    if mode in (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE, GenerationMode.ASSISTED_GENERATION):
        assert torch.equal(found, greedy)
    torch.manual_seed(0)
    other = model.generate(PROMPT, pixel_values=images(2, seed=9), **{**SETTINGS, **settings})
    assert not torch.equal(found, other)


@pytest.mark.parametrize("mode", sorted(REFUSED, key=str))
@pytest.mark.parametrize("trusts", [False, True])
def test_modes_whose_code_is_on_the_hub(model, mode, trusts):
    with pytest.raises(ValueError, match=f"got {mode.value}, whose code from the Hub.*use greedy decoding"):
        generate(model, trust_remote_code=trusts, **REFUSED[mode])


def test_code_from_the_hub_and_a_function(model, greedy):
    with pytest.raises(ValueError, match="got someone/loop, whose code from the Hub"):
        generate(model, custom_generate="someone/loop")

    def loop(model, input_ids, **kwargs):
        return model._sample(input_ids, **kwargs)

    assert torch.equal(generate(model, custom_generate=loop), greedy)


@pytest.mark.parametrize(
    "settings",
    [
        {"cache_implementation": "static", "disable_compile": True},
        {"cache_implementation": "dynamic"},
        {"use_cache": False},
        {"prefill_chunk_size": 5},
        {"prefill_chunk_size": 5, "num_beams": 1},
    ],
    ids=str,
)
def test_caches_change_nothing(model, greedy, settings):
    assert torch.equal(generate(model, **settings), greedy)


# --- every keyword


# Settings that transformers uses as they are, images or not.
PASSED_ON = {
    *("assistant_confidence_threshold", "assistant_ensemble_weight", "assistant_lookbehind", "bad_words_ids"),
    *("begin_suppress_tokens", "bos_token_id", "cache_config", "compile_config", "continuous_batching_config"),
    *("decoder_start_token_id", "disable_compile", "diversity_penalty", "do_sample", "early_stopping"),
    *("encoder_no_repeat_ngram_size", "encoder_repetition_penalty", "eos_token_id", "epsilon_cutoff", "eta_cutoff"),
    *("exponential_decay_length_penalty", "forced_bos_token_id", "forced_eos_token_id", "guidance_scale"),
    *("is_assistant", "length_penalty", "low_memory", "max_cache_len", "max_matching_ngram_size", "max_time"),
    *("min_length", "min_new_tokens", "min_p", "no_repeat_ngram_size", "num_assistant_tokens"),
    *("num_assistant_tokens_schedule", "num_return_sequences", "output_attentions", "output_hidden_states"),
    *("output_logits", "output_scores", "pad_token_id", "remove_invalid_values", "renormalize_logits"),
    *("repetition_penalty", "return_dict_in_generate", "sequence_bias", "speculation_type", "stop_strings"),
    *("suppress_tokens", "target_lookbehind", "temperature", "top_h", "top_k", "top_p", "transformers_version"),
    *("typical_p", "use_cache", "watermarking_config", "_from_model_config"),
}
# Settings that decide the mode, and those that are checked.
OF_MODES = {"constraints", "dola_layers", "force_words_ids", "num_beam_groups", "num_beams", "penalty_alpha"}
CHECKED = {"cache_implementation", "max_length", "max_new_tokens", "prefill_chunk_size", "prompt_lookup_num_tokens"}
ARGUMENTS = {
    *("inputs", "generation_config", "logits_processor", "stopping_criteria", "prefix_allowed_tokens_fn"),
    *("synced_gpus", "streamer", "negative_prompt_ids", "negative_prompt_attention_mask"),
    *("assistant_model", "custom_generate", "kwargs"),
}


def test_every_keyword_of_transformers_is_sorted():
    """If this fails, transformers has a new setting: try it with images, then sort it."""
    refused = {*text_module.REFUSED, *text_module.REFUSED_WITH_IMAGES} - {"assistant_tokenizer"}
    assert set(vars(GenerationConfig())) == PASSED_ON | OF_MODES | CHECKED | refused
    assert set(inspect.signature(GenerationMixin.generate).parameters) == ARGUMENTS | {"self"}


@pytest.mark.parametrize("name", sorted({**text_module.REFUSED, **text_module.REFUSED_WITH_IMAGES}))
def test_settings_that_cannot_be_followed(model, name):
    with pytest.raises(ValueError, match=f"`{name}` must be left out, got"):
        generate(model, **{name: 1})
    if name in text_module.REFUSED:
        with pytest.raises(ValueError, match=f"`{name}` must be left out, got"):
            model.generate(torch.tensor([[BOS, 3]]), **{name: 1})


def test_continuous_batching_takes_no_images(model):
    with pytest.raises(ValueError, match="`cache_implementation` must not be 'paged' with images"):
        generate(model, cache_implementation="paged")
    with pytest.raises(ValueError, match="`inputs` must be prompts without images"):
        model.generate_batch([PROMPT[0].tolist()], max_new_tokens=2)


def test_settings_of_the_configuration_are_checked_too(model):
    with pytest.raises(ValueError, match="`token_healing` must be left out"):
        model.generate(PROMPT, GenerationConfig(token_healing=True, max_new_tokens=2), pixel_values=PICTURES)


# --- drafts


def test_drafts_only_guess(model, greedy, make_model, tiny_config):
    """A draft may be another Janus, of another width, the model itself, or a language model without images."""
    narrow = {"text": {"vocab_size": V, "hidden_size": 32}, "vision": {"projection_dim": 32}}
    drafts = {
        "another": make_model(tiny_config(text={"vocab_size": V}), seed=3),
        "narrower": make_model(tiny_config(**narrow, vq={"projection_dim": 32}), seed=4),
        "itself": model,
        "blind": LlamaForCausalLM(
            LlamaConfig(vocab_size=V, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
        ).eval(),
    }
    for name, draft in drafts.items():
        assert torch.equal(generate(model, assistant_model=draft), greedy), name
        assert generate(model, assistant_model=draft, do_sample=True).shape[0] == 1, name


def test_a_draft_sees_the_images(model):
    """A draft that equals the model guesses right, so eight tokens take two checks of four guesses."""
    draft, checks = copy.deepcopy(model), []
    draft.generation_config.update(
        num_assistant_tokens=4, num_assistant_tokens_schedule="constant", assistant_confidence_threshold=0.0
    )
    handle = model.lm_head.register_forward_hook(lambda module, args, output: checks.append(output.shape[1]))
    generate(model, assistant_model=draft)
    handle.remove()
    assert len(checks) == 2


def test_a_draft_sees_with_its_own_eyes(model, make_model, tiny_config, monkeypatch):
    draft = make_model(tiny_config(text={"vocab_size": V}), seed=3)
    seen = []
    encode = draft.model.get_image_features
    monkeypatch.setattr(
        draft.model, "get_image_features", lambda pixels, **kwargs: seen.append(pixels) or encode(pixels, **kwargs)
    )
    generate(model, assistant_model=draft)
    assert len(seen) == 1
    assert torch.equal(seen[0], PICTURES)


def test_guesses_may_be_placeholders(make_model, tiny_config):
    """Prompt lookup copies placeholders out of the prompt, where they stand for no image."""
    model = make_model(tiny_config(text={"vocab_size": V}))
    ids = torch.tensor([[BOS, 3, 4, *PLACEHOLDERS, 5, 3, 4]])
    plain = model.generate(ids, pixel_values=images(1), **SETTINGS)
    looked_up = model.generate(ids, pixel_values=images(1), prompt_lookup_num_tokens=6, **SETTINGS)
    assert torch.equal(looked_up, plain)


@pytest.mark.parametrize("assisting", ["assistant_model", "prompt_lookup_num_tokens"])
def test_what_assisted_generation_would_ignore(model, assisting):
    helper = {assisting: model if assisting == "assistant_model" else 3}
    with pytest.raises(ValueError, match=f"`num_beams` must be left out of assisted generation.*`{assisting}`"):
        generate(model, num_beams=2, **helper)
    with pytest.raises(ValueError, match="`prefill_chunk_size` must be left out"):
        generate(model, prefill_chunk_size=5, **helper)
    with pytest.raises(ValueError, match="`inputs_embeds` must be left out"):
        model.generate(inputs_embeds=torch.zeros(1, 3, 48), **helper)


# --- embeddings and soft prompts


def test_embeddings_hold_placeholders(model, greedy):
    with torch.no_grad():
        embeds = model.get_input_embeddings()(PROMPT)
        expected = model(input_ids=PROMPT, pixel_values=PICTURES).logits
        assert torch.equal(model(inputs_embeds=embeds, pixel_values=PICTURES).logits, expected)
        encoded = {"image": model.get_image_features(PICTURES)}
        assert torch.equal(model(inputs_embeds=embeds, mm_encoder_outputs=encoded).logits, expected)
    for settings in ({}, {"num_beams": 2}, {"cache_implementation": "static", "disable_compile": True}):
        found = model.generate(inputs_embeds=embeds, pixel_values=PICTURES, **SETTINGS, **settings)
        assert torch.equal(found, generate(model, **settings)[:, PROMPT.shape[1] :])
    changed = embeds.clone()
    changed[0, 3] += 1e-3
    with pytest.raises(ValueError, match="got 17 placeholders.*found by their embedding"):
        model(inputs_embeds=changed, pixel_values=PICTURES)


@pytest.mark.parametrize("placeholder", [V, V + 1000])
def test_embeddings_of_a_placeholder_past_the_vocabulary(make_model, tiny_config, placeholder):
    model = make_model(tiny_config(text={"vocab_size": V}, image_token_id=placeholder))
    ids = torch.where(PROMPT == IMAGE, placeholder, PROMPT)
    with torch.no_grad():
        expected = model(input_ids=ids, pixel_values=PICTURES).logits
        found = model(inputs_embeds=model.model.embed_ids(ids), pixel_values=PICTURES).logits
    assert torch.equal(found, expected)


METHODS = {
    "prompt tuning": peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
    "p-tuning": peft.PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=4, encoder_hidden_size=16),
    "prefix tuning": peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("rows", [V, 96])  # 96 rows have other weights too
def test_soft_prompts_learn_and_answer(make_model, tiny_config, method, rows):
    torch.manual_seed(0)
    tuned = peft.get_peft_model(make_model(tiny_config(text={"vocab_size": rows})), METHODS[method])
    batch = {"input_ids": PROMPT, "attention_mask": torch.ones_like(PROMPT), "pixel_values": PICTURES}
    labels = PROMPT.masked_fill(PROMPT == IMAGE, -100)
    optimiser = torch.optim.Adam((p for p in tuned.parameters() if p.requires_grad), lr=0.05)
    losses = []
    for _ in range(6):
        optimiser.zero_grad()
        loss = tuned(**batch, labels=labels).loss
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.3
    tuned.eval()
    answer = tuned.generate(**batch, max_new_tokens=1, do_sample=False)
    with torch.no_grad():
        assert answer[0, -1] == tuned(**batch).logits[0, -1].argmax()
        other = {**batch, "pixel_values": images(2, seed=5)}
        assert not torch.allclose(tuned(**other).logits[:, -1], tuned(**batch).logits[:, -1], atol=0.05)


# --- the end of the context


def test_new_tokens_must_fit_the_context(model):
    room = CONTEXT - PROMPT.shape[1]
    assert generate(model, max_new_tokens=room, eos_token_id=None).shape[1] == CONTEXT
    assert generate(model, max_new_tokens=None, max_length=CONTEXT, eos_token_id=None).shape[1] == CONTEXT
    for settings, message in (
        ({"max_new_tokens": room + 1}, f"`max_new_tokens` must be at most {room}, got {room + 1}: lower it"),
        ({"max_new_tokens": None, "max_length": 161}, "`max_length` must be at most 160, got 161: lower it"),
    ):
        with pytest.raises(ValueError, match=message):
            generate(model, **settings)
    with pytest.raises(ValueError, match="`max_new_tokens` must be at most"):
        model.generate(PROMPT, GenerationConfig(max_new_tokens=200), pixel_values=PICTURES)
    with pytest.raises(ValueError, match="`max_new_tokens` must be at most 157"):
        model.generate(inputs_embeds=torch.zeros(1, 3, 48), max_new_tokens=158)


@pytest.mark.parametrize(
    ("rope", "expected"),
    [
        ({"rope_type": "default"}, 40),
        ({"rope_type": "linear", "factor": 4.0}, 160),
        ({"rope_type": "dynamic", "factor": 2.0}, 80),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}, 128),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 10}, 40),
    ],
    ids=str,
)
def test_rope_scaling_makes_the_context_longer(make_model, tiny_config, rope, expected):
    text = {"vocab_size": V, "max_position_embeddings": 40, "rope_parameters": {"rope_theta": 1e4, **rope}}
    model = make_model(tiny_config(text=text))
    assert context_length(model.config.text_config) == expected
    ids = torch.tensor([[BOS, *PLACEHOLDERS, *[7] * (expected - 10)]])
    with torch.no_grad():
        assert model(input_ids=ids, pixel_values=images(1)).logits.shape == (1, expected, V)
    with pytest.raises(ValueError, match=f"context of {expected} tokens"):
        model(input_ids=torch.cat([ids, ids[:, -1:]], dim=1), pixel_values=images(1))
    shorter = ids[:, : expected - 4]
    assert model.generate(shorter, pixel_values=images(1), max_new_tokens=4, do_sample=False).shape == (1, expected)
    with pytest.raises(ValueError, match="`max_new_tokens` must be at most 4"):
        model.generate(shorter, pixel_values=images(1), max_new_tokens=5)
    prompt = torch.tensor([[BOS, *[7] * (expected - 18), 94]])
    assert model.generate_images(prompt, do_sample=False).shape == (1, 16)


# --- ids past the vocabulary


def test_prompts_of_images_hold_text_only(model):
    ids = torch.tensor([[BOS, 5, V + 3, 94]])
    with pytest.raises(ValueError, match=rf"must have ids below {V}.*got \[{V + 3}\].*resize_token_embeddings"):
        model.generate_images(ids)
    text = torch.tensor([[BOS, 5, 94]])
    with pytest.raises(ValueError, match="must have ids below"):
        model.generate_images(text, negative_input_ids=ids)


# --- tensor parallelism


@pytest.mark.slow
@pytest.mark.parametrize("head", ["tied", "untied"])
def test_two_ranks_answer_as_one(head, tmp_path):
    script = Path(__file__).with_name("tensor_parallel_ranks.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script)]
    result = subprocess.run([*command, head, str(tmp_path)], capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr[-3000:]
