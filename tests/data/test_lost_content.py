"""Content that no prepared row would hold is refused by name; other columns are named; `ignore` lets content pass."""

import base64
import io
import json

import datasets
import pytest

from janus_hf.data import ADAPTERS, load_prepared, prepare, prepare_mixture, prepare_rows
from janus_hf.data.reading.adapter import Adapter, Slot
from janus_hf.data.schema import SourceError, choose_adapter
from janus_hf.evaluation.benchmarks.protocol import multiple_choice_prompt
from janus_hf_cli import main
from tiny import TINY_MODEL


ASK, SAY = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
IMAGE = "an image"  # stands for an image in the tables below

# One row of every form, without optional columns.
FORMS = {
    "messages": {"messages": [ASK, SAY], "image": IMAGE},
    "llava": {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "image": IMAGE},
    "texts": {"texts": [{"user": "q", "assistant": "a"}], "image": IMAGE},
    "question": {"question": "q", "answer": "a", "image": IMAGE},
    "completion": {"prompt": "q", "completion": "a", "image": IMAGE},
    "drawing": {"prompt": "p", "image": IMAGE},
    "caption": {"caption": "p", "image": IMAGE},
    "describe": {"caption": "p", "image": IMAGE},
    "label": {"label": "p", "image": IMAGE},
    "midjourney": {"Prompt": "p", "image": IMAGE},
    "text": {"text": "words"},
}
# Columns with content that no form uses.
CONTENT = {
    "edited_image": IMAGE,
    "input_image": IMAGE,
    "conditioning_image": IMAGE,
    "image_1": IMAGE,
    "mask": IMAGE,
    "anything": IMAGE,  # known by its value
    "thumbnails": [IMAGE],
    "extra": {"width": 3, "before": IMAGE},
    "other": "pictures/0.png",
    "second": "https://example.org/0.jpg?size=1",
    "third": "data:image/png;base64,AAAA",
    "negative_prompt": "ugly",
    "originalPrompt": "p, but longer",
    "recaption": "longer",
    "tools": [{"name": "f"}],
    "functions": '[{"name": "f"}]',
    "rationale": "because",
    "hint": "look at it",
    "chosen": "a",
    "labels": [1, 2],
    "score_label": 0,
    "weight": 0.5,
    "loss_mask": [0, 1],
    "turns": [ASK, SAY],
    "kto_tag": False,
    "is_correct": False,
    "trainable": False,
    "loss_scale": 0.0,
    "C": "cat",
    "option_a": "cat",
    "distractors": ["cat"],
    "ground_truth": "red",
    "control": "refs/0",
    "before": "refs/0.tga",
    "neg": "ugly",
    "dialog": [{"from": "human", "value": "q"}],
    "audio": b"sound",
}
CONVERSATIONS = ("messages", "llava", "texts", "question", "completion")
# Columns that conversations use, and other forms must refuse.
CONTEXT = {"system": "Be brief.", "system_prompt": "Be brief.", "history": [["q1", "a1"]]}
HARMLESS = {
    "id": 3,
    "url": "https://example.org/0.png",
    "image_path": "pictures/0.png",
    "width": 70,
    "num_images": 1,
    "score": 0.5,
    "has_answer": True,
    "title": "A lighthouse",
    "tags": ["tower", "light"],
    "mask": None,
    "edited_image": {"bytes": None, "path": None},
    "system": "",
    "tools": [],
    "answer": " ",
    "meta": {"width": 3, "prompt": ""},
}


@pytest.fixture
def fill(make_image):
    """A function that puts an image in the places of a row where `IMAGE` stands."""
    images = {}

    def fill(value, seed=1):
        if value == IMAGE and isinstance(value, str):
            return images.setdefault(seed, make_image(seed))
        if isinstance(value, dict):
            return {key: fill(item, seed + 1) for key, item in value.items()}
        return [fill(item, seed + 1) for item in value] if isinstance(value, list) else value

    return fill


def named(form):
    """The argument that chooses a form which the columns alone do not choose."""
    return {"adapter": form} if form in ("describe", "midjourney") else {}


def texts(prepared, processor, name="input_ids"):
    """Return the text of every prepared row without ids of images."""
    known = [token for token in range(len(processor.tokenizer)) if token != processor.image_token_id]
    return [processor.decode([int(i) for i in prepared[n][name] if i in known]) for n in range(len(prepared))]


def encoded(image):
    """Return an image in base64."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def test_the_table_has_every_form():
    assert list(FORMS) == list(ADAPTERS)


@pytest.mark.parametrize(
    "column",
    [{"image_url": "https://example.org/id/237/200"}, {"photoPaths": ["photos/1", "photos/2"]}, {"image_file": "a"}],
    ids=lambda column: next(iter(column)),
)
@pytest.mark.parametrize("form", ["messages", "question", "text"])
def test_the_place_of_an_image_is_content_if_no_column_holds_the_image(model, processor, form, column):
    row = {name: value for name, value in FORMS[form].items() if value != IMAGE} | column
    with pytest.raises(SourceError, match=next(iter(column))):
        prepare_rows([row], model, processor)


def test_answers_in_a_prompt_are_not_trained_if_another_row_has_weights(model, processor):
    """Arrow fills the key in with None."""
    turns = [ASK, SAY, ASK]
    plain, filled = (
        prepare_rows([{"prompt": prompt, "completion": "c"}], model, processor)[0]["labels"]
        for prompt in (turns, [turn | {"weight": None} for turn in turns])
    )
    assert list(plain) == list(filled)


def test_links_to_folders_are_refused_by_name(model, processor, make_image, tmp_path):
    for folder in ("pictures", "elsewhere"):
        (tmp_path / folder).mkdir()
        make_image(1).save(tmp_path / folder / "0.png")
        (tmp_path / folder / "0.txt").write_text("a fox", encoding="utf-8")
    (tmp_path / "pictures" / "more").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    with pytest.raises(SourceError, match="'more' \\(a link to a folder\\)"):
        prepare(tmp_path / "pictures", tmp_path / "out", model, processor)
    assert len(prepare(tmp_path / "pictures", tmp_path / "out", model, processor, ignore=["more"])) == 1


@pytest.mark.parametrize("column", CONTENT)
@pytest.mark.parametrize("form", FORMS)
def test_content_that_a_form_does_not_use_is_refused_by_name(form, column, fill, model, processor):
    row = fill(FORMS[form] | {column: CONTENT[column]})
    with pytest.raises(SourceError, match=f"got {column!r} .*ignore=\\['{column}'\\] \\(--ignore {column} at"):
        prepare_rows([row], model, processor, **named(form))


@pytest.mark.parametrize("form", FORMS)
def test_ignored_content_and_harmless_columns_change_nothing(form, fill, model, processor):
    plain = prepare_rows([fill(FORMS[form])], model, processor, **named(form))
    ignored = [column for column in CONTENT if column != "chosen"]
    row = fill(FORMS[form] | {column: CONTENT[column] for column in ignored})
    prepared = prepare_rows([row], model, processor, ignore=ignored, **named(form))
    assert prepared[0]["input_ids"].tolist() == plain[0]["input_ids"].tolist()
    assert (prepared.meta["adapter"], prepared.meta["ignore"]) == (form, sorted(ignored))
    assert prepared.meta["unused_columns"] == []

    harmless = {name: value for name, value in HARMLESS.items() if name not in FORMS[form]}
    if form == "text":  # it uses no image that these addresses could belong to
        harmless = {name: value for name, value in harmless.items() if name not in ("url", "image_path")}
    prepared = prepare_rows([fill(FORMS[form]) | harmless], model, processor, **named(form))
    assert prepared[0]["input_ids"].tolist() == plain[0]["input_ids"].tolist()
    assert prepared[0]["labels"].tolist() == plain[0]["labels"].tolist()
    assert set(harmless) - set(prepared.meta["unused_columns"]) <= ADAPTERS[form].readable


@pytest.mark.parametrize("column", CONTEXT)
@pytest.mark.parametrize("form", FORMS)
def test_context_is_used_by_conversations_and_refused_by_others(form, column, fill, model, processor):
    row = fill(FORMS[form]) | {column: CONTEXT[column]}
    if form not in CONVERSATIONS:
        with pytest.raises(SourceError, match=f"got {column!r}"):
            prepare_rows([row], model, processor, **named(form))
        return
    (text,) = texts(prepare_rows([row], model, processor), processor)
    assert ("q1" in text and "a1" in text) if column == "history" else "Be brief." in text


def test_all_lost_columns_are_named_at_once(fill, model, processor):
    with pytest.raises(SourceError, match="got 'image_1' .an image., 'image_2' .an image., not used") as error:
        prepare_rows([fill(FORMS["question"] | {"image_1": IMAGE, "image_2": IMAGE})], model, processor)
    assert "--ignore image_1 --ignore image_2 at the command line" in str(error.value)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "p", "chosen": "a", "rejected": "b"}, "trl.DPOTrainer"),
        ({"chosen": [ASK, SAY], "rejected": [ASK, SAY], "images": [IMAGE]}, "trl.DPOTrainer"),
        ({"prompt": "p", "chosen": IMAGE, "rejected": IMAGE}, "preferred images"),
        ({"text": "p", "answer": "a", "image": IMAGE}, "'answer'"),
        ({"text": "p", "image_url": "https://example.org/0.png"}, "'image_url'"),
        ({"text": "p", "images": [IMAGE]}, "'images'"),
        ({"caption": "p", "label": 3, "image": IMAGE}, "'label'"),
        ({"instruction": "make it red", "input": IMAGE, "output": "done"}, "'input'"),
        ({"prompt": [ASK], "image": IMAGE}, "'prompt'"),
        ({"original_image": IMAGE, "edit_prompt": "p", "edited_image": IMAGE}, "edited_image"),
    ],
)
def test_rows_that_no_form_can_hold_are_refused(row, words, fill, model, processor, tmp_path):
    with pytest.raises(ValueError, match=words):
        prepare_rows([fill(row)], model, processor)
    with pytest.raises(ValueError, match=words):
        prepare([fill(row)], tmp_path / "out", model, processor)


DATA = "data:image/png;base64,"
SHOW = {"type": "text", "text": "q"}


@pytest.mark.parametrize(
    ("row", "images", "trained"),
    [
        ({"prompt": "q", "completion": "red", "image": IMAGE}, 1, [" red"]),
        ({"prompt": "q", "completion": "red"}, 0, [" red"]),
        ({"prompt": [ASK, SAY, ASK], "completion": [SAY], "images": [IMAGE]}, 1, [" a"]),
        ({"messages": [ASK, SAY | {"weight": 0}, ASK, {"role": "assistant", "content": "b"}]}, 0, [" b"]),
        ({"messages": [ASK, SAY | {"weight": None}, ASK, SAY | {"weight": 1}]}, 0, [" a", " a"]),
        (
            {
                "conversations": [
                    {"from": "human", "value": "q"},
                    {"from": "gpt", "value": "a", "loss": False},
                    {"from": "human", "value": "q"},
                    {"from": "gpt", "value": "b", "train": True},
                ]
            },
            0,
            [" b"],
        ),
        ({"messages": [{"role": "user", "content": [{"type": "image"}, SHOW]}, SAY], "images": [IMAGE]}, 1, [" a"]),
        ({"messages": [{"role": "user", "content": [{"type": "image", "image": IMAGE}, SHOW]}, SAY]}, 1, [" a"]),
        (
            {
                "messages": [
                    {"role": "user", "content": [SHOW, {"type": "image_url", "image_url": {"url": DATA}}]},
                    SAY,
                ]
            },
            1,
            [" a"],
        ),
        (
            {"messages": [{"role": "user", "content": [SHOW, {"type": "image_url", "image_url": DATA}]}, SAY]},
            1,
            [" a"],
        ),
        ({"messages": [ASK | {"images": [IMAGE]}, SAY]}, 1, [" a"]),
        ({"messages": [ASK, SAY | {"tool_calls": None, "name": None, "refusal": None}]}, 0, [" a"]),
        ({"messages": [{"role": "developer", "content": "Be brief."}, ASK, SAY]}, 0, [" a"]),
        ({"instruction": "q", "output": "a", "history": [["q1", "a1"]]}, 0, [" a1", " a"]),
        ({"question": "q", "choices": ["x", "y"], "answer": 1}, 0, [" B"]),
        ({"question": "q", "choices": ["x", "y"], "answer": "B"}, 0, [" B"]),
        ({"question": "q", "options": ["x", "y"], "answer": "y"}, 0, [" B"]),
        ({"question": "q", "choices": ["B", "A"], "answer": "A"}, 0, [" B"]),
    ],
)
def test_rows_are_read_as_their_authors_mean_them(row, images, trained, fill, make_image, model, processor, tmp_path):
    text = json.dumps(row).replace(json.dumps(DATA), json.dumps(DATA + encoded(make_image(3))))
    row = fill(json.loads(text))
    end = processor.tokenizer.eos_token
    for prepared in (prepare_rows([row], model, processor), prepare([row], tmp_path / "out", model, processor)):
        assert prepared.meta["skipped"] == {}
        assert len(prepared[0]["images"]) == images
        assert texts(prepared, processor, "labels") == ["".join(answer + end for answer in trained)]


def test_choices_are_listed_as_in_the_benchmarks(model, processor):
    (text,) = texts(prepare_rows([{"question": "q", "choices": ["x", "y"], "answer": 0}], model, processor), processor)
    assert multiple_choice_prompt("q", {"A": "x", "B": "y"}).strip() in text


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"question": "q", "choices": ["x", "y"], "answer": 2}, "bad_choice"),
        ({"question": "q", "choices": ["x", "y"], "answer": "z"}, "bad_choice"),
        ({"question": "q", "choices": ["x", "x"], "answer": 0}, "bad_choice"),
        ({"question": "q", "choices": "x, y", "answer": 0}, "bad_choice"),
        ({"question": "q", "choices": ["x", "y"], "answer": True}, "bad_choice"),
        ({"messages": [ASK, SAY | {"weight": 0}]}, "untrained"),
        ({"messages": [{"role": "system", "content": "one"}, ASK, SAY], "system": "two"}, "bad_conversation"),
        ({"messages": [ASK, SAY], "system": ["two"]}, "bad_conversation"),
        ({"messages": [ASK, SAY], "history": ["q1", "a1"]}, "bad_conversation"),
        ({"prompt": 3, "completion": "a"}, "bad_conversation"),
        ({"prompt": "q", "completion": ""}, "empty_text"),
        ({"messages": [ASK, {"role": "critic", "content": "a"}]}, "bad_conversation"),
    ],
)
def test_rows_that_say_nothing_clear_are_skipped(row, reason, model, processor):
    good = {column: value for column, value in row.items() if column in ("messages", "prompt", "question")}
    good = {"messages": {"messages": [ASK, SAY]}, "prompt": {"prompt": "q", "completion": "a"}}.get(
        next(iter(good)), {"question": "q", "answer": "a"}
    )
    assert prepare_rows([good, row], model, processor).meta["skipped"] == {reason: 1}


def test_rows_must_be_dicts(model, processor):
    with pytest.raises(TypeError, match="`source` must be a list of dicts, got"):
        prepare_rows(["a", "b"], model, processor)


def test_audio_is_refused_without_decoding_it(model, processor):
    rows = datasets.Dataset.from_list([{"text": "a", "speech": {"bytes": b"no sound", "path": "a.wav"}}])
    with pytest.raises(SourceError, match="got 'speech' .audio or video."):
        prepare_rows(rows.cast_column("speech", datasets.Audio()), model, processor)


def test_images_inside_turns_keep_their_order(make_image, model, processor):
    images = [make_image(n, (40 + n, 50)) for n in range(4)]
    parts = [{"type": "image", "image": images[1]}, SHOW, {"type": "image"}]
    turns = [{"role": "user", "content": "<image>q"}, SAY, {"role": "user", "content": parts}, SAY]
    row = {"messages": [*turns, ASK | {"images": [images[3]]}, SAY], "images": [images[0], images[2]]}
    expected = prepare_rows(
        [{"messages": [{"role": "user", "content": "<image>q"}, SAY], "images": [image]} for image in images],
        model,
        processor,
    )
    assert prepare_rows([row], model, processor)[0]["images"] == [expected[n]["images"][0] for n in range(4)]


@pytest.mark.parametrize(
    ("turn", "name"),
    [
        (SAY | {"tool_calls": [{"id": "1"}]}, "tool_calls"),
        (SAY | {"function_call": {"name": "f"}}, "function_call"),
        (SAY | {"reasoning_content": "hm"}, "reasoning_content"),
        (SAY | {"refusal": "no"}, "refusal"),
        (SAY | {"name": "Al"}, "name"),
        (SAY | {"weight": 0.5}, "weight"),
        (SAY | {"picture": {"bytes": b"1", "path": None}}, "picture"),
        ({"role": "tool", "content": "1"}, "tool"),
        ({"from": "function_call", "value": "{}"}, "function_call"),
        ({"from": "observation", "value": "1"}, "observation"),
        ({"role": "user", "content": [{"type": "video", "video": "0.mp4"}, SHOW]}, "video"),
        ({"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "AAAA"}}, SHOW]}, "input_audio"),
        ({"role": "user", "content": [SHOW | {"image": "0.png"}]}, "image"),
        (ASK | {"weight": 1}, "weight"),
    ],
)
@pytest.mark.parametrize("column", ["messages", "conversations"])
def test_what_a_conversation_cannot_hold_is_refused_by_name(column, turn, name, model, processor):
    """Also in a later row: the first one is fine."""
    rows = [{column: [ASK, SAY]}, {column: [ASK, SAY, turn, ASK, SAY]}]
    with pytest.raises(SourceError, match=f"got {name!r} .*--ignore {name} "):
        prepare_rows(rows, model, processor)
    kept = prepare_rows(rows, model, processor, ignore=[name])
    assert (len(kept), sum(kept.meta["skipped"].values())) in ((2, 0), (1, 1))


def test_long_strings_are_no_paths(make_image, model, processor):
    image = encoded(make_image(1))
    rows = [{"prompt": "p", "image": value} for value in (image, DATA + image, "x" * 100_000, "a\0b", {"url": "x"})]
    prepared = prepare_rows(rows, model, processor)
    assert (len(prepared), prepared.meta["skipped"]) == (2, {"missing_picture": 2, "bad_picture": 1})
    assert prepared[0]["input_ids"].tolist() == prepared[1]["input_ids"].tolist()


@pytest.mark.parametrize("late", [{"mask": "0.png"}, {"negative_prompt": "ugly"}, {"anything": {"bytes": b"1"}}])
@pytest.mark.parametrize("kind", ["list", "stream", "jsonl", "dataset"])
def test_columns_of_later_rows_are_sorted_too(kind, late, make_image, model, processor, tmp_path):
    def source(*more):
        rows = [{"prompt": "p", "image": encoded(make_image(1))} | one for one in ({}, *more)]
        if kind == "stream":
            return datasets.IterableDataset.from_generator(lambda: iter(rows))
        if kind == "jsonl":
            path = tmp_path / f"{len(more)}-{len(rows[-1])}-{sorted(rows[-1])[-1]}.jsonl"
            path.write_text("\n".join(json.dumps(row, default=lambda value: value.decode()) for row in rows))
            return path
        if kind == "dataset":
            names = dict.fromkeys(name for row in rows for name in row)
            return datasets.Dataset.from_list([{name: row.get(name) for name in names} for row in rows])
        return rows

    (name,) = late
    with pytest.raises(SourceError, match=f"got {name!r}"):
        prepare_rows(source(late), model, processor)
    with pytest.raises(SourceError, match=f"got {name!r}"):
        prepare(source(late), tmp_path / "out", model, processor)
    # Only of a stream are rows prepared before the last one is read.
    assert (tmp_path / "out").exists() == (kind == "stream")
    assert len(prepare_rows(source(late), model, processor, ignore=[name])) == 2
    assert len(prepare(source(late), tmp_path / "ignored", model, processor, ignore=[name])) == 2
    harmless = prepare(source({"id": 3, "note": "x"}), tmp_path / "harmless", model, processor)
    assert harmless.meta["unused_columns"] == ["id", "note"]
    assert load_prepared(tmp_path / "harmless").meta == harmless.meta


def test_unused_columns_are_reported(fill, model, processor, caplog, capsys, tmp_path):
    prepare_rows([fill(FORMS["drawing"]) | {"id": 3, "width": 4}], model, processor)
    assert "builtins.list: these columns are not used, because they hold no content: id, width" in caplog.text
    row = {"text": "words", "id": 3, "label": 1}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    command = ["prepare", str(tmp_path / "rows.jsonl"), "-o", str(tmp_path / "out"), "-m", str(TINY_MODEL)]
    assert main([*command, "--dtype", "float32"]) == 1
    assert "'label'" in capsys.readouterr().err
    assert main([*command, "--dtype", "float32", "--ignore", "label"]) == 0
    assert "columns not used, without content: id" in capsys.readouterr().out


def test_names_to_ignore_must_exist(fill, model, processor, tmp_path):
    rows = [fill(FORMS["drawing"]) | {"mask": "0.png"}]
    with pytest.raises(ValueError, match="`ignore` must name .*got 'msak'"):
        prepare_rows(rows, model, processor, ignore=["mask", "msak"])
    with pytest.raises(ValueError, match="`ignore` must be a list of names, got 'mask'"):
        prepare_rows(rows, model, processor, ignore="mask")
    # A name for several sources must be in one of them.
    sources = {"draw": rows, "talk": [{"messages": [ASK, SAY]}]}
    assert len(prepare_mixture(sources, tmp_path / "a", model, processor, ignore=["mask"])) == 2
    with pytest.raises(ValueError, match="got 'msak'"):
        prepare_mixture(sources, tmp_path / "b", model, processor, ignore=["mask", "msak"])


def test_another_list_of_ignored_names_is_another_request(fill, model, processor, tmp_path):
    rows = [fill(FORMS["drawing"]) | {"mask": "0.png"}]
    prepare(rows, tmp_path / "out", model, processor, ignore=["mask"])
    prepare(rows, tmp_path / "out", model, processor, ignore=["mask"])
    with pytest.raises(ValueError, match=r"prepared with ignore=\['mask'\]; now it is \[\]"):
        prepare([fill(FORMS["drawing"])], tmp_path / "out", model, processor)


def test_all_sources_are_checked_before_the_first_is_prepared(fill, model, processor, tmp_path):
    sources = {"good": [fill(FORMS["drawing"])], "bad": [fill(FORMS["drawing"]) | {"mask": "0.png"}]}
    with pytest.raises(SourceError, match="'mask'"):
        prepare_mixture(sources, tmp_path, model, processor)
    assert not (tmp_path / "good").exists()


def test_two_tasks_that_use_all_columns_must_be_told_apart(monkeypatch):
    """No two adapters of this package do, except for captions: their images are to be generated by default."""
    assert choose_adapter(["caption", "image"]).name == "caption"
    slots = (Slot("question", ("prompt",), required=True), Slot("image", ("image",), required=True))
    other = Adapter("guess", "prompt + image", "understanding", slots, lambda cells: {})
    monkeypatch.setitem(ADAPTERS, "guess", other)
    with pytest.raises(ValueError, match="'drawing' .*'guess' .understanding. could all use: say which with `task`"):
        choose_adapter(["prompt", "image"])
    assert choose_adapter(["prompt", "image"], task="understanding") is other
    assert choose_adapter(["prompt", "image"], task="drawing").name == "drawing"


def test_options_without_a_meaning_are_refused(fill, model, processor, tmp_path):
    with pytest.raises(ValueError, match=r"must be a path or a Hub id to have \['split'\]"):
        prepare([fill(FORMS["drawing"])], tmp_path / "out", model, processor, split="test")
