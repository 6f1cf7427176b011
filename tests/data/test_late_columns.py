"""A column that first appears late in a stream: the row is named, and what was written is used by the next run."""

import json
import sys

import datasets
import pytest

from janus_hf.data import prepare, prepare_rows
from janus_hf.data.schema import SourceError


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    """Shards of two rows."""
    monkeypatch.setattr(sys.modules[prepare.__module__], "ROWS_PER_SHARD", 2)


def stream(late, **columns):
    """Return a stream of seven rows, by default texts, of which row 5 has further columns."""
    rows = [(columns or {"text": f"number {n}"}) | (late if n == 5 else {}) for n in range(7)]
    return datasets.IterableDataset.from_generator(lambda: iter(rows))


def ids(prepared):
    return [prepared[n]["input_ids"].tolist() for n in range(len(prepared))]


@pytest.mark.parametrize("name", ["mask", "answer", "image_url"])
def test_what_was_written_is_used_if_the_column_is_then_ignored(name, model, processor, tmp_path):
    late = {name: "0.png"}
    with pytest.raises(SourceError, match=f"Row 5 of the source: .*got '{name}'.*--ignore {name} "):
        prepare(stream(late), tmp_path, model, processor)
    written = {path: path.stat().st_mtime_ns for path in tmp_path.glob("shard-*.arrow")}
    assert len(written) == 2
    prepared = prepare(stream(late), tmp_path, model, processor, ignore=[name])
    assert {path: path.stat().st_mtime_ns for path in written} == written
    assert ids(prepared) == ids(prepare_rows(stream({}), model, processor))
    assert (prepared.meta["ignore"], json.loads((tmp_path / "meta.json").read_text())["ignore"]) == ([name], [name])
    with pytest.raises(ValueError, match="ignore=.*Choose another folder"):
        prepare(stream(late), tmp_path, model, processor)


@pytest.mark.parametrize("used", ["system", "images", "weight", "we*", "content"])
def test_ignoring_what_rows_may_hold_needs_another_folder(used, model, processor, tmp_path):
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    source = stream({"mask": "0.png"}, messages=turns)
    with pytest.raises(SourceError, match="Row 5"):
        prepare(source, tmp_path, model, processor)
    with pytest.raises(ValueError, match="holds rows prepared with ignore="):
        prepare(source, tmp_path, model, processor, ignore=["mask", used])


def test_a_finished_folder_is_not_changed(model, processor, tmp_path):
    prepare(stream({}), tmp_path, model, processor)
    with pytest.raises(ValueError, match="holds rows prepared with ignore="):
        prepare(stream({}), tmp_path, model, processor, ignore=["mask"])
