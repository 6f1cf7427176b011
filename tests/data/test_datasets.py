"""Packs by number and as a stream, read by the loaders that training uses."""

import pickle
import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from datasets.distributed import split_dataset_by_node
from torch.utils.data import DataLoader, SequentialSampler, Subset

from janus_hf.data import (
    JanusProCollator,
    PackedDataset,
    load_prepared,
    make_plan,
    prepare,
    prepare_rows,
    store,
    stream_packs,
)


@pytest.fixture(scope="module")
def folders(drawings, conversations, model, processor, tmp_path_factory):
    """Two prepared sources: name -> folder. "draw" has two shards, "talk" has five."""
    root = tmp_path_factory.mktemp("prepared")
    prepare(drawings, root / "draw", model, processor, num_shards=2)
    prepare(conversations, root / "talk", model, processor, num_shards=5)
    return {"draw": str(root / "draw"), "talk": str(root / "talk")}


@pytest.fixture(scope="module")
def packed(drawings, conversations, model, processor):
    """Twelve packs of both sources, prepared in memory."""
    sources = {"draw": prepare_rows(drawings, model, processor), "talk": prepare_rows(conversations, model, processor)}
    plan = make_plan(
        {name: source.lengths for name, source in sources.items()},
        max_length=512,
        ratios={"draw": 3, "talk": 2},
        num_packs=12,
    )
    return PackedDataset(sources, plan)


def same(a, b):
    """Return whether two batches hold the same tensors."""
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_data_loader_reads_packs(packed, processor, workers):
    collate = JanusProCollator(processor)
    loader = DataLoader(packed, batch_size=4, collate_fn=collate, num_workers=workers)
    batches = list(loader)
    assert len(batches) == 3
    assert same(batches[1], collate([packed[index] for index in range(4, 8)]))


def test_skipping_numbers_is_resuming(packed, processor):
    collate = JanusProCollator(processor)
    straight = list(DataLoader(packed, batch_size=2, collate_fn=collate, sampler=SequentialSampler(packed)))
    resumed = list(DataLoader(Subset(packed, range(6, 12)), batch_size=2, collate_fn=collate))
    assert all(same(a, b) for a, b in zip(straight[3:], resumed, strict=True))


def test_the_hf_dataset_gives_the_same_packs(packed, processor):
    dataset = packed.to_hf()
    collate = JanusProCollator(processor)
    assert isinstance(dataset, datasets.Dataset)
    assert (len(dataset), dataset.column_names) == (12, ["pack"])
    assert same(collate([dataset[3], dataset[5]]), collate([packed[3], packed[5]]))
    loader = DataLoader(dataset, batch_size=4, collate_fn=collate, num_workers=1)
    assert same(next(iter(loader)), collate([packed[index] for index in range(4)]))


def test_copies_in_other_processes_open_the_files_again(folders, model, processor):
    source = load_prepared(folders["draw"], model=model, processor=processor)
    assert len(pickle.dumps(source)) < 1000
    assert pickle.loads(pickle.dumps(source))[3]["input_ids"].tolist() == source[3]["input_ids"].tolist()


def test_streams_mix_pack_and_end(folders, processor):
    stream = stream_packs(folders, max_length=512, ratios={"draw": 1, "talk": 1}, seed=1, epochs=1)
    assert isinstance(stream, datasets.IterableDataset)
    packs = list(stream)
    documents = [document for pack in packs for document in pack["documents"]]
    counts = {name: sum(document["source"] == name for document in documents) for name in folders}
    assert counts["talk"] == 5
    assert abs(counts["draw"] - 5) <= 1
    assert len({(d["source"], d["row"], d["visit"]) for d in documents}) == len(documents)
    assert all(sum(d["length"] for d in pack["documents"]) <= 512 for pack in packs)
    batch = JanusProCollator(processor)(packs)
    assert len(batch["input_ids"]) == len(packs)
    again = list(stream)
    assert [[d["row"] for d in p["documents"]] for p in again] == [[d["row"] for d in p["documents"]] for p in packs]


def test_endless_streams_keep_the_ratio_and_workers_share_the_shards(folders, processor):
    stream = stream_packs(folders, max_length=512, ratios={"draw": 4, "talk": 1}, pool_size=16)
    packs = list(stream.take(150))
    sources = [document["source"] for pack in packs for document in pack["documents"]]
    assert sources.count("draw") / len(sources) == pytest.approx(0.8, abs=0.02)
    once = stream_packs(folders, max_length=512, ratios={"draw": 1, "talk": 1}, epochs=1)
    loader = DataLoader(once, batch_size=None, num_workers=2)
    rows = [(d["source"], str(d["row"])) for pack in loader for d in pack["documents"]]
    assert len(rows) == len(set(rows))
    parts = [split_dataset_by_node(once, rank=rank, world_size=2) for rank in range(2)]
    first, second = ({str(d["row"]) for pack in part for d in pack["documents"]} for part in parts)
    assert first
    assert second
    assert not first & second


@pytest.mark.parametrize("index", [True, False])
def test_streams_leave_out_shards_without_rows(drawings, conversations, model, processor, tmp_path, index):
    """A worker that was dealt only shards without rows once looked for a row without end."""
    rows = [conversations[number] for number in (0, 1, 2, 0, 1, 3, 4, 0)]
    prepare(rows, tmp_path / "talk", model, processor, num_shards=4, task="text")
    if not index:
        (tmp_path / "talk" / "index.arrow").unlink()
    source = load_prepared(tmp_path / "talk")
    assert [len(table) for table in source.tables] == [0, 0, 1, 1]
    assert source[1]["input_ids"].tolist() == load_prepared(tmp_path / "talk")[1]["input_ids"].tolist()
    stream = stream_packs({"talk": str(tmp_path / "talk")}, max_length=512, ratios={"talk": 1})
    assert stream.num_shards == 2
    for rank in range(2):
        (pack,) = split_dataset_by_node(stream, rank=rank, world_size=2).take(1)
        assert {document["source"] for document in pack["documents"]} == {"talk"}


def test_few_shards_are_open_at_a_time(folders, monkeypatch):
    monkeypatch.setattr(store, "OPEN_SHARDS", 2)
    opened = []
    read = store.read_shard
    monkeypatch.setattr(store, "read_shard", lambda path: (opened.append(Path(path).name), read(path))[1])
    source = load_prepared(folders["talk"])
    assert opened == ["index.arrow"]
    assert source.lengths.dtype == np.int32
    assert source.lengths.tolist() == [source[index]["length"] for index in range(5)]
    assert source.tasks.tolist() == [source[index]["task"] for index in range(5)]
    assert len(opened) == 1 + 5 + 5
    assert len(mapped(folders["talk"])) <= 3


def test_an_index_of_other_rows_is_refused(conversations, model, processor, tmp_path):
    prepare(conversations, tmp_path / "a", model, processor)
    prepare(conversations[:3], tmp_path / "b", model, processor)
    shutil.copy(tmp_path / "b" / "index.arrow", tmp_path / "a" / "index.arrow")
    with pytest.raises(ValueError, match="must hold 5 rows, got 3 in its index.arrow"):
        load_prepared(tmp_path / "a")


def mapped(folder):
    """Return the files of a folder that this process has mapped into memory."""
    return {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if f"{folder}/" in line}


def test_streams_refuse_what_they_cannot_do(folders, tmp_path):
    with pytest.raises(ValueError, match="one ratio for each"):
        stream_packs(folders, max_length=512, ratios={"draw": 1})
    with pytest.raises(ValueError, match=r"got none for the sources \['empty'\]"):
        stream_packs({"empty": str(tmp_path)}, max_length=512, ratios={"empty": 1})
    with pytest.raises(ValueError, match="at most `max_length`=70 tokens"):
        list(stream_packs(folders, max_length=70, ratios={"draw": 1, "talk": 1}, epochs=1))
