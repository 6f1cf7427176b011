"""Every argument of transformers' `generate` is used by `ask` and `chat`, or refused by name."""

import copy
import inspect
from dataclasses import dataclass, field

import pytest
import torch
from transformers import (
    CompileConfig,
    GenerationConfig,
    GenerationMixin,
    LogitsProcessorList,
    StoppingCriteriaList,
    WatermarkingConfig,
)
from transformers.generation import MaxLengthCriteria

from janus_hf import JanusProForConditionalGeneration
from janus_hf.answering import answer
from janus_hf.generation.text.text_arguments import NEEDS, PASSED_ON, REFUSED, USED
from janus_hf.generation.text.text_values import VALUES


HELLO = [{"role": "user", "content": "hi"}]
SORTED = PASSED_ON | USED | REFUSED.keys()
# Entries of a configuration that say where it comes from.
ORIGIN = {"transformers_version", "_from_model_config"}


def test_every_argument_is_in_one_group():
    fields = set(GenerationConfig().to_dict()) - ORIGIN
    arguments = set(inspect.signature(GenerationMixin.generate).parameters) - {"self", "kwargs"}
    extracted = {"tokenizer", "assistant_tokenizer", "trust_remote_code"}
    fed = set(inspect.signature(JanusProForConditionalGeneration.forward).parameters) - {"self", "kwargs"}
    assert (fields | arguments | extracted | fed) - SORTED == set()
    groups = [PASSED_ON, USED, REFUSED.keys()]
    assert sum(map(len, groups)) == len(SORTED)
    assert NEEDS.keys() <= PASSED_ON | USED
    assert VALUES.keys() == PASSED_ON | USED


@dataclass
class Recorder:
    """A pipeline whose `generate` always returns one end-of-text, and the arguments of its calls."""

    pipe: object
    calls: list = field(default_factory=list)


@pytest.fixture
def recorder(own_pipe, monkeypatch):
    recorder = Recorder(own_pipe)

    def generate(input_ids, **kwargs):
        recorder.calls.append(kwargs)
        end = torch.full((len(input_ids), 1), own_pipe.processor.eos_token_id)
        return torch.cat([input_ids, end], dim=1)

    monkeypatch.setattr(own_pipe.model, "generate", generate)
    return recorder


# Values of arguments whose row in the table has no example, or one that asks for nothing.
OBJECTS = {
    "max_new_tokens": 9,
    "use_cache": False,
    "logits_processor": LogitsProcessorList(),
    "stopping_criteria": StoppingCriteriaList([MaxLengthCriteria(400)]),
    "prefix_allowed_tokens_fn": lambda batch, ids: [0],
    "watermarking_config": WatermarkingConfig(),
    "compile_config": CompileConfig(),
}


def given(name, pipe):
    """The argument with a value that asks for something, and what it needs to have an effect."""
    tokenizer = pipe.processor.tokenizer
    values = {key: row.example for key, row in VALUES.items()} | OBJECTS
    values |= {"assistant_model": pipe.model, "tokenizer": tokenizer, "assistant_tokenizer": tokenizer}
    arguments = {name: values[name]}
    while missing := [one for key in arguments for one in NEEDS.get(key, ())[:1] if one not in arguments]:
        arguments |= {one: values[one] for one in missing}
    return arguments


@pytest.mark.parametrize("name", sorted(PASSED_ON | USED - {"generation_config", "num_return_sequences", "streamer"}))
def test_an_argument_reaches_generate(recorder, name):
    arguments = given(name, recorder.pipe)
    recorder.pipe.chat(HELLO, **arguments)
    assert recorder.calls[0][name] is arguments[name] or recorder.calls[0][name] == arguments[name]


@pytest.mark.parametrize(
    "name", sorted((PASSED_ON | USED) & set(GenerationConfig().to_dict()) - {"num_return_sequences"})
)
def test_a_field_of_a_configuration_reaches_generate(recorder, name):
    arguments = given(name, recorder.pipe)
    fields = set(GenerationConfig().to_dict())
    config = GenerationConfig()
    for field_name in arguments.keys() & fields:  # set afterwards, because the constructor checks single values
        setattr(config, field_name, arguments[field_name])
    rest = {key: value for key, value in arguments.items() if key not in fields}
    recorder.pipe.chat(HELLO, generation_config=config, **rest)
    assert recorder.calls[0][name] == arguments[name]
    assert "generation_config" not in recorder.calls[0]  # transformers warns of both it and single arguments


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_an_argument_without_an_effect_on_answers_is_refused(recorder, name):
    with pytest.raises(ValueError, match=rf"`{name}` must be left out, got .*: .+"):
        recorder.pipe.chat(HELLO, **{name: 2})
    with pytest.raises(ValueError, match=f"`{name}` must be left out"):
        answer(recorder.pipe.model, recorder.pipe.processor, [HELLO], **{name: 2})
    if name in GenerationConfig().to_dict():
        config = GenerationConfig()
        setattr(config, name, 2)
        with pytest.raises(ValueError, match=f"`{name}` of `generation_config` must be left out"):
            recorder.pipe.chat(HELLO, generation_config=config)
    assert not recorder.calls


@pytest.mark.parametrize("name", sorted(NEEDS))
def test_an_argument_that_needs_another_one(recorder, name):
    with pytest.raises(ValueError, match=f"`{name}` must come together with `{NEEDS[name][0]}`"):
        recorder.pipe.chat(HELLO, **{name: given(name, recorder.pipe)[name]})
    assert not recorder.calls


@pytest.mark.parametrize("value", [1, True, "x", False])
def test_an_unknown_argument_is_refused(recorder, value):
    with pytest.raises(TypeError, match="`colour` must be an argument of text generation"):
        recorder.pipe.chat(HELLO, colour=value)


def test_arguments_decide_over_the_configuration_and_it_over_the_defaults(recorder):
    pipe = recorder.pipe
    config = GenerationConfig(max_new_tokens=3, do_sample=True, temperature=9.0, eos_token_id=5)
    pipe.chat(HELLO)
    pipe.chat(HELLO, generation_config=config)
    pipe.chat(HELLO, generation_config=config, max_new_tokens=4, temperature=2.0, eos_token_id=6)
    keys = ("max_new_tokens", "do_sample", "temperature", "eos_token_id")
    said = [tuple(call.get(key) for key in keys) for call in recorder.calls]
    room = recorder.calls[0]["max_new_tokens"]
    assert said == [(room, False, None, pipe.processor.eos_token_id), (3, True, 9.0, 5), (4, True, 2.0, 6)]
    assert room > 400  # 512, or what the context leaves


def test_a_changed_copy_of_the_models_own_configuration(recorder):
    """It holds ids that belong to the model, which are no arguments, and they are not refused."""
    own = recorder.pipe.model.generation_config
    own.update(bos_token_id=1, temperature=0.5, max_length=99)  # as some repositories state without `do_sample`
    changed = copy.deepcopy(own)
    changed.max_new_tokens = 3
    recorder.pipe.chat(HELLO, generation_config=changed)
    assert recorder.calls[0]["max_new_tokens"] == 3


class Listener:
    """A streamer that counts the new ids."""

    def __init__(self):
        self.count = -1  # the prompt comes first

    def put(self, ids):
        self.count += 1

    def end(self):
        pass


def test_a_configuration_decides_how_long_and_how_random_an_answer_is(golden_pipe, image):
    answers = set()
    for seed in range(4):
        torch.manual_seed(seed)
        listener = Listener()
        config = GenerationConfig(max_new_tokens=3, do_sample=True, temperature=9.0)
        answers.add(golden_pipe.ask(image, "what?", generation_config=config, streamer=listener))
        assert 0 < listener.count <= 3
    assert len(answers) > 1


@pytest.mark.parametrize("count", [2, 3])
def test_several_answers_to_a_question_are_refused(recorder, image, count):
    for arguments in (
        {"num_return_sequences": count, "do_sample": True},
        {"generation_config": GenerationConfig(num_return_sequences=count, do_sample=True)},
    ):
        for question in ("one?", ["one?", "two?"]):
            with pytest.raises(ValueError, match="`num_return_sequences` must be 1, got more: there is one answer"):
                recorder.pipe.ask(image, question, **arguments)
    recorder.pipe.chat(HELLO, num_return_sequences=1)


def test_stop_strings_need_no_tokenizer(golden_pipe, image):
    whole = golden_pipe.ask(image, "what?", max_new_tokens=12)
    stop = whole[3:5]
    assert golden_pipe.ask(image, "what?", max_new_tokens=12, stop_strings=[stop]) in whole
    assert len(golden_pipe.ask(image, "what?", max_new_tokens=12, stop_strings=[stop])) < len(whole)


def test_images_are_not_left_out_by_continuous_batching(recorder, image):
    with pytest.raises(ValueError, match="`cache_implementation` must not be 'paged'"):
        recorder.pipe.ask(image, "what?", cache_implementation="paged")


def test_guesses_and_beams_are_refused_together(recorder):
    with pytest.raises(ValueError, match="`prompt_lookup_num_tokens` must be left out with `num_beams`"):
        recorder.pipe.chat(HELLO, prompt_lookup_num_tokens=2, num_beams=2)


def test_several_conversations_are_answered_one_by_one(golden_pipe, image):
    shown = [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": "what?"}]}]
    conversations = [HELLO, shown, [*shown, {"role": "assistant", "content": "a"}, *HELLO]]
    alone = [golden_pipe.chat(one, max_new_tokens=6) for one in conversations]
    assert golden_pipe.chat(conversations, max_new_tokens=6) == alone
    assert golden_pipe.chat(conversations[:1], max_new_tokens=6) == alone[:1]
    assert len(set(alone)) > 1


@pytest.mark.parametrize("conversations", [[HELLO, []], [HELLO, HELLO[0]], [HELLO, "hi"], [HELLO, None], [[]]])
def test_several_conversations_of_which_one_is_none(pipe, conversations):
    with pytest.raises(ValueError, match=rf"`messages\[{len(conversations) - 1}\]` must be"):
        pipe.chat(conversations)


def test_a_streamer_shows_one_answer(pipe, image):
    for call in (
        lambda streamer: pipe.chat([HELLO, HELLO], streamer=streamer),
        lambda streamer: pipe.ask(image, ["one?", "two?"], streamer=streamer),
    ):
        with pytest.raises(ValueError, match="`streamer` must be None with several"):
            call(Listener())


@pytest.mark.parametrize("value", [None, 3, [None], ["a", None]])
def test_a_question_is_text(pipe, image, value):
    with pytest.raises(TypeError, match="`question` must be a string or a list of strings"):
        pipe.ask(image, value)


def test_an_empty_question_asks_about_the_image_alone(golden_pipe, image):
    content = [{"type": "image", "image": image}, {"type": "text", "text": ""}]
    expected = golden_pipe.chat([{"role": "user", "content": content}], max_new_tokens=4)
    assert golden_pipe.ask(image, "", max_new_tokens=4) == expected
    assert golden_pipe.ask(image, [""], max_new_tokens=4) == [expected]
