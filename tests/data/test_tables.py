"""Files that are read together: metadata, globs, formats; what cannot be read is named with its line or columns."""

import bz2
import gzip
import json
import lzma
import tarfile

import datasets
import pytest

from janus_hf.data import prepare, prepare_rows
from janus_hf.data.schema import SourceError
from janus_hf.data.sources import open_files, open_source


def lines(*rows):
    return "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows)


def write(folder, files):
    """Write texts, given as name -> content, into a folder; a `.parquet` file is given by its rows."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, list):
            datasets.Dataset.from_list(content).to_parquet(folder / name)
        else:
            (folder / name).write_text(content)
    return folder


def prompts(prepared, processor):
    """Return the prompt of every prepared drawing."""
    texts = [
        processor.tokenizer.decode(row["input_ids"][: row["prompt_end"]])
        for row in map(prepared.__getitem__, range(len(prepared)))
    ]
    return [text.split("|>: ")[-1].split("\n")[0] for text in texts]


METADATA = {
    "other columns": ({"file_name": "0.png", "caption": "a"}, {"file_name": "0.png", "text": "b"}),
    "another order": ({"file_name": "0.png", "caption": "a"}, {"caption": "b", "file_name": "0.png"}),
    "more columns": ({"file_name": "0.png", "caption": "a"}, {"file_name": "0.png", "caption": "b", "width": 3}),
    "fewer columns": ({"file_name": "0.png", "caption": "a", "width": 3}, {"file_name": "0.png", "caption": "b"}),
}


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
@pytest.mark.parametrize("kind", METADATA)
def test_metadata_files_with_different_columns_are_united(kind, suffix, make_image, model, processor, tmp_path):
    tmp_path, out = tmp_path / "in", tmp_path / "out"
    for name, row in zip("ab", METADATA[kind], strict=True):
        table = {
            "jsonl": lines(row),
            "csv": f"{','.join(row)}\n{','.join(map(str, row.values()))}\n",
            "parquet": [row],
        }
        write(tmp_path, {f"{name}/metadata.{suffix}": table[suffix]})
        make_image(1).save(tmp_path / name / "0.png")
    for options in ({}, {"streaming": True}):
        prepared = prepare(tmp_path, out / str(len(options)), model, processor, **options)
        assert prompts(prepared, processor) == ["a", "b"]
        assert set(prepared.meta["unused_columns"]) <= {"width"}


def test_content_of_one_metadata_file_is_not_lost(make_image, model, processor, tmp_path):
    rows = [{"file_name": "0.png", "caption": "a"}, {"file_name": "0.png", "caption": "b", "mask_file_name": "1.png"}]
    for name, row in zip("ab", rows, strict=True):
        write(tmp_path, {f"{name}/metadata.jsonl": lines(row)})
        make_image(1).save(tmp_path / name / "0.png")
    make_image(2).save(tmp_path / "b" / "1.png")
    with pytest.raises(SourceError, match="got 'mask' .an image."):
        prepare_rows(tmp_path, model, processor)
    assert prompts(prepare_rows(tmp_path, model, processor, ignore=["mask"]), processor) == ["a", "b"]


def test_metadata_files_name_images_of_any_depth(make_image, model, processor, tmp_path):
    say = [{"role": "user", "content": "<image>q"}, {"role": "assistant", "content": "a"}]
    for row in (
        {"file_names": ["0.png"], "messages": say},
        {"messages": [say[0] | {"images": [{"file_name": "0.png"}]}, say[1]]},
    ):
        write(tmp_path, {"metadata.jsonl": lines(row)})
        make_image(1).save(tmp_path / "0.png")
        if "file_names" in row:
            assert len(prepare_rows(tmp_path, model, processor)[0]["images"]) == 1
        assert "0.png" not in open_files(tmp_path).unused


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"metadata.jsonl": lines({"name": "0.png", "caption": "a"})}, "metadata.jsonl.*'caption'"),
        ({"metadata.jsonl": lines({"file_name": "0.png", "image": "x"})}, "metadata.jsonl.*'image'"),
        ({"metadata.jsonl": lines({"file_name": "0.png"}, '{"file_name"')}, "metadata.jsonl.*line 2"),
        ({"metadata.jsonl": lines({"file_name": "../0.png", "caption": "a"})}, "inside.*'../0.png'"),
        ({"metadata.jsonl": lines({"file_name": "/etc/0.png", "caption": "a"})}, "inside.*'/etc/0.png'"),
        (
            {
                "metadata.jsonl": lines({"file_name": "0.png", "caption": "a"}),
                "a/metadata.jsonl": lines({"file_name": "../0.png", "caption": ["a"]}),
            },
            "types.*a/metadata.jsonl",
        ),
    ],
)
def test_metadata_that_cannot_be_read_is_named(files, words, make_image, model, processor, tmp_path):
    make_image(1).save(write(tmp_path, files) / "0.png")
    with pytest.raises(SourceError, match=words) as error:
        prepare_rows(tmp_path, model, processor)
    assert "\n" not in str(error.value)


ONE = {"text": "one"}
TABLES = {
    "more columns": ({"a.jsonl": lines(ONE), "b.jsonl": lines(ONE, ONE | {"note": 1})}, ["b.jsonl", "'note'"]),
    "other columns": ({"a.csv": "text,x\none,1\n", "b.csv": "text,y\ntwo,1\n"}, ["b.csv", "'y'", "'x'", "a.csv"]),
    "another order": ({"a.csv": "text,x\none,1\n", "b.csv": "x,text\n1,two\n"}, ["b.csv", "order"]),
    "more in parquet": ({"a.parquet": [ONE], "b.parquet": [ONE | {"y": 1}]}, ["b.parquet", "'y'"]),
    "another type": ({"a.parquet": [ONE], "b.parquet": [{"text": [1]}]}, ["b.parquet", "'text'", "string"]),
    "broken line": ({"a.jsonl": lines(ONE), "b.jsonl": lines(ONE, "", '{"text": ', ONE)}, ["b.jsonl", "line 3"]),
    "list among rows": ({"a.jsonl": lines(ONE, "[1]")}, ["a.jsonl", "line 2"]),
    "broken json": ({"a.json": '[{"text": "one"}, {"text"'}, ["a.json"]),
    "broken csv": ({"a.csv": 'text\none\n"two\n'}, ["a.csv"]),
    "broken parquet": ({"a.parquet": "none"}, ["a.parquet"]),
    "empty file": ({"a.jsonl": lines(ONE), "b.jsonl": ""}, None),
    "empty csv": ({"a.csv": ""}, ["a.csv"]),
}


@pytest.mark.parametrize("kind", TABLES)
@pytest.mark.parametrize("is_glob", [False, True])
def test_tables_that_cannot_be_read_together_are_named(kind, is_glob, tmp_path, capfd):
    files, words = TABLES[kind]
    folder = write(tmp_path / "data", files)
    source = str(folder / f"*.{next(iter(files)).rpartition('.')[2]}") if is_glob else folder
    if words is None:
        assert len(open_source(source)) == 1
        return
    with pytest.raises(SourceError) as error:
        open_source(source)
    assert all(word in str(error.value) for word in words)
    assert "\n" not in str(error.value)
    assert "Failed to" not in capfd.readouterr().err


def test_columns_that_only_late_lines_of_a_large_file_have_are_named(tmp_path):
    long = json.dumps({"text": "x" * 100_000})
    write(tmp_path, {"a.jsonl": lines(*[long] * 120, {"text": "one", "mask": "0.png"})})
    with pytest.raises(SourceError, match=r"line 121 has the columns \['mask'\]"):
        open_source(tmp_path / "a.jsonl")


@pytest.mark.parametrize("late", [{"text": "b", "y": "2"}, {"y": "b"}])
def test_streams_of_files_are_checked_before_they_are_prepared(late, model, processor, tmp_path):
    write(tmp_path, {"in/a.jsonl": lines(ONE), "in/b.jsonl": lines(late)})
    with pytest.raises(SourceError, match=r"b.jsonl' with the columns \['y'\]"):
        prepare(tmp_path / "in", tmp_path / "out", model, processor, streaming=True)
    assert not (tmp_path / "out").exists()


def archive(path, mode):
    """Write a WebDataset archive with one text."""
    (path.parent / "0.txt").write_text("one")
    with tarfile.open(path, mode) as file:
        file.add(path.parent / "0.txt", "0.txt")
    (path.parent / "0.txt").unlink()


COMPRESSED = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
TEXTS = {"rows.jsonl": lines(ONE), "rows.csv": "text\none\n", "rows.tsv": "id\ttext\n1\tone\n", "rows.txt": "one\n"}


@pytest.mark.parametrize("compression", ["", *COMPRESSED])
@pytest.mark.parametrize("name", [*TEXTS, "rows.tar"])
@pytest.mark.parametrize("form", ["file", "glob", "folder"])
def test_files_of_all_formats_are_read(form, name, compression, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    path = folder / (name + compression)
    if name == "rows.tar":
        archive(path, "w:" + compression.removeprefix("."))
    else:
        with COMPRESSED.get(compression, open)(path, "wt") as file:
            file.write(TEXTS[name])
    source = {"file": path, "glob": f"{folder}/*{name[-5:]}{compression}", "folder": folder}[form]
    (row,) = open_source(source)
    assert row["txt" if name == "rows.tar" else "text"] == "one"
    (row,) = open_source(source, streaming=True)
    assert "one" in row.values()


@pytest.mark.parametrize(
    ("source", "error", "words"),
    [
        ("*.png", ValueError, "0.png.*name the folder of images"),
        ("0.png", ValueError, "0.png.*name the folder of images"),
        ("x.xyz", ValueError, r"\.parquet, \.jsonl.*x.xyz"),
        ("x.parquet.gz", ValueError, "x.parquet.gz"),
        ("*", ValueError, "matches the folder .*inner"),
        ("a.*", ValueError, "files of one format.*a.csv.*a.jsonl"),
        ("none.jsonl", FileNotFoundError, "none.jsonl.*does not exist"),
        ("none/*.jsonl", FileNotFoundError, "none/.*does not exist"),
        ("none", FileNotFoundError, "none.*does not exist"),
    ],
)
def test_other_local_files_are_not_looked_for_on_the_hub(source, error, words, make_image, tmp_path, monkeypatch):
    write(tmp_path, {"x.xyz": "x", "x.parquet.gz": "x", "a.jsonl": lines(ONE), "a.csv": "text\none\n", "inner/b": "x"})
    make_image(1).save(tmp_path / "0.png")
    monkeypatch.setattr(datasets, "load_dataset", None)
    with pytest.raises(error, match=words):
        open_source(tmp_path / source)


def test_globs_start_from_the_folder_before_their_wildcard(make_image, model, processor, tmp_path):
    row = {"prompt": "p", "image": "images/0.png"}
    write(tmp_path, {"x/a.jsonl": lines(row), "y/b.jsonl": lines(row), "images/0": "x", "y/README.md": "x"})
    make_image(1).save(tmp_path / "images" / "0.png")
    assert prompts(prepare_rows(f"{tmp_path}/[xy]/*.jsonl", model, processor), processor) == ["p", "p"]
    opened = prepare_rows(f"{tmp_path}/y/*", model, processor, folder=tmp_path)
    assert opened.meta["unused_files"] == [str(tmp_path / "y" / "README.md")]
    both = prepare_rows(f"{tmp_path}/[xy]/*", model, processor, ignore=["a.jsonl"])
    assert len(both) == 1


def test_the_order_of_files_is_that_of_their_names(make_image, tmp_path):
    """The builder of `datasets` keeps metadata files in a set, whose order differs between processes."""
    names = [f"{n}" for n in range(6)]
    for name in reversed(names):
        write(tmp_path, {f"{name}/metadata.jsonl": lines({"file_name": "0.png", "caption": name})})
        make_image(1).save(tmp_path / name / "0.png")
    assert open_source(tmp_path)["caption"][:] == names
