"""Every value of every argument of text generation is used, or refused by an error that says what it must be."""

import inspect
import math

import numpy as np
import pytest
import torch
from transformers import GenerationConfig

from janus_hf.answering import answer
from janus_hf.generation.text.text_arguments import NEEDS, text_arguments
from janus_hf.generation.text.text_values import SAMPLING, VALUES
from janus_hf.pipelines import JanusProPipeline
from tiny import TINY_MODEL


HELLO = [{"role": "user", "content": "hi"}]
OFTEN = (-1, -0.5, "2", math.nan, math.inf, [1], True)
COUNT = (0, -2, 1.5, "2", True, [1])
FROM_0 = (-2, 1.5, "2", True, [1])
IDS = (-1, 1.5, "2", True, [], ["a"], [-1], [[1]], torch.ones(2))
# Argument -> values that make no sense for it. A flag is missing here; all of them are below.
SENSELESS = {
    "temperature": (*OFTEN, 0),
    "top_k": FROM_0,
    "top_p": (*OFTEN, 5, 1.01),
    "min_p": (*OFTEN, 2),
    "top_h": (*OFTEN, 0, 2),
    "typical_p": (*OFTEN, 0, 2),
    "epsilon_cutoff": (*OFTEN, 1, 2),
    "eta_cutoff": (*OFTEN, 1, 2),
    "num_beams": COUNT,
    "early_stopping": (2, 1, 0, "always", []),
    "length_penalty": ("2", math.nan, math.inf, True, [1]),
    "guidance_scale": OFTEN,
    "negative_prompt_ids": ("a", [[1]], torch.zeros(1, 2), -torch.ones(1, 2, dtype=torch.long)),
    "negative_prompt_attention_mask": ("a", [[1]], 1),
    "watermarking_config": (1, "a", {"a": 1}),
    "repetition_penalty": (*OFTEN, 0),
    "encoder_repetition_penalty": (*OFTEN, 0),
    "exponential_decay_length_penalty": (1, (1,), (-1, 1.0), (1, 0), ("a", 1.0), (1, 2, 3)),
    "no_repeat_ngram_size": FROM_0,
    "encoder_no_repeat_ngram_size": FROM_0,
    "bad_words_ids": (1, [], [1], [[]], [[-1]], [["a"]], "a"),
    "sequence_bias": (1, "a"),
    "suppress_tokens": (*IDS, 1),
    "begin_suppress_tokens": (*IDS, 1),
    "forced_eos_token_id": IDS,
    "eos_token_id": IDS,
    "pad_token_id": (*IDS, [1]),
    "prefix_allowed_tokens_fn": (1, "a"),
    "stopping_criteria": (1, print, "a"),
    "logits_processor": (1, print, "a"),
    "max_new_tokens": COUNT,
    "min_new_tokens": FROM_0,
    "max_time": (*OFTEN, 0),
    "stop_strings": (1, "", [], [""], [1]),
    "tokenizer": (object(), "a", 1),
    "num_return_sequences": COUNT,
    "streamer": (1, "stdout", print),
    "generation_config": (1, {"top_p": 0.5}, "greedy"),
    "cache_implementation": (1, "fastest", ["static"]),
    "cache_config": (1, "a"),
    "max_cache_len": COUNT,
    "prefill_chunk_size": COUNT,
    "compile_config": (1, True, {}),
    "assistant_model": (1, "me/small", torch.nn.Linear(1, 1)),
    "assistant_tokenizer": (object(), "a"),
    "assistant_confidence_threshold": (*OFTEN, 2),
    "assistant_early_exit": COUNT,
    "assistant_ensemble_weight": (*OFTEN, 0, 1),
    "assistant_lookbehind": COUNT,
    "target_lookbehind": COUNT,
    "num_assistant_tokens": COUNT,
    "num_assistant_tokens_schedule": (1, "fast", True),
    "prompt_lookup_num_tokens": COUNT,
    "max_matching_ngram_size": COUNT,
    "speculation_type": (1, "medusa", True),
}
FLAGS = sorted(VALUES.keys() - SENSELESS.keys())
ROWS = [(name, value) for name, values in SENSELESS.items() for value in values] + [
    (name, value) for name in FLAGS for value in (1, 0, "yes", [], 0.5)
]


def needed(name, pipe):
    """What an argument needs to have an effect."""
    found = {}
    names = [name]
    while missing := [one for key in names for one in NEEDS.get(key, ())[:1] if one not in names]:
        objects = {"assistant_model": pipe.model, "tokenizer": pipe.processor.tokenizer}
        found |= {one: objects.get(one, VALUES[one].example) for one in missing}
        names += missing
    return found


def test_the_table_of_this_test_is_whole():
    assert SENSELESS.keys() <= VALUES.keys()
    assert all(VALUES[name].example is True for name in FLAGS)
    assert set(SAMPLING) <= VALUES.keys()


@pytest.mark.parametrize(("name", "value"), ROWS, ids=[f"{name}-{row}" for row, (name, _) in enumerate(ROWS)])
def test_a_senseless_value_is_refused_by_name(pipe, name, value):
    arguments = needed(name, pipe) | {name: value}
    with pytest.raises((TypeError, ValueError), match=f"`{name}`"):
        text_arguments(arguments, pipe.model.generation_config)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            {"do_sample": True, "top_p": 5},
            r"`top_p` must lie in \[0, 1\], got 5: write for example top_p=0.9",
        ),
        ({"do_sample": True, "temperature": -1}, "`temperature` must be positive, got -1: use do_sample=False"),
        ({"repetition_penalty": 0}, "`repetition_penalty` must be positive, got 0: write for example"),
        ({"num_beams": 0}, "`num_beams` must be at least 1, got 0: write for example num_beams=4"),
        ({"min_new_tokens": 9, "max_new_tokens": 4}, "`min_new_tokens` must be at most `max_new_tokens`, 4, got 9"),
        ({"min_new_tokens": 999}, "`min_new_tokens` must be at most `max_new_tokens`, 512, got 999"),
        ({"speculation_type": "dflash"}, "`speculation_type` must come together with `assistant_model`"),
        ({"cache_implementation": "static", "use_cache": False}, "cache_implementation"),
        ({"max_cache_len": 9, "cache_implementation": "dynamic"}, "`max_cache_len` must come together with"),
        ({"forced_eos_token_id": 3, "suppress_tokens": [3]}, "forced_eos_token_id"),
    ],
)
def test_what_the_errors_say(pipe, arguments, words):
    with pytest.raises(ValueError, match=words):
        pipe.chat(HELLO, **arguments)
    config = GenerationConfig()
    for name, value in arguments.items():
        setattr(config, name, value)
    with pytest.raises(ValueError, match=words):
        pipe.chat(HELLO, generation_config=config)


def test_arguments_of_answer_are_given_or_refused(pipe, image):
    """`ask` and `chat` set some arguments of `answer` themselves; all others are their own, or passed on."""
    given = set(inspect.signature(pipe.chat).parameters) | {"roles", "parse_special_tokens"}
    for name in inspect.signature(answer).parameters.keys() - given:
        for call in (lambda **one: pipe.chat(HELLO, **one), lambda **one: pipe.ask(image, ["a", "b"], **one)):
            with pytest.raises(TypeError, match=f"`{name}` must be left out of `ask` and `chat`, got True: "):
                call(**{name: True})
    for name in ("roles", "parse_special_tokens"):
        for value in (3, "x", [1], object()):
            with pytest.raises((TypeError, ValueError), match=f"`{name}`"):
                pipe.ask(image, "a", **{name: value})


def test_a_given_processor_is_not_changed(pipe):
    loaded = JanusProPipeline.from_pretrained(
        TINY_MODEL, model=pipe.model, processor=pipe.processor, parse_special_tokens=False
    )
    assert (loaded.processor.parse_special_tokens, pipe.processor.parse_special_tokens) == (False, True)
    assert loaded.processor.tokenizer is pipe.processor.tokenizer


def test_a_tokenizer_that_nothing_uses_is_refused(pipe):
    for tokenizer in (object(), pipe.processor.tokenizer):
        with pytest.raises(ValueError, match="`tokenizer` must come together with `stop_strings`"):
            pipe.chat(HELLO, tokenizer=tokenizer)


def test_numbers_of_every_kind_are_plain(golden_pipe):
    expected = golden_pipe.chat(HELLO, repetition_penalty=2.0, no_repeat_ngram_size=3, max_new_tokens=6)
    for number, integer in ((2, np.int64(3)), (np.float32(2), np.int32(3))):
        said = {"repetition_penalty": number, "no_repeat_ngram_size": integer, "max_new_tokens": np.int16(6)}
        assert golden_pipe.chat(HELLO, **said) == expected


# transformers' own errors of these do not name them, or its methods take them by other names.
NOT_SENT = ("streamer", "generation_config", "num_return_sequences", "cache_implementation", "max_cache_len")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (name, value)
        for name, value in ROWS
        if name
        not in ("streamer", "generation_config", "num_return_sequences", "cache_implementation", "max_cache_len")
    ],
)
def test_generate_refuses_the_same_values(golden_pipe, name, value):
    ids = torch.ones(1, 3, dtype=torch.long)
    arguments = {"do_sample": True, "max_new_tokens": 1} | {name: value}
    with pytest.raises((TypeError, ValueError), match=f"`{name}`"):
        golden_pipe.model.generate(ids, **arguments)


def test_generate_takes_what_its_callers_pass_with_every_call(golden_pipe):
    ids = torch.ones(1, 3, dtype=torch.long)
    plain = golden_pipe.model.generate(ids, max_new_tokens=3)
    usual = {"temperature": 0, "top_p": None, "num_beams": 1, "do_sample": False, "use_cache": True}
    assert torch.equal(golden_pipe.model.generate(ids, max_new_tokens=3, **usual), plain)
    with pytest.raises(ValueError, match="`min_new_tokens` must be at most"):
        golden_pipe.model.generate(ids, max_new_tokens=3, min_new_tokens=4)
    with pytest.raises(ValueError, match="`speculation_type` must be left out"):
        golden_pipe.model.generate(ids, max_new_tokens=3, speculation_type="dflash")


@pytest.mark.parametrize("parts", [(None, None), ("model", "processor"), (3, None), (None, object())])
def test_a_pipeline_is_made_of_a_model_and_a_processor(pipe, parts):
    with pytest.raises(TypeError, match="`model` must be the model of a Janus-Pro"):
        JanusProPipeline(*parts)
    with pytest.raises(TypeError, match="`processor` must be the processor of a Janus-Pro"):
        JanusProPipeline(pipe.model, parts[1])
    with pytest.raises(TypeError, match="`model` must be the model of a Janus-Pro"):
        JanusProPipeline(pipe.processor, pipe.model)
