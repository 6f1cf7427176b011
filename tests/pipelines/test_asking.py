"""`ask` and `chat`: the prompt that the model reads, the answer, and refusals."""

import copy

import pytest
import torch
from PIL import Image
from tiny_pipes import CONTEXT
from transformers import TextIteratorStreamer, pipeline


class Listener:
    """A streamer that records token ids: first those of the prompt, then each new one."""

    def __init__(self):
        self.ids, self.ended = [], False

    def put(self, ids):
        self.ids.append(ids.flatten().tolist())

    def end(self):
        self.ended = True


@pytest.mark.parametrize(("name", "row"), [("conv1", 0), ("conv2", 1)])
def test_golden_conversations(golden_pipe, golden, golden_dir, manifest, name, row):
    conversation = manifest["strings"][name]
    messages = [dict(message) for message in conversation["messages"]]
    messages[0]["images"] = [str(golden_dir / "images" / f"{image}.png") for image in conversation["images"]]
    expected = golden["und.batch.greedy8"][row].tolist()
    eos = manifest["special_ids"]["eos"]
    assert eos not in expected  # the original ran without a stop token

    listener = Listener()
    answer = golden_pipe.chat(messages[:-1], max_new_tokens=8, streamer=listener)
    prompt, *new = listener.ids
    mask = golden["und.batch.attention_mask"][row].bool()
    assert prompt == golden["und.batch.input_ids"][row][mask].tolist()
    assert [i for ids in new for i in ids] == expected
    assert answer == golden_pipe.processor.decode(expected, skip_special_tokens=True).strip()


def test_ask_is_a_chat_of_one_turn(pipe, image):
    content = [{"type": "image", "image": image}, {"type": "text", "text": "what is this?"}]
    expected = pipe.chat([{"role": "user", "content": content}], max_new_tokens=6)
    assert pipe.ask(image, "what is this?", max_new_tokens=6) == expected
    assert pipe.ask([image], "what is this?", max_new_tokens=6) == expected


def test_many_questions_are_answered_as_one_by_one(golden_pipe, image):
    """Answers to a list of questions, whose common beginning is run once, are those to single questions."""
    texts = ["what is this?", "what colour is the large thing on the left?", "a", "what is this?"]
    for images in (image, [image, Image.new("RGB", (64, 64))]):
        alone = [golden_pipe.ask(images, text, max_new_tokens=8) for text in texts]
        assert golden_pipe.ask(images, texts, max_new_tokens=8) == alone
        assert len(set(alone)) > 1
    assert golden_pipe.ask(image, texts[:1], max_new_tokens=8) == [golden_pipe.ask(image, texts[0], max_new_tokens=8)]
    assert golden_pipe.ask(image, []) == []


@pytest.mark.parametrize(
    "setting", [{"num_beams": 2}, {"use_cache": False}, {"cache_implementation": "static"}], ids=str
)
def test_many_questions_refuse_what_their_cache_cannot(pipe, image, setting):
    with pytest.raises(ValueError, match=f"cannot be answered with {next(iter(setting))}: ask one at a time"):
        pipe.ask(image, ["one?", "two?"], **setting)


def test_a_static_cache_answers_alike(golden_pipe, image):
    question = "What is in the image?"
    expected = golden_pipe.ask(image, question, max_new_tokens=12)
    assert golden_pipe.ask(image, question, max_new_tokens=12, cache_implementation="static") == expected
    assert expected


def test_many_questions_encode_the_image_once(golden_pipe, image):
    seen = []
    hook = golden_pipe.model.model.vision_model.register_forward_pre_hook(
        lambda module, args: seen.append(len(args[0]))
    )
    try:
        golden_pipe.ask(image, ["one?", "two?", "three?"], max_new_tokens=2)
    finally:
        hook.remove()
    assert seen == [1]


@pytest.fixture
def questions(own_pipe, monkeypatch):
    """A pipeline whose `generate` always returns one end-of-text, and the list of its calls' arguments."""
    calls = []

    def generate(input_ids, **kwargs):
        calls.append({"input_ids": input_ids, **kwargs})
        return torch.cat([input_ids, torch.full((1, 1), own_pipe.processor.eos_token_id)], dim=1)

    monkeypatch.setattr(own_pipe.model, "generate", generate)
    return own_pipe, calls


def test_images_of_a_question_stay_in_order(questions, image):
    pipe, calls = questions
    dark = Image.new("RGB", (64, 64))
    assert pipe.ask([image, dark, image], "same?") == ""
    pixels = calls[0]["pixel_values"]
    assert pixels.shape[0] == 3
    assert torch.equal(pixels[0], pixels[2])
    assert torch.equal(pixels[1], torch.full_like(pixels[1], -1))
    per_image = pipe.model.config.vision_config.num_image_tokens
    assert (calls[0]["input_ids"] == pipe.processor.image_token_id).sum() == 3 * per_image


def test_conversation_of_several_turns(questions, image):
    pipe, calls = questions
    turns = [
        {"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": "red?"}]},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": "sure?"},
    ]
    pipe.chat(turns)
    text = pipe.processor.decode(calls[0]["input_ids"][0], skip_special_tokens=False)
    assert text.index("red?") < text.index("yes") < text.index("sure?")
    assert text.endswith("<|Assistant|>:")
    assert calls[0]["pixel_values"].shape[0] == 1


def test_system_prompt(questions):
    pipe, calls = questions
    for value in (
        {},
        {"system_prompt": "default"},
        {"system_prompt": None},
        {"system_prompt": ""},
        {"system_prompt": "Be brief."},
    ):
        pipe.chat([{"role": "user", "content": "hi"}], **value)
    texts = [pipe.processor.decode(call["input_ids"][0, 1:]) for call in calls]
    bare = "<|User|>: hi\n\n<|Assistant|>:"
    default = f"{pipe.processor.system_prompt}\n\n{bare}"
    assert texts == [default, default, bare, bare, f"Be brief.\n\n{bare}"]


def test_generation_arguments_are_passed_on(questions):
    pipe, calls = questions
    pipe.chat([{"role": "user", "content": "hi"}], max_new_tokens=7, do_sample=True, temperature=0.7, num_beams=2)
    pipe.chat([{"role": "user", "content": "hi"}])
    assert {k: calls[0][k] for k in ("max_new_tokens", "do_sample", "temperature", "num_beams")} == {
        "max_new_tokens": 7,
        "do_sample": True,
        "temperature": 0.7,
        "num_beams": 2,
    }
    assert (calls[1]["do_sample"], calls[1]["eos_token_id"]) == (False, pipe.processor.eos_token_id)


def test_answer_ends_with_the_context(questions):
    pipe, calls = questions
    pipe.chat([{"role": "user", "content": "fox " * 100}], max_new_tokens=10_000)
    assert calls[0]["max_new_tokens"] == CONTEXT - calls[0]["input_ids"].shape[1]


def test_conversation_longer_than_the_context(pipe, image):
    with pytest.raises(
        ValueError, match=r"takes \d+ tokens and the model's context holds 512.*Leave out earlier turns"
    ):
        pipe.ask([image] * 9, "what are these?")


def test_streamer_receives_the_answer(pipe, image):
    streamer = TextIteratorStreamer(pipe.processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
    answer = pipe.ask(image, "what is this?", max_new_tokens=12, streamer=streamer)
    assert "".join(streamer).strip() == answer
    assert answer


def test_sampled_answers_vary(pipe, image):
    torch.manual_seed(0)
    answers = {pipe.ask(image, "?", max_new_tokens=6, do_sample=True, temperature=2.0) for _ in range(4)}
    assert len(answers) > 1


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "non-empty list of messages"),
        ([{"role": "robot", "content": "hi"}], "role of message 0"),
        ([{"role": "user", "content": "<image_placeholder> what?"}], "1 placeholders and 0 images"),
    ],
)
def test_bad_conversations(pipe, messages, message):
    with pytest.raises(ValueError, match=message):
        pipe.chat(messages)


def test_missing_image(pipe):
    with pytest.raises(FileNotFoundError, match="no-such-image.png"):
        pipe.ask("no-such-image.png", "what is this?")


def test_transformers_pipeline(pipe, image, tmp_path):
    pipe.save_pretrained(tmp_path)
    content = [{"type": "image", "image": image}, {"type": "text", "text": "what is this?"}]
    messages = [{"role": "user", "content": content}]
    expected = pipe.chat(messages, max_new_tokens=6)
    from_objects = pipeline("image-text-to-text", model=pipe.model, processor=pipe.processor)
    from_path = pipeline("image-text-to-text", model=str(tmp_path), device="cpu")
    for answer in (from_objects, from_path):
        result = answer(text=messages, max_new_tokens=6, return_full_text=False, generate_kwargs={"do_sample": False})
        assert result[0]["generated_text"].strip() == expected


def test_tokens_without_a_row_in_the_embedding_table_are_refused(own_pipe, image):
    """Their ids would be read as image codes, which begin where the text ids end."""
    own_pipe.processor = copy.deepcopy(own_pipe.processor)
    tokenizer, rows = own_pipe.processor.tokenizer, own_pipe.model.config.text_config.vocab_size
    tokenizer.add_tokens([f"<word{number}>" for number in range(rows - len(tokenizer) + 1)])
    last, beyond = tokenizer.convert_ids_to_tokens([rows - 1, rows])
    message = rf"must have ids below {rows}, the number of rows .* got \[{rows}\]: call model.resize_token_embeddings"
    with pytest.raises(ValueError, match=message):
        own_pipe.ask(image, f"What is {beyond}?", max_new_tokens=1)
    with pytest.raises(ValueError, match=message):
        own_pipe(f"a {beyond}", output_type="latent")
    with pytest.raises(ValueError, match=message):
        own_pipe("a fox", negative_prompt=beyond, output_type="latent")
    own_pipe.ask(image, f"What is {last}?", max_new_tokens=1)
    own_pipe.model.resize_token_embeddings(len(tokenizer))
    own_pipe.ask(image, f"What is {beyond}?", max_new_tokens=1)


def test_images_in_nested_lists_are_refused_for_several_questions(pipe, image):
    with pytest.raises(ValueError, match="`image` must be one image or a flat list for several questions"):
        pipe.ask([[image], [image]], ["what is this?", "and this?"])
