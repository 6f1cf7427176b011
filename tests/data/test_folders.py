"""Every file of a folder is used, or without content and named, or refused by name."""

import json

import pytest

from janus_hf.data import prepare, prepare_rows
from janus_hf.data.schema import SourceError


IMAGE = b"image"  # stands for an image file in the tables below


def line(**row):
    return json.dumps(row)


NAMED = line(file_name="0.png", caption="named")


@pytest.fixture(scope="session")
def make_folder(make_image, tmp_path_factory):
    """A function that writes files, given as name -> content, into a new folder."""

    def make(files):
        folder = tmp_path_factory.mktemp("data") / "source"
        folder.mkdir()
        for name, content in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if content == IMAGE:
                make_image(1).save(path, format=None if path.suffix else "PNG")
            else:
                path.write_text(content)
        return folder

    return make


def prompts(prepared, processor):
    """Return the prompt or the text of every prepared row, without what surrounds it."""
    found = []
    for n in range(len(prepared)):
        row = prepared[n]
        ids = row["input_ids"][: row["prompt_end"]] if row["task"] == "drawing" else row["input_ids"][1:-1]
        found.append(processor.tokenizer.decode(ids).split("|>: ")[-1].split("\n")[0])
    return found


CAPTIONS = {"0.png": IMAGE, "0.txt": "a fox"}
SPLIT_NAMES = ("0", "a_test", "dev-2", "eval 3", "test_1", "train", "val.1")


@pytest.mark.parametrize(
    ("files", "expected", "unused"),
    [
        (CAPTIONS | {"1.PNG": IMAGE, "1.txt": "a dog"}, ["a fox", "a dog"], []),
        ({"0.jpg": IMAGE, "0.caption": "a fox"}, ["a fox"], []),
        (CAPTIONS | {"0.caption": "a fox"}, ["a fox"], []),
        ({"a/0.png": IMAGE, "a/0.txt": "one", "b/c/0.png": IMAGE, "b/c/0.txt": "two"}, ["one", "two"], []),
        (
            CAPTIONS | {".DS_Store": "x", "Thumbs.db": "x", "README.md": "x", "0.npz": "x", ".cache/1.png": IMAGE},
            ["a fox"],
            [".DS_Store", ".cache/1.png", "0.npz", "README.md", "Thumbs.db"],
        ),
        ({"red_fox/0.png": IMAGE}, ["red fox"], []),
        ({"red_fox/0.png": IMAGE, "dog/0.png": IMAGE}, ["dog", "red fox"], []),
        ({"animals/red_fox/0.png": IMAGE, "things/cup/0.png": IMAGE}, ["red fox", "cup"], []),
        ({"train/fox/0.png": IMAGE, "test/dog/0.png": IMAGE}, ["fox"], ["test/dog/0.png"]),
        ({"2_fox/0.png": IMAGE, "1_big dog/0.png": IMAGE}, ["big dog", "fox", "fox"], []),
        ({"2_fox/0.png": IMAGE, "2_fox/0.txt": "sks", "1_dog/0.png": IMAGE}, ["dog", "sks", "sks"], []),
        ({"img/2_fox/0.png": IMAGE}, ["fox", "fox"], []),
        ({"0.png": IMAGE, "metadata.jsonl": NAMED}, ["named"], []),
        ({"i/0.png": IMAGE, "metadata.csv": "file_name,caption\ni/0.png,named\n"}, ["named"], []),
        ({"a.jsonl": line(text="one"), "b.jsonl": line(text="two")}, ["one", "two"], []),
        ({"a.jsonl": line(text="one"), "LICENSE": "x", "run.py": "x"}, ["one"], ["LICENSE", "run.py"]),
        ({"rows.jsonl": line(prompt="one", image="i/0.png"), "i/0.png": IMAGE}, ["one"], []),
        (
            {
                "train.jsonl": line(prompt="one", image="i/0.png"),
                "test.jsonl": line(prompt="two", image="./i/../i/1.png"),
                "i/0.png": IMAGE,
                "i/1.png": IMAGE,
            },
            ["one"],
            ["test.jsonl"],
        ),
        ({"a.txt": "one\ntwo", "readme.txt": "x"}, ["one", "two"], ["readme.txt"]),
        ({"0.png": IMAGE, "0.cap": "a fox"}, ["a fox"], []),
        ({"0.png": IMAGE, "0.tags": "fox, red"}, ["fox, red"], []),
        (
            CAPTIONS | {"0_1024x0768_sd.npz": "x", "0.safetensors": "x"},
            ["a fox"],
            ["0_1024x0768_sd.npz", "0.safetensors"],
        ),
        # Names of images tell no splits.
        (
            {f"{name}.{kind}": IMAGE if kind == "png" else name for name in SPLIT_NAMES for kind in ("png", "txt")},
            sorted(SPLIT_NAMES),
            [],
        ),
        ({f"fox/{name}.png": IMAGE for name in SPLIT_NAMES}, ["fox"] * len(SPLIT_NAMES), []),
        (CAPTIONS | {"test_1.png": IMAGE, "test_1.txt": "b"}, ["a fox", "b"], []),
        ({"test_1.png": IMAGE, "metadata.jsonl": line(file_name="test_1.png", caption="one")}, ["one"], []),
        ({"rows.jsonl": line(prompt="one", image="a_test.png"), "a_test.png": IMAGE}, ["one"], []),
        (
            {
                "train.jsonl": line(prompt="one", image="test_1.png"),
                "test_1.png": IMAGE,
                "test.jsonl": line(prompt="x"),
            },
            ["one"],
            ["test.jsonl"],
        ),
        ({"train.txt": "one", "test.txt": "two"}, ["one"], ["test.txt"]),
        # Nor do the folders of images that a table names.
        ({"rows.jsonl": line(prompt="one", image="test2017/0.png"), "test2017/0.png": IMAGE}, ["one"], []),
        ({"metadata.jsonl": line(file_name="val/0.png", caption="one"), "val/0.png": IMAGE}, ["one"], []),
        (
            {f"{name}/metadata.jsonl": line(file_name="0.png", caption=name) for name in ("train", "test")}
            | {"train/0.png": IMAGE, "test/0.png": IMAGE},
            ["train"],
            ["test/0.png", "test/metadata.jsonl"],
        ),
        (
            {f"data/{name}-00000-of-00001.jsonl": line(text=name) for name in ("train", "corrections")},
            ["train"],
            ["data/corrections-00000-of-00001.jsonl"],
        ),
        ({"desktop.png": IMAGE, "desktop.txt": "a desk"}, ["a desk"], []),
    ],
)
def test_files_are_used_or_named(files, expected, unused, make_folder, model, processor, tmp_path):
    folder = make_folder(files)
    for prepared in (prepare_rows(folder, model, processor), prepare(folder, tmp_path, model, processor)):
        assert prompts(prepared, processor) == expected
        assert sorted(prepared.meta["unused_files"]) == sorted(unused)
        assert prepared.meta["skipped"] == {}


@pytest.mark.parametrize(
    ("files", "lost", "expected"),
    [
        (CAPTIONS | {"1.png": IMAGE}, "1.png", ["a fox"]),
        (CAPTIONS | {"0_mask.png": IMAGE}, "0_mask.png", ["a fox"]),
        (CAPTIONS | {"1.txt": "a dog"}, "1.txt", ["a fox"]),
        (CAPTIONS | {"0.caption": "a dog"}, "0.caption", ["a fox"]),
        (CAPTIONS | {"0.json": "{}"}, "0.json", ["a fox"]),
        (CAPTIONS | {"0.mp4": "x"}, "0.mp4", ["a fox"]),
        (CAPTIONS | {"more.zip": "x"}, "more.zip", ["a fox"]),
        (CAPTIONS | {"raw": IMAGE}, "raw", ["a fox"]),
        (CAPTIONS | {"metadata.jsonl": NAMED}, "0.txt", ["named"]),
        ({"0.png": IMAGE, "1.png": IMAGE, "metadata.jsonl": NAMED}, "1.png", ["named"]),
        ({"0.png": IMAGE, "metadata.jsonl": NAMED, "b.csv": "text\nx\n"}, "b.csv", ["named"]),
        ({"a.jsonl": line(text="one"), "b.csv": "text\ntwo\n"}, "b.csv", ["one"]),
        ({"a.jsonl": line(text="one"), "notes.txt": "two"}, "notes.txt", ["one"]),
        ({"a.jsonl": line(text="one"), "0.png": IMAGE}, "0.png", ["one"]),
        (
            {"rows.jsonl": line(prompt="one", image="i/0.png"), "i/0.png": IMAGE, "i/1.png": IMAGE},
            "i/1.png",
            ["one"],
        ),
        (
            {"train.jsonl": line(text="one"), "test.jsonl": line(text="two"), "more.jsonl": line(text="three")},
            "more.jsonl",
            None,
        ),
        ({"fox/0.png": IMAGE, "1.png": IMAGE}, "1.png", ["fox"]),
        ({"0_fox/0.png": IMAGE, "1_dog/0.png": IMAGE}, "0_fox/0.png", ["dog"]),
        ({"a/fox/0.png": IMAGE, "dog/0.png": IMAGE}, "a/fox/0.png", ["dog"]),
        ({"0.png": IMAGE}, "0.png", None),
        ({"images/0.png": IMAGE}, "images/0.png", None),
        ({"images/0.png": IMAGE, "masks/0.png": IMAGE}, "images/0.png", None),
        ({"train/0.png": IMAGE}, "train/0.png", None),
        ({"10_fox/0.png": IMAGE, "1.png": IMAGE}, "1.png", ["fox"] * 10),
        ({"2_fox/0.png": IMAGE, "2_fox/0.txt": "sks", "1.png": IMAGE, "1.txt": "x"}, "1.png", None),
        ({"2_fox/0.png": IMAGE, "dogs/1.png": IMAGE}, "dogs/1.png", ["fox", "fox"]),
        ({"2_fox/0.png": IMAGE, "2_fox/more/1.png": IMAGE}, "2_fox/more/1.png", ["fox", "fox"]),
        ({"2_fox/0.png": IMAGE, "reg/1_fox/0.png": IMAGE}, "reg", ["fox", "fox"]),
        ({"img/1_fox/0.png": IMAGE, "a/regularization_images/1_fox/0.png": IMAGE}, "a/regularization_images", ["fox"]),
        ({"fox/0.png": IMAGE, "class_images/0.png": IMAGE}, "class_images", ["fox"]),
        ({"fox/0.png": IMAGE, "masks/0.png": IMAGE}, "masks", ["fox"]),
        ({"fox/0.png": IMAGE, "conditioning_images/0.png": IMAGE}, "conditioning_images", ["fox"]),
        (CAPTIONS | {"mask/0.png": IMAGE, "mask/0.txt": "x"}, "mask", ["a fox"]),
        (CAPTIONS | {"0-masklabel.png": IMAGE}, "0-masklabel.png", ["a fox"]),
        (CAPTIONS | {"0-condlabel.png": IMAGE}, "0-condlabel.png", ["a fox"]),
        ({"fox/0.png": IMAGE, "fox/0.depth.png": IMAGE}, "fox/0.depth.png", ["fox"]),
        (CAPTIONS | {"0.tags": "fox, red"}, "0.tags", ["a fox"]),
        (CAPTIONS | {"0.yaml": "caption: x"}, "0.yaml", ["a fox"]),
        (CAPTIONS | {"multiply.txt": "2"}, "multiply.txt", ["a fox"]),
        (CAPTIONS | {"arrays.npz": "x"}, "arrays.npz", ["a fox"]),
        (CAPTIONS | {"1.png.gz": "x"}, "1.png.gz", ["a fox"]),
        (CAPTIONS | {"test.txt": "x"}, "test.txt", ["a fox"]),
        ({"0.png": IMAGE, "metadata.jsonl": NAMED, "train.csv": "text\nx\n"}, "train.csv", ["named"]),
        ({"test2017/0.png": IMAGE, "rows.jsonl": line(text="one")}, "test2017/0.png", ["one"]),
        ({"a.jsonl": line(text="one"), "b.tsv": "text\ntwo\n"}, "b.tsv", ["one"]),
        ({"train station/0.png": IMAGE, "bus/0.png": IMAGE}, "bus/0.png", None),
    ],
)
def test_files_with_content_are_refused_by_name(files, lost, expected, make_folder, model, processor):
    folder = make_folder(files)
    with pytest.raises(SourceError, match=f"got '{lost}'.*--ignore '{lost}'"):
        prepare_rows(folder, model, processor)
    if expected is not None:
        assert prompts(prepare_rows(folder, model, processor, ignore=[lost]), processor) == expected


def test_ignored_files_may_be_named_with_wildcards_or_by_folder(make_folder, model, processor):
    folder = make_folder(CAPTIONS | {"0.json": "{}", "1.json": "{}", "masks/0.png": IMAGE})
    prepared = prepare_rows(folder, model, processor, ignore=["*.json", "masks"])
    assert prompts(prepared, processor) == ["a fox"]
    with pytest.raises(ValueError, match="`ignore` must name .*got '.*csv'"):
        prepare_rows(folder, model, processor, ignore=["*.json", "masks", "*.csv"])


def test_a_folder_of_captions_is_also_a_folder_of_descriptions(make_folder, model, processor):
    prepared = prepare_rows(make_folder(CAPTIONS), model, processor, task="understanding")
    assert (prepared.meta["adapter"], prepared.tasks.tolist()) == ("describe", ["understanding"])


def test_captions_that_are_empty_or_images_that_are_broken_are_skipped(make_folder, model, processor):
    files = CAPTIONS | {"1.png": IMAGE, "1.txt": " ", "2.png": "no image", "2.txt": "a cup"}
    assert prepare_rows(make_folder(files), model, processor).meta["skipped"] == {"empty_text": 1, "bad_picture": 1}


def test_splits_of_a_folder(make_folder, model, processor, tmp_path):
    folder = make_folder({f"{split}/fox/{n}.png": IMAGE for split in ("train", "test") for n in range(3)})

    def count(split):
        return len(prepare(folder, tmp_path / split.replace("+", "_"), model, processor, split=split))

    assert [count(split) for split in ("train", "test", "train[:2]", "train[:1]+test")] == [3, 3, 2, 4]
    with pytest.raises(ValueError, match=r"`split` must be one of \['test', 'train'\]"):
        count("validation")
    with pytest.raises(ValueError, match="has no options"):
        prepare(folder, tmp_path / "options", model, processor, revision="main")


def test_a_stream_of_a_folder(make_folder, model, processor, tmp_path):
    prepared = prepare(make_folder(CAPTIONS), tmp_path, model, processor, streaming=True)
    assert prompts(prepared, processor) == ["a fox"]
    assert prepared.meta["source_rows"] is None


def test_a_mask_and_its_caption_are_refused_together(make_folder, model, processor):
    folder = make_folder(CAPTIONS | {"0-masklabel.png": IMAGE, "0-masklabel.txt": "mask"})
    with pytest.raises(SourceError, match="got '0-masklabel.png', '0-masklabel.txt', which are masks"):
        prepare_rows(folder, model, processor)
    assert prompts(prepare_rows(folder, model, processor, ignore=["*-masklabel.*"]), processor) == ["a fox"]


def test_regularisation_images_are_a_source_of_their_own(make_folder, model, processor):
    folder = make_folder({"reg/1_fox/0.png": IMAGE, "img/1_fox/1.png": IMAGE})
    with pytest.raises(SourceError, match="regularisation images.*prior preservation"):
        prepare_rows(folder, model, processor)
    assert prompts(prepare_rows(folder / "reg", model, processor), processor) == ["fox"]


def test_a_folder_whose_readme_lists_its_data_files(make_folder, model, processor, tmp_path):
    """Files that it does not list are not used, and named."""
    front = "---\nconfigs:\n- config_name: default\n  data_files: a.jsonl\n---\n"
    row = line(prompt="one", image="i/0.png")
    files = {"a.jsonl": row, "b.csv": "text\ntwo\n", "README.md": front, "i/0.png": IMAGE, "i/1.png": IMAGE}
    folder = make_folder(files)
    for prepared in (prepare_rows(folder, model, processor), prepare(folder, tmp_path, model, processor)):
        assert prompts(prepared, processor) == ["one"]
        assert prepared.meta["unused_files"] == ["README.md", "b.csv", "i/1.png"]


def test_splits_and_metadata_of_a_configured_folder(make_folder, model, processor, tmp_path):
    front = "---\nconfigs:\n- config_name: default\n  data_files:\n  - {split: train, path: 'a/*'}\n"
    front += "  - {split: test, path: 'b/*'}\n---\n"
    files = {f"{name}/metadata.jsonl": line(file_name="0.png", caption=name) for name in "ab"}
    folder = make_folder(files | {"a/0.png": IMAGE, "b/0.png": IMAGE, "README.md": front})
    for split, other in (("train", "b"), ("test", "a")):
        prepared = prepare(folder, tmp_path / split, model, processor, split=split)
        assert prompts(prepared, processor) == ["a" if split == "train" else "b"]
        assert prepared.meta["unused_files"] == ["README.md", f"{other}/0.png", f"{other}/metadata.jsonl"]
