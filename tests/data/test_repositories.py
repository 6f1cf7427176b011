"""Data sets on the Hub: images are read as from a local folder, in one order; files that are not used are named."""

import io
import json

import datasets
import pytest

from hub_server import File
from janus_hf.data import prepare
from janus_hf.data.schema import SourceError
from janus_hf.data.sources import open_files, open_source


@pytest.fixture
def push(local_hub, make_image, monkeypatch):
    """A function that makes the data set me/data of files, given as name -> text; None stands for an image."""
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", local_hub.url)
    buffer = io.BytesIO()
    make_image(1).save(buffer, format="PNG")

    def make(files):
        data = {name: buffer.getvalue() if text is None else text.encode() for name, text in files.items()}
        local_hub.create("me/data", "dataset")
        entries = {name: File.of(name, content) for name, content in data.items()}
        local_hub.repositories["dataset", "me/data"].add_commit("heads/main", "files", entries)
        return "me/data"

    return make


def line(**row):
    return json.dumps(row)


NAMES = [f"{n}" for n in range(6)]
MANY = {f"{name}/metadata.jsonl": line(file_name="0.png", caption=name) for name in NAMES}
MANY |= {f"{name}/0.png": None for name in NAMES}


def test_the_order_of_metadata_files_is_that_of_their_names(push, model, processor, tmp_path):
    """`datasets` keeps them in a set, whose order differs between processes."""
    source = push(dict(reversed(MANY.items())))
    assert open_source(source)["caption"][:] == NAMES
    assert len(prepare(source, tmp_path / "out", model, processor)) == len(NAMES)
    with pytest.raises(ValueError, match="one metadata file to be read as a stream.*leave out `streaming`"):
        open_source(source, streaming=True)


def test_images_are_read_as_from_a_local_folder(push):
    opened = open_files(push({"0.png": None, "0.txt": "a fox", ".gitattributes": "x"}))
    assert (opened.rows["caption"][:], opened.unused) == (["a fox"], [".gitattributes"])


def test_images_that_are_lost_are_refused(push):
    with pytest.raises(SourceError, match="got '1.png'"):
        open_files(push({"0.png": None, "0.txt": "a fox", "1.png": None}))


def test_files_beside_the_tables_are_named(push):
    files = {"b.jsonl": line(text="two"), "a.jsonl": line(text="one"), "c.csv": "text\nthree\n", "logo.png": None}
    opened = open_files(push(files))
    assert opened.rows["text"][:] == ["one", "two"]
    assert opened.unused == ["c.csv", "logo.png"]


def test_files_that_the_readme_does_not_list_are_named(push):
    front = "---\nconfigs:\n- config_name: default\n  data_files: a.jsonl\n---\n"
    files = {"README.md": front, "b.jsonl": line(text="two"), "a.jsonl": line(text="one"), "0.png": None}
    opened = open_files(push(files))
    assert opened.rows["text"][:] == ["one"]
    assert opened.unused == ["0.png", "README.md", "b.jsonl"]


def test_a_data_set_that_does_not_exist_is_not_found(push):
    push({"a.jsonl": line(text="one")})
    with pytest.raises(FileNotFoundError, match="me/other"):
        open_source("me/other")
