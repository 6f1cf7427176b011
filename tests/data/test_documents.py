"""Ids of documents are those of inference; labels are the ids that the model would write in inference."""

import pytest
import torch
from PIL import Image

from janus_hf.data.documents import IGNORE, make_document, open_images
from janus_hf.data.schema import RowError


def document(row, processor, folder="."):
    """Make the document of a raw row."""
    return make_document(row, open_images(row, folder=folder), processor)


def test_conversations_have_the_ids_of_inference(conversations, processor):
    for row in conversations:
        made = document(row, processor)
        marked = [
            turn | {"content": turn["content"].replace("<image>", processor.image_token)} for turn in row["messages"]
        ]
        images = row.get("images", [])
        if images and not any(processor.image_token in turn["content"] for turn in marked):
            marked[0]["content"] = f"{processor.image_token}\n{marked[0]['content']}"
        expected = processor(processor.apply_chat_template(marked), images or None)
        assert made.input_ids == expected["input_ids"][0].tolist()
        assert made.task == ("understanding" if images else "text")
        assert made.prompt_end == -1
        if images:
            pixels = processor.image_processor(made.images)["pixel_values"]
            assert torch.equal(pixels, expected["pixel_values"])


def test_answers_and_nothing_else_are_trained(conversations, processor):
    end = processor.tokenizer.eos_token
    for row in conversations:
        made = document(row, processor)
        assert made.labels[0] == IGNORE
        assert all(label in (IGNORE, token) for label, token in zip(made.labels, made.input_ids, strict=True))
        trained = processor.tokenizer.decode([label for label in made.labels if label != IGNORE])
        answers = [turn["content"] for turn in row["messages"] if turn["role"] == "assistant"]
        assert trained == "".join(f" {answer}{end}" for answer in answers)


@pytest.mark.parametrize("answer", ["Hi!", "a dog"])  # " a" is one id, " " and "H" are two
def test_an_answer_begins_where_the_prompt_of_inference_ends(answer, processor):
    turns = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": answer}]
    made = document({"messages": turns}, processor)
    prompt = processor(processor.apply_chat_template(turns[:1], add_generation_prompt=True))["input_ids"][0].tolist()
    assert made.input_ids[: len(prompt)] == prompt
    assert made.labels[: len(prompt)] == [IGNORE] * len(prompt)
    assert made.labels[len(prompt) :] == made.input_ids[len(prompt) :]


def test_content_parts_are_read(conversations, processor, make_image):
    parts = [{"type": "image"}, {"type": "text", "text": "What is this?"}]
    turns = [{"role": "user", "content": parts}, {"role": "assistant", "content": "Noise."}]
    expected = document(conversations[0], processor)
    assert document({"messages": turns, "images": [make_image(1)]}, processor).input_ids == expected.input_ids


def test_drawings_are_the_samplers_prompt_and_trained_codes(drawings, processor):
    made = document(drawings[0], processor)
    prompt = processor.prepare_image_generation(drawings[0]["prompt"])["input_ids"][0].tolist()
    assert made.input_ids == prompt
    assert made.prompt_end == len(prompt) - 1
    assert prompt[made.prompt_end] == processor.boi_token_id
    made.add_codes([400, 401])
    assert made.input_ids == [*prompt, 400, 401]
    assert made.labels == [IGNORE] * len(prompt) + [400, 401]


def test_plain_text_is_trained_from_the_first_word_to_the_end(processor):
    made = document({"text": "Some words."}, processor)
    assert made.input_ids == [*processor("Some words.")["input_ids"][0].tolist(), processor.eos_token_id]
    assert made.labels == [IGNORE, *made.input_ids[1:]]


def test_relative_paths_start_in_the_folder(tmp_path, processor, make_image):
    (tmp_path / "sub").mkdir()
    make_image(3).save(tmp_path / "sub" / "a.png")
    row = {
        "messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}],
        "images": ["sub/a.png"],
    }
    assert document(row, processor, tmp_path).images == [(tmp_path / "sub" / "a.png").read_bytes()]


ASK, SAY = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
MARKED = {"role": "user", "content": "<image> <image>"}
GREY = Image.new("RGB", (8, 8))


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "p", "image": "nowhere.png"}, "missing_picture"),
        ({"prompt": "p", "image": None}, "missing_picture"),
        ({"prompt": "p", "image": {"bytes": b"no picture", "path": None}}, "bad_picture"),
        ({"prompt": "", "image": GREY}, "empty_text"),
        ({"prompt": "a <image_placeholder>", "image": GREY}, "picture_mismatch"),
        ({"messages": [MARKED, SAY], "images": [GREY]}, "picture_mismatch"),
        ({"messages": [MARKED, SAY]}, "picture_mismatch"),
        ({"messages": [ASK, SAY | {"content": "<image>"}], "images": [GREY]}, "picture_mismatch"),
        ({"messages": [ASK, ASK]}, "bad_conversation"),
        ({"messages": [ASK]}, "bad_conversation"),
        ({"messages": []}, "bad_conversation"),
        ({"messages": "hello"}, "bad_conversation"),
        ({"messages": [ASK, SAY | {"content": 3}]}, "bad_conversation"),
        ({"messages": [ASK, SAY | {"content": " "}]}, "empty_text"),
        ({"text": ""}, "empty_text"),
    ],
)
def test_rows_that_cannot_be_trained_on_say_why(row, reason, processor):
    with pytest.raises(RowError) as error:
        document(row, processor)
    assert error.value.reason == reason
