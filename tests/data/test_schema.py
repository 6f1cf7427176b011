"""Adapters turn the columns of other data sets into raw rows."""

import copy

import pytest

from janus_hf.data.schema import ADAPTERS, RowError, choose_adapter, clean_midjourney


P = object()  # adapters do not read images
ASK = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]


@pytest.mark.parametrize(
    ("row", "adapter", "expected"),
    [
        ({"messages": ASK}, "messages", {"messages": ASK, "images": []}),
        ({"messages": ASK, "images": [P]}, "messages", {"messages": ASK, "images": [P]}),
        ({"messages": ASK, "image": P}, "messages", {"messages": ASK, "images": [P]}),
        (
            {"id": 1, "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "image": P},
            "llava",
            {"messages": ASK, "images": [P]},
        ),
        (
            {"texts": [{"user": "q", "assistant": "a", "source": "s"}], "images": [P]},
            "texts",
            {"messages": ASK, "images": [P]},
        ),
        ({"question": "q", "answer": "a", "image": P}, "question", {"messages": ASK, "images": [P]}),
        ({"instruction": "q", "input": "", "output": "a"}, "question", {"messages": ASK, "images": []}),
        ({"prompt": "p", "image": P}, "drawing", {"prompt": "p", "image": P}),
        ({"caption": "p", "image": P}, "caption", {"prompt": "p", "image": P}),
        ({"text": "p", "image": P}, "caption", {"prompt": "p", "image": P}),
        ({"__key__": "1", "txt": "p", "jpg": P}, "caption", {"prompt": "p", "image": P}),
        ({"label": 1, "image": P}, "label", {"prompt": "great white shark", "image": P}),
        ({"Prompt": "a cat --ar 3:2 --v 5", "image": P}, "midjourney", {"prompt": "a cat", "image": P}),
        ({"text": "words"}, "text", {"text": "words"}),
    ],
)
def test_columns_choose_their_adapter(row, adapter, expected):
    before = copy.copy(row)
    chosen = choose_adapter(list(row))
    assert chosen.name == adapter
    assert chosen.convert(row, ["tench, Tinca tinca", "great white shark, man-eater"]) == expected
    assert row == before


def test_task_and_name_decide_between_adapters():
    columns = ["caption", "image"]
    assert choose_adapter(columns).name == "caption"
    assert choose_adapter(columns, task="understanding").name == "describe"
    described = ADAPTERS["describe"].convert({"caption": "a dog", "image": P}, None)
    assert described["images"] == [P]
    assert described["messages"][1] == {"role": "assistant", "content": "a dog"}
    assert choose_adapter(["prompt", "image"], name="midjourney").name == "midjourney"


def test_unknown_columns_name_the_known_schemas():
    with pytest.raises(ValueError, match=r"got \['bar', 'foo'\]") as error:
        choose_adapter(["foo", "bar"])
    assert all(f"  {name}: " in str(error.value) for name in ADAPTERS)
    with pytest.raises(ValueError, match="for the task 'drawing'"):
        choose_adapter(["messages"], task="drawing")
    with pytest.raises(ValueError, match="`adapter` must be one of"):
        choose_adapter(["messages"], name="nonsense")
    with pytest.raises(ValueError, match="`task` must be one of"):
        choose_adapter(["messages"], task="sleeping")


@pytest.mark.parametrize(
    ("adapter", "row", "reason"),
    [
        ("caption", {"caption": " ", "image": P}, "empty_text"),
        ("caption", {"caption": "a", "image": None}, "missing_picture"),
        ("label", {"label": 7, "image": P}, "bad_label"),
        ("label", {"label": None, "image": P}, "bad_label"),
        ("label", {"label": 1.5, "image": P}, "bad_label"),
        ("llava", {"conversations": [{"role": "user"}]}, "bad_conversation"),
        ("question", {"question": "q", "answer": None}, "empty_text"),
    ],
)
def test_rows_that_cannot_be_adapted_say_why(adapter, row, reason):
    with pytest.raises(RowError) as error:
        ADAPTERS[adapter].convert(row, ["one"])
    assert error.value.reason == reason


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a red fox, oil --ar 16:9 --v 5.1", "a red fox, oil"),
        ("**a fox --s 750** - <@123> (fast)", "a fox"),
        ("https://x.com/a.png <https://y.com/b> two-tone fox", "two-tone fox"),
        ("plain", "plain"),
    ],
)
def test_midjourney_prompts_are_cleaned(prompt, expected):
    assert clean_midjourney(prompt) == expected
