"""All kinds of sources that users have can be prepared: files, folders, archives, `datasets` objects."""

import io
import json
import tarfile

import datasets
import pytest

from janus_hf.data import prepare_rows
from janus_hf.data.sources import open_source


def lengths(source, model, processor, **options):
    """Prepare a source and return the sorted `(task, length)` of its rows."""
    prepared = prepare_rows(source, model, processor, **options)
    return sorted(zip(prepared.tasks.tolist(), prepared.lengths.tolist(), strict=True))


@pytest.fixture
def expected(drawings, model, processor):
    """`(task, length)` of the drawing rows, prepared from a list."""
    return lengths(drawings, model, processor)


def test_parquet(drawings, expected, model, processor, tmp_path):
    datasets.Dataset.from_list(drawings).to_parquet(tmp_path / "rows.parquet")
    assert lengths(tmp_path / "rows.parquet", model, processor) == expected
    assert lengths(tmp_path / "*.parquet", model, processor) == expected
    assert lengths(tmp_path, model, processor) == expected


def test_jsonl_with_relative_paths_and_a_missing_file(drawings, expected, model, processor, tmp_path):
    (tmp_path / "images").mkdir()
    rows = [{"conversations": [{"from": "human", "value": "<image>\nHm?"}, {"from": "gpt", "value": "Yes"}]}] * 2
    drawings[0]["image"].save(tmp_path / "images" / "0.png")
    lines = [json.dumps(row | {"image": f"images/{n}.png"}) for n, row in enumerate(rows)]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    prepared = prepare_rows(tmp_path / "rows.jsonl", model, processor)
    assert prepared.meta["adapter"] == "llava"
    assert (len(prepared), prepared.meta["skipped"]) == (1, {"missing_picture": 1})


def test_imagefolder_of_classes(drawings, model, processor, tmp_path):
    for n, row in enumerate(drawings):
        folder = tmp_path / ("red_fox", "tench")[n % 2]
        folder.mkdir(exist_ok=True)
        row["image"].save(folder / f"{n}.png")
    prepared = prepare_rows(tmp_path, model, processor)
    texts = {processor.tokenizer.decode(prepared[n]["input_ids"][: prepared[n]["prompt_end"]]) for n in range(6)}
    assert prepared.meta["adapter"] == "label"
    assert {text.split(": ")[1].split("\n")[0] for text in texts} == {"red fox", "tench"}


def test_imagefolder_with_captions(drawings, expected, model, processor, tmp_path):
    lines = []
    for n, row in enumerate(drawings):
        row["image"].save(tmp_path / f"{n}.png")
        lines.append(json.dumps({"file_name": f"{n}.png", "caption": row["prompt"]}))
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    assert lengths(tmp_path, model, processor) == expected
    described = prepare_rows(tmp_path, model, processor, task="understanding")
    assert described.meta["adapter"] == "describe"


def write_archive(path, rows):
    """Write a WebDataset archive whose rows are dicts of suffix -> image, text, or dict."""
    with tarfile.open(path, "w") as archive:
        for n, row in enumerate(rows):
            for suffix, value in row.items():
                buffer = io.BytesIO()
                if isinstance(value, (str, dict)):
                    buffer.write((value if isinstance(value, str) else json.dumps(value)).encode())
                else:
                    value.save(buffer, format="PNG")
                info = tarfile.TarInfo(f"{n:03d}.{suffix}")
                info.size = len(buffer.getvalue())
                archive.addfile(info, io.BytesIO(buffer.getvalue()))
    return path


def test_webdataset(drawings, expected, model, processor, tmp_path):
    rows = [{"png": row["image"], "txt": row["prompt"]} for row in drawings]
    assert lengths(write_archive(tmp_path / "rows.tar", rows), model, processor) == expected


def test_json_members_of_a_webdataset_are_columns(drawings, expected, model, processor, tmp_path):
    def archive(name, **members):
        rows = [{"png": row["image"]} | {key: make(row) for key, make in members.items()} for row in drawings]
        return write_archive(tmp_path / f"{name}.tar", rows)

    only = archive("only", json=lambda row: {"caption": row["prompt"], "width": 70})
    prepared = prepare_rows(only, model, processor)
    assert (prepared.meta["adapter"], prepared.meta["unused_columns"]) == ("caption", ["__key__", "__url__", "width"])
    assert lengths(only, model, processor) == expected
    # img2dataset writes the caption twice.
    twice = archive("twice", txt=lambda row: row["prompt"], json=lambda row: {"caption": row["prompt"]})
    assert lengths(twice, model, processor) == expected
    other = archive("other", txt=lambda row: row["prompt"], json=lambda row: {"caption": "another"})
    with pytest.raises(ValueError, match="got 'txt'"):
        prepare_rows(other, model, processor)
    assert lengths(other, model, processor, ignore=["caption"]) == expected
    assert lengths(other, model, processor, ignore=["json"]) == expected
    turns = archive("turns", json=lambda row: {"conversations": [{"from": "human", "value": "q"}], "system": "s"})
    with pytest.raises(ValueError, match="6 bad_conversation"):  # read, and wrong
        prepare_rows(turns, model, processor)
    mask = archive("mask", txt=lambda row: row["prompt"], **{"mask.png": lambda row: row["image"]})
    with pytest.raises(ValueError, match="got 'mask.png'"):
        prepare_rows(mask, model, processor)


def test_datasets_saved_and_in_memory(drawings, conversations, expected, model, processor, tmp_path):
    dataset = datasets.Dataset.from_list(drawings)
    dataset.save_to_disk(tmp_path / "saved")
    assert lengths(dataset, model, processor) == lengths(tmp_path / "saved", model, processor) == expected
    assert lengths(dataset.to_iterable_dataset(), model, processor) == expected
    assert set(open_source(conversations[::-1]).column_names) == {"messages", "images"}
    talk = datasets.Dataset.from_list([row | {"images": row.get("images", [])} for row in conversations])
    assert lengths(talk, model, processor) == lengths(conversations, model, processor)


def test_files_beside_a_saved_data_set_are_named(model, processor, tmp_path):
    rows = datasets.Dataset.from_list([{"text": "one"}])
    rows.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": rows, "test": rows}).save_to_disk(tmp_path / "two")
    for folder in ("one", "two"):
        (tmp_path / folder / "more.jsonl").write_text('{"text": "two"}')
    assert prepare_rows(tmp_path / "one", model, processor).meta["unused_files"] == ["more.jsonl"]
    assert prepare_rows(tmp_path / "one", model, processor, ignore=["more.jsonl"]).meta["unused_files"] == []
    unused = prepare_rows(tmp_path / "two", model, processor).meta["unused_files"]
    assert [name for name in unused if not name.startswith("test/")] == ["more.jsonl"]
    assert len(unused) == 4


def test_text_and_question_columns(model, processor, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "Some words."}\n{"text": ""}')
    prepared = prepare_rows(tmp_path / "a.jsonl", model, processor)
    assert (prepared.tasks.tolist(), prepared.meta["skipped"]) == (["text"], {"empty_text": 1})
    (tmp_path / "b.csv").write_text("question,answer\n2+2?,four\n")
    assert prepare_rows(tmp_path / "b.csv", model, processor).meta["adapter"] == "question"


def test_objects_that_are_no_source_raise():
    with pytest.raises(TypeError, match="got int"):
        open_source(3)
    with pytest.raises(FileNotFoundError):
        open_source("/nowhere/rows.parquet")
