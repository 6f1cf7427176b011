"""Preparation in memory and on disk: codes are right, no row is lost, repeated or skipped without a message."""

import copy
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch

from janus_hf.data import finish_prepared, load_prepared, prepare, prepare_mixture, prepare_rows
from janus_hf.data import prepare as prepare_function
from janus_hf.data import rows as rows_module
from janus_hf.data.documents import open_images
from janus_hf.data.store import make_table, read_shard, shard_paths, write_json, write_shard
from tiny import TINY_MODEL


def rows_of(dataset):
    """Return all rows of a prepared data set as plain Python values."""
    return [
        {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in dataset[i].items()} for i in range(len(dataset))
    ]


@pytest.fixture
def source(drawings):
    """Twelve drawing rows, of which two have images that do not decode."""
    rows = datasets.Dataset.from_list([drawings[n % 6] | {"prompt": f"number {n}"} for n in range(12)])
    undecoded = rows.cast_column("image", datasets.Image(decode=False))
    broken = [
        row | {"image": {"bytes": b"broken", "path": None}} if n in (3, 8) else row for n, row in enumerate(undecoded)
    ]
    return datasets.Dataset.from_list(broken, features=undecoded.features)


def test_drawings_get_the_codes_of_the_model(drawings, model, processor):
    prepared = prepare_rows(drawings, model, processor, batch_size=4)
    pixels = processor.image_processor([row["image"] for row in drawings], mode="generation")["pixel_values"]
    codes = model.encode_image_ids(pixels)
    vocabulary = model.config.text_config.vocab_size
    assert len(prepared) == len(drawings)
    for row, expected in zip(rows_of(prepared), codes, strict=True):
        start = row["prompt_end"] + 1
        assert row["input_ids"][start:] == row["labels"][start:] == (expected + vocabulary).tolist()
        assert set(row["labels"][:start]) == {-100}
        assert row["input_ids"][start - 1] == processor.boi_token_id
        assert row["length"] == len(row["input_ids"]) == start + 64
        assert (row["task"], row["images"]) == ("drawing", [])


def test_conversations_keep_order_and_images(conversations, model, processor):
    prepared = prepare_rows(conversations, model, processor)
    assert prepared.tasks.tolist() == ["understanding"] * 3 + ["text"] * 2
    assert [len(row["images"]) for row in rows_of(prepared)] == [1, 2, 1, 0, 0]
    assert prepared.lengths.tolist() == [row["length"] for row in rows_of(prepared)]
    with pytest.raises(IndexError, match=r"\[0, 5\)"):
        prepared[5]


def test_rows_are_skipped_by_count_and_reason(conversations, model, processor, caplog):
    rows = [
        *conversations,
        {"messages": conversations[3]["messages"] * 40},
        {"messages": conversations[0]["messages"], "images": ["gone.png"]},
        {"messages": conversations[1]["messages"], "images": []},
    ]
    before = copy.deepcopy(rows[3])
    prepared = prepare_rows(rows, model, processor)
    assert rows[3] == before
    assert len(prepared) == prepared.meta["num_rows"] == 5
    assert prepared.meta["skipped"] == {"too_long": 1, "missing_picture": 1, "picture_mismatch": 1}
    assert [example[0] for example in prepared.meta["skipped_examples"]] == [5, 6, 7]
    (warning,) = [record for record in caplog.records if record.name == "janus_hf.data.manifest"]
    assert warning.levelno == logging.WARNING
    kept, first = warning.getMessage().split(". The first was row 5: ")
    assert kept == "builtins.list: kept 5 rows, skipped 1 missing_picture, 1 picture_mismatch, 1 too_long"
    assert first.startswith("The row must have at most 512")
    only = prepare_rows(conversations, model, processor, task="text")
    assert (len(only), only.meta["skipped"]) == (2, {"other_task": 3})
    longest = int(prepared.lengths.max())
    assert prepare_rows(conversations, model, processor, max_length=longest).meta["skipped"] == {}
    assert prepare_rows(conversations, model, processor, max_length=longest - 1).meta["skipped"] == {"too_long": 1}


def test_sources_that_cannot_be_prepared_raise(conversations, drawings, model, processor, tmp_path):
    with pytest.raises(ValueError, match="empty"):
        prepare_rows([], model, processor)
    with pytest.raises(ValueError, match="empty"):
        prepare(datasets.Dataset.from_list([]), tmp_path / "a", model, processor)
    with pytest.raises(ValueError, match="known schema"):
        prepare_rows([{"foo": 1}], model, processor)
    with pytest.raises(ValueError, match="No row can be trained on.*2 missing_picture"):
        prepare_rows([row | {"image": None} for row in drawings[:2]], model, processor)
    for _ in range(2):  # a second call raises as well
        with pytest.raises(ValueError, match="No row can be trained on.*2 missing_picture"):
            prepare([{"prompt": "p", "image": "gone.png"}] * 2, tmp_path / "none", model, processor)
    with pytest.raises(ValueError, match="`max_length` must be in"):
        prepare_rows(drawings, model, processor, max_length=10_000)
    with pytest.raises(ValueError, match="must be one split"):
        prepare(
            datasets.DatasetDict(train=datasets.Dataset.from_list(conversations)), tmp_path / "a", model, processor
        )
    with pytest.raises(ValueError, match="`rank` must be in"):
        prepare(drawings, tmp_path / "a", model, processor, rank=2, world_size=2)
    with pytest.raises(ValueError, match="`num_shards` must be in"):
        prepare(drawings, tmp_path / "a", model, processor, num_shards=7)


def test_on_disk_is_as_in_memory(source, model, processor, tmp_path):
    in_memory = prepare_rows(source, model, processor)
    on_disk = prepare(source, tmp_path / "out", model, processor, num_shards=4)
    assert rows_of(on_disk) == rows_of(in_memory)
    assert on_disk.meta["skipped"] == in_memory.meta["skipped"] == {"bad_picture": 2}
    assert [example[0] for example in on_disk.meta["skipped_examples"]] == [3, 8]
    assert len(shard_paths(tmp_path / "out")) == on_disk.meta["num_shards"] == 4
    reloaded = load_prepared(tmp_path / "out", model=model, processor=processor)
    assert rows_of(reloaded) == rows_of(on_disk)
    meta = json.loads((tmp_path / "out" / "meta.json").read_text())
    assert meta["complete"]
    assert meta["adapter"] == "drawing"


def test_ranks_together_do_what_one_does(source, model, processor, tmp_path, monkeypatch):
    alone = prepare(source, tmp_path / "one", model, processor, num_shards=4)
    assert prepare(source, tmp_path / "two", model, processor, num_shards=4, rank=1, world_size=2) is None
    with pytest.raises(ValueError, match=r"not finished \(2 shards"):
        load_prepared(tmp_path / "two")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    together = prepare(source, tmp_path / "two", model, processor, num_shards=4)
    assert rows_of(together) == rows_of(alone)
    assert together.meta == alone.meta


def test_a_failure_loses_and_repeats_nothing(source, model, processor, tmp_path, monkeypatch):
    expected = rows_of(prepare(source, tmp_path / "straight", model, processor, num_shards=6))
    calls = []
    encode = type(model).encode_image_ids

    def failing(self, pixels):
        calls.append(len(pixels))
        if len(calls) == 3:
            raise RuntimeError("out of memory")
        return encode(self, pixels)

    monkeypatch.setattr(type(model), "encode_image_ids", failing)
    with pytest.raises(RuntimeError, match="out of memory"):
        prepare(source, tmp_path / "out", model, processor, num_shards=6)
    assert len(shard_paths(tmp_path / "out")) == 2
    resumed = prepare(source, tmp_path / "out", model, processor, num_shards=6)
    assert rows_of(resumed) == expected
    assert sum(calls) == 10 + calls[2]  # only the shard that failed was done again
    prepare(source, tmp_path / "out", model, processor, num_shards=6)
    assert sum(calls) == 10 + calls[2]


def test_the_next_batch_is_read_while_one_is_encoded(drawings, model, processor, monkeypatch):
    """The second call of the codec waits until rows of the third batch have been read; no row is read earlier."""
    rows = [drawings[0] | {"prompt": f"number {number}"} for number in range(10)]
    read, third_batch, encode = [], threading.Event(), type(model).encode_image_ids
    seen = []

    def reading(raw, **kwargs):
        read.append(raw["prompt"])
        if "number 5" in read and "number 4" in read:
            third_batch.set()
        return open_images(raw, **kwargs)

    def waiting(self, pixels):
        seen.append(len(pixels))
        if len(seen) == 2:
            assert third_batch.wait(30)
        assert len(read) <= 2 * (len(seen) + 1)
        return encode(self, pixels)

    monkeypatch.setattr(rows_module, "open_images", reading)
    monkeypatch.setattr(type(model), "encode_image_ids", waiting)
    prepared = prepare_rows(rows, model, processor, batch_size=2, num_threads=2)
    monkeypatch.undo()
    assert seen == [2] * 5
    assert sorted(read) == sorted(row["prompt"] for row in rows)
    assert rows_of(prepared) == rows_of(prepare_rows(rows, model, processor, batch_size=3, num_threads=1))


def test_after_a_failure_no_more_rows_are_read(drawings, model, processor, monkeypatch):
    rows = [drawings[0] | {"prompt": f"number {number}"} for number in range(40)]
    read = []

    def reading(raw, **kwargs):
        read.append(raw["prompt"])
        return open_images(raw, **kwargs)

    def failing(self, pixels):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(rows_module, "open_images", reading)
    monkeypatch.setattr(type(model), "encode_image_ids", failing)
    with pytest.raises(RuntimeError, match="out of memory"):
        prepare_rows(rows, model, processor, batch_size=4)
    assert len(read) <= 8


def test_the_next_rows_are_read_while_a_batch_is_encoded(drawings, model, processor, monkeypatch):
    """The rows of a stream may come from far away, so the codec does not wait for them."""
    read, third_batch, encode, calls = [], threading.Event(), type(model).encode_image_ids, []

    def rows():
        for number in range(8):
            read.append(number)
            if number == 5:
                third_batch.set()
            yield drawings[0] | {"prompt": f"number {number}"}

    def waiting(self, pixels):
        calls.append(len(pixels))
        if len(calls) == 2:
            assert third_batch.wait(30)
        assert max(read) < 2 * (len(calls) + 1)
        return encode(self, pixels)

    stream = datasets.IterableDataset.from_generator(rows, features=datasets.Dataset.from_list(drawings).features)
    monkeypatch.setattr(type(model), "encode_image_ids", waiting)
    assert len(prepare_rows(stream, model, processor, batch_size=2)) == 8
    assert calls == [2] * 4


def test_an_error_in_a_thread_names_the_row(drawings, model, processor, monkeypatch):
    def failing(raw, **kwargs):
        if raw["prompt"].endswith("5 dots"):
            raise MemoryError("no memory")
        return open_images(raw, **kwargs)

    monkeypatch.setattr(rows_module, "open_images", failing)
    with pytest.raises(MemoryError, match="no memory") as error:
        prepare_rows(drawings, model, processor, batch_size=2)
    assert error.value.__notes__ == ["This happened in row 5 of the source."]


KILLED = """
import sys, time, torch
from janus_hf import JanusProForConditionalGeneration, JanusProProcessor
from janus_hf.data import prepare
model = JanusProForConditionalGeneration.from_pretrained(sys.argv[3], dtype=torch.float32)
encode = model.encode_image_ids
model.encode_image_ids = lambda pixels: (time.sleep(0.3), encode(pixels))[1]
prepare(sys.argv[1], sys.argv[2], model, JanusProProcessor.from_pretrained(sys.argv[3]), num_shards=6)
"""


@pytest.mark.slow
def test_sigkill_loses_and_repeats_nothing(source, model, processor, tmp_path):
    source.to_parquet(tmp_path / "rows.parquet")
    path, out = str(tmp_path / "rows.parquet"), tmp_path / "out"
    environment = os.environ | {"HF_DATASETS_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, path, str(out), TINY_MODEL], env=environment, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 60
    while len(shard_paths(out)) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = {path.name: path.read_bytes() for path in shard_paths(out)}
    (out / ".shard-000005.arrow.1").write_bytes(b"half a shard")
    assert 2 <= len(before) < 6
    resumed = prepare(path, out, model, processor, num_shards=6)
    assert {name: (out / name).read_bytes() for name in before} == before
    assert rows_of(resumed) == rows_of(prepare_rows(source, model, processor))
    assert resumed.meta["skipped"] == {"bad_picture": 2}
    assert not list(out.glob(".*"))


def test_another_request_is_refused(source, model, processor, tmp_path):
    prepare(source, tmp_path, model, processor, num_shards=2)
    with pytest.raises(ValueError, match="max_length=512.*now it is 100"):
        prepare(source, tmp_path, model, processor, num_shards=2, max_length=100)
    with pytest.raises(ValueError, match="rows_per_shard=6.*now it is 4"):
        prepare(source, tmp_path, model, processor, num_shards=3)
    (tmp_path / "meta.json").unlink()
    with pytest.raises(ValueError, match="must be an empty folder"):
        prepare(source, tmp_path, model, processor, num_shards=2)
    with pytest.raises(FileNotFoundError, match="has no meta.json"):
        load_prepared(tmp_path)


def test_data_of_another_model_or_processor_is_refused(drawings, model, processor, tmp_path):
    prepared = prepare(drawings, tmp_path / "out", model, processor)
    ours = prepared.meta["model"]["codec_hash"]
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.model.vqmodel.quantize.embedding.weight.add_(1.0)
    with pytest.raises(ValueError, match=f"codec_hash: {ours} in the data, [0-9a-f]{{16}} in the model"):
        load_prepared(tmp_path / "out", model=other, processor=processor)
    with pytest.raises(ValueError, match="codec_hash"):
        prepare(drawings, tmp_path / "out", other, processor)
    foreign = copy.deepcopy(processor)
    foreign.num_image_tokens = 9
    with pytest.raises(ValueError, match="num_image_tokens: 64 in the data, 9 in the processor"):
        load_prepared(tmp_path / "out", processor=foreign)
    with pytest.raises(ValueError, match="placeholders per image .* got 64 in the model and 9 in the processor"):
        prepare_rows(drawings, model, foreign)
    # The same checkpoint in another precision is the same codec.
    load_prepared(tmp_path / "out", model=copy.deepcopy(model).to(torch.bfloat16), processor=processor)


def test_another_source_is_noticed_and_no_token_is_written(source, model, processor, tmp_path):
    source.to_parquet(tmp_path / "rows.parquet")
    prepare(tmp_path / "rows.parquet", tmp_path / "out", model, processor, token="hf_secret")
    assert "secret" not in (tmp_path / "out" / "meta.json").read_text()
    source.select(range(5)).to_parquet(tmp_path / "rows.parquet")
    with pytest.raises(ValueError, match="source_rows=12; now it is 5"):
        prepare(tmp_path / "rows.parquet", tmp_path / "out", model, processor)


def test_a_lost_shard_is_noticed(source, model, processor, tmp_path):
    prepare(source, tmp_path, model, processor, num_shards=2)
    shard_paths(tmp_path)[0].unlink()
    with pytest.raises(ValueError, match="must hold 2 shards, got 1"):
        load_prepared(tmp_path)


RANK = """
import sys, torch
from janus_hf import JanusProForConditionalGeneration, JanusProProcessor
from janus_hf.data import prepare
from pathlib import Path
import time
model = JanusProForConditionalGeneration.from_pretrained(sys.argv[3], dtype=torch.float32)
processor = JanusProProcessor.from_pretrained(sys.argv[3])
Path(sys.argv[4]).touch()
while len(list(Path(sys.argv[4]).parent.glob("ready-*"))) < 2:
    time.sleep(0.01)
prepare(sys.argv[1], sys.argv[2], model, processor, num_shards=6)
"""


def test_two_ranks_at_the_same_time_are_one(source, model, processor, tmp_path):
    source.to_parquet(tmp_path / "rows.parquet")
    expected = prepare(tmp_path / "rows.parquet", tmp_path / "one", model, processor, num_shards=6)
    environment = os.environ | {"HF_DATASETS_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(tmp_path / "rows.parquet"), str(tmp_path / "two"), TINY_MODEL,
             str(tmp_path / f"ready-{rank}")],
            env=environment | {"RANK": str(rank), "WORLD_SIZE": "2"},
        )
        for rank in range(2)
    ]  # fmt: skip
    assert [process.wait(timeout=120) for process in ranks] == [0, 0]
    together = load_prepared(tmp_path / "two", model=model, processor=processor)
    assert rows_of(together) == rows_of(expected)
    assert together.meta == expected.meta
    names = [path.name for path in shard_paths(tmp_path / "one")]
    assert all((tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes() for name in names)


def test_a_preparation_that_no_rank_finished_can_be_finished(source, model, processor, tmp_path, monkeypatch):
    """So it is on a network file system that shows the new files of other nodes late: here no rank sees a shard."""
    module = sys.modules[prepare_function.__module__]
    monkeypatch.setattr(module, "shard_paths", lambda folder: [])
    for rank in range(2):
        assert prepare(source, tmp_path, model, processor, num_shards=6, rank=rank, world_size=2) is None
    with pytest.raises(ValueError, match=r"not finished \(6 shards so far\)"):
        load_prepared(tmp_path)
    hidden = shard_paths(tmp_path)[2].rename(tmp_path / "hidden")
    finish_prepared(tmp_path)  # shards are really missing
    assert not json.loads((tmp_path / "meta.json").read_text())["complete"]
    hidden.rename(tmp_path / "shard-000002.arrow")
    finish_prepared(tmp_path)
    assert len(load_prepared(tmp_path)) == 10
    before = (tmp_path / "meta.json").read_bytes()
    finish_prepared(tmp_path)
    assert (tmp_path / "meta.json").read_bytes() == before


def test_two_writers_never_share_a_temporary_file(drawings, model, processor, tmp_path, monkeypatch):
    """Two processes may have the same number on two nodes, so the number must not name the file."""
    monkeypatch.setattr(os, "getpid", lambda: 7)
    names = []
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda old, new: (names.append(Path(old).name), replace(old, new))[1])
    for _ in range(2):
        write_json({}, tmp_path / "meta.json")
        write_shard(make_table([]), tmp_path / "shard-000000.arrow")
    assert len(set(names)) == 4


def test_streams_are_prepared_without_knowing_their_length(source, model, processor, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[prepare_function.__module__], "ROWS_PER_SHARD", 5)
    stream = source.to_iterable_dataset()
    assert prepare(stream, tmp_path / "out", model, processor, rank=1, world_size=2) is None
    done = prepare(stream, tmp_path / "out", model, processor, rank=0, world_size=2)
    assert done.meta["num_shards"] == 3
    assert rows_of(done) == rows_of(prepare_rows(source, model, processor))


@pytest.mark.parametrize("features", [None, datasets.Features({"text": datasets.Value("string")})])
def test_an_empty_stream_is_an_empty_source(model, processor, tmp_path, features):
    stream = datasets.IterableDataset.from_generator(lambda: iter(()), features=features)
    with pytest.raises(ValueError, match="got datasets.IterableDataset, which is empty"):
        prepare(stream, tmp_path, model, processor)
    with pytest.raises(ValueError, match="got datasets.IterableDataset, which is empty"):
        prepare_rows(stream, model, processor)


def test_rows_of_a_list_may_lack_columns(drawings, model, processor):
    prepared = prepare_rows([*drawings[:2], {"image": drawings[2]["image"]}], model, processor)
    assert (len(prepared), prepared.meta["skipped"]) == (2, {"missing_column": 1})
    assert prepared.meta["skipped_examples"][0][2] == "The row must have a column 'prompt', got ['image']."


def test_mixtures_get_a_folder_per_source(drawings, conversations, model, processor, tmp_path):
    sources = {"draw": drawings, "talk": {"source": conversations, "task": "understanding"}}
    done = prepare_mixture(sources, tmp_path, model, processor, batch_size=2)
    assert {name: len(dataset) for name, dataset in done.items()} == {"draw": 6, "talk": 3}
    assert len(load_prepared(tmp_path / "talk")) == 3
    with pytest.raises(ValueError, match="at least one source"):
        prepare_mixture({}, tmp_path, model, processor)
    with pytest.raises(ValueError, match="with a 'source' among them"):
        prepare_mixture({"a": {"task": "text"}}, tmp_path, model, processor)


def test_shards_are_plain_arrow(drawings, model, processor, tmp_path):
    prepare(drawings, tmp_path, model, processor)
    table = read_shard(shard_paths(tmp_path)[0])
    assert str(table.schema.field("input_ids").type) == "list<item: int32>"
    assert table.num_rows == 6
    assert not [path for path in Path(tmp_path).iterdir() if path.name.startswith(".")]
