"""Streams: read once by all processes together, in one order, and continued after a kill without reading again."""

import json
import os
import signal
import subprocess
import sys
import time

import datasets
import pytest

from janus_hf.data import finish_prepared, load_prepared, prepare, prepare_rows
from janus_hf.data.schema import SourceError
from janus_hf.data.store import shard_paths
from tiny import TINY_MODEL


SIZES = (5, 0, 4, 7)  # rows of each file: with shards of two, parts with and without a shorter last shard


def ids(prepared):
    return [prepared[n]["input_ids"].tolist() for n in range(len(prepared))]


def texts(sizes=SIZES):
    return [f"file {file} row {row}" for file, rows in enumerate(sizes) for row in range(rows)]


@pytest.fixture
def expected(model, processor):
    """The prepared rows of all files in their order."""
    return ids(prepare_rows([{"text": text} for text in texts()], model, processor))


class Reads:
    """Stream of one part per file that notes which rows are read."""

    def __init__(self, sizes=SIZES):
        self.sizes, self.rows = sizes, []

    def stream(self):
        def read(files):
            for file in files:
                for row in range(self.sizes[file]):
                    self.rows.append(f"file {file} row {row}")
                    yield {"text": self.rows[-1]}

        stream = datasets.IterableDataset.from_generator(read, gen_kwargs={"files": list(range(len(self.sizes)))})
        return stream.cast(datasets.Features({"text": datasets.Value("string")}))


def run(stream, folder, model, processor, world_size, order=None):
    """Prepare a stream on several ranks, one after another, and return what the last of them returned."""
    done = None
    for rank in order or range(world_size):
        done = prepare(stream, folder, model, processor, rows_per_shard=2, rank=rank, world_size=world_size)
    return done


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 7])
def test_ranks_give_the_rows_of_one_process_in_its_order(world_size, expected, model, processor, tmp_path):
    reads = Reads()
    done = run(reads.stream(), tmp_path, model, processor, world_size, order=reversed(range(world_size)))
    assert ids(done) == expected
    assert done.meta["parts"] == [[3, 5], [0, 0], [2, 4], [4, 7]]
    assert not list(tmp_path.glob("end-*"))
    assert ids(load_prepared(tmp_path, model=model, processor=processor)) == expected


def test_ranks_read_each_row_once_together(model, processor, tmp_path):
    """The state of a stream is known after its first row, so each rank reads this one besides its own."""
    reads = Reads()
    first, begun = texts()[0], []
    for rank in range(2):
        reads.rows.clear()
        prepare(reads.stream(), tmp_path, model, processor, rows_per_shard=2, rank=rank, world_size=2)
        begun.append([text for text in reads.rows if text != first])
    assert sorted(begun[0] + begun[1]) == sorted(texts()[1:])


def test_a_finished_stream_is_not_read_again(expected, model, processor, tmp_path):
    reads = Reads()
    run(reads.stream(), tmp_path, model, processor, 1)
    reads.rows.clear()
    assert ids(run(reads.stream(), tmp_path, model, processor, 1)) == expected
    assert set(reads.rows) <= {texts()[0]}


def test_what_is_prepared_is_not_prepared_again(expected, model, processor, tmp_path, monkeypatch):
    """A stream that fails, first of all in its second part, goes on behind the shards that exist."""
    reads, failing = Reads(), Reads()
    failing.sizes = (5, 0, 3, 7)

    def stop(text):
        if text["text"] == "file 2 row 3":
            raise RuntimeError("no network")
        return text

    with pytest.raises(RuntimeError, match="no network"):
        run(reads.stream().map(stop), tmp_path, model, processor, 1)
    before = {path: path.stat().st_mtime_ns for path in shard_paths(tmp_path)}
    assert [path.name for path in before] == [
        f"shard-{part:06d}-{shard:06d}.arrow" for part, shard in [(0, 0), (0, 1), (0, 2), (2, 0)]
    ]
    reads.rows.clear()
    assert ids(run(reads.stream(), tmp_path, model, processor, 1)) == expected
    assert not {text for text in reads.rows if text.startswith("file 0")} - {texts()[0]}
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_the_number_of_ranks_may_change(expected, model, processor, tmp_path):
    stream = Reads().stream()
    assert prepare(stream, tmp_path, model, processor, rows_per_shard=2, rank=1, world_size=3) is None
    assert ids(run(stream, tmp_path, model, processor, 1)) == expected


def test_a_shard_that_is_lost_is_made_again(expected, model, processor, tmp_path):
    reads = Reads()
    run(reads.stream(), tmp_path, model, processor, 1)
    for name in ("shard-000000-000001.arrow", "shard-000003-000003.arrow"):
        (tmp_path / name).unlink()
        with pytest.raises(ValueError, match=f"missing: {name}"):
            load_prepared(tmp_path)
        assert ids(run(reads.stream(), tmp_path, model, processor, 1)) == expected


def test_a_stream_that_no_rank_finished_can_be_finished(expected, model, processor, tmp_path, monkeypatch):
    """So it is on a network file system that shows the new files of other nodes late."""
    write = sys.modules[prepare.__module__]
    monkeypatch.setattr(write, "find_parts", lambda output, meta: None)
    assert run(Reads().stream(), tmp_path, model, processor, 2) is None
    with pytest.raises(ValueError, match="not finished"):
        load_prepared(tmp_path)
    finish_prepared(tmp_path)
    assert ids(load_prepared(tmp_path)) == expected


def test_skipped_rows_are_numbered_in_the_source(model, processor, tmp_path):
    stream = Reads().stream().map(lambda row: {"text": "" if row["text"] == "file 2 row 1" else row["text"]})
    done = run(stream, tmp_path, model, processor, 2)
    assert done.meta["skipped_rows"] == {"empty_text": [texts().index("file 2 row 1")]}


def test_another_number_of_files_is_refused(model, processor, tmp_path):
    prepare(Reads().stream(), tmp_path, model, processor, rank=0, world_size=2)
    with pytest.raises(ValueError, match=r"of 4 parts \(files\); now it has 5.*Choose another folder"):
        prepare(Reads((*SIZES, 1)).stream(), tmp_path, model, processor)


def plain():
    return Reads().stream()


# Streams that are not equal to their parts one after another keep the order in which they are iterated.
KINDS = {
    "take": lambda: plain().take(6),
    "skip": lambda: plain().skip(3),
    "repeat": lambda: plain().repeat(2),
    "shuffle": lambda: plain().shuffle(seed=1, buffer_size=3),
    "interleave": lambda: datasets.interleave_datasets([plain(), plain().skip(2)]),
    "concatenate": lambda: datasets.concatenate_datasets([plain(), plain()]),
    "filter": lambda: plain().filter(lambda row: "row 1" not in row["text"]),
    "map": lambda: plain().map(lambda row: {"text": row["text"] + "!"}),
    "batched": lambda: plain().map(lambda rows: {"text": rows["text"] + ["more"]}, batched=True, batch_size=100),
    "of_a_dataset": lambda: datasets.Dataset.from_dict({"text": texts()}).to_iterable_dataset(num_shards=3),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_stream_keeps_its_order(kind, model, processor, tmp_path):
    if kind == "batched":
        expected = [row["text"] for part in range(4) for row in KINDS[kind]().shard(4, part)]
    else:
        expected = [row["text"] for row in KINDS[kind]()]
    done = run(KINDS[kind](), tmp_path, model, processor, 2)
    assert ids(done) == ids(prepare_rows([{"text": text} for text in expected], model, processor))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{broken", r"line 121 is not JSON"),
        ('["text"]', r"line 121 must be a dict"),
        ('{"text": "b", "caption": "late"}', r"line 121 has the columns \['caption'\].*give them to the first line"),
    ],
)
def test_a_line_that_cannot_be_read_late_in_a_stream_is_named(line, message, model, processor, tmp_path):
    """`datasets` reads 10 MB at a time, and ends with a message of its own, without a line, at a later one."""
    lines = [json.dumps({"text": "a", "id": "x" * 100_000})] * 130
    lines[120] = line
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    with pytest.raises(SourceError, match=rf"All rows of the source \(.*rows.jsonl\) .*: {message}.*goes on where"):
        prepare(str(tmp_path / "rows.jsonl"), tmp_path / "out", model, processor, streaming=True, rows_per_shard=50)
    assert len(shard_paths(tmp_path / "out")) >= 1


@pytest.mark.parametrize("number", [1, 2])
def test_a_first_line_that_cannot_be_read_is_named(number, model, processor, tmp_path):
    for file in range(number):
        (tmp_path / f"{file}.jsonl").write_text('{"text": "a"\n')
    with pytest.raises(SourceError, match=r"0\.jsonl.*line 1 is not JSON") as error:
        prepare(str(tmp_path / "*.jsonl"), tmp_path / "out", model, processor, streaming=True)
    assert "\n" not in str(error.value)


def test_the_file_is_named_that_ends_a_stream(model, processor, tmp_path):
    (tmp_path / "a.csv").write_text("text\none\n")
    (tmp_path / "b.csv").write_text("text\ntwo\n")
    source = datasets.load_dataset("csv", data_files=str(tmp_path / "*.csv"), split="train", streaming=True)
    assert source.num_shards == 2
    (tmp_path / "b.csv").write_bytes(b"text\n\xff\xfe\n")
    with pytest.raises(SourceError, match=r"part 1 of the source \(.*b\.csv\)|b\.csv"):
        prepare(str(tmp_path / "*.csv"), tmp_path / "out", model, processor, streaming=True)


KILLED = """
import os, sys, time, torch
from pathlib import Path
from janus_hf import JanusProForConditionalGeneration, JanusProProcessor
from janus_hf.data import prepare
model = JanusProForConditionalGeneration.from_pretrained(sys.argv[3], dtype=torch.float32)
encode = model.encode_image_ids
model.encode_image_ids = lambda pixels: (time.sleep(float(sys.argv[4])), encode(pixels))[1]
prepare(sys.argv[1], sys.argv[2], model, JanusProProcessor.from_pretrained(sys.argv[3]), streaming=True,
        rows_per_shard=3)
"""


@pytest.mark.slow
@pytest.mark.parametrize("files", [1, 3])
def test_a_stream_that_was_killed_on_two_ranks_goes_on(files, drawings, model, processor, tmp_path):
    """Both ranks are killed when each has made a shard; started again, they make the rest, each row once."""
    rows = [drawings[n % 6] | {"prompt": f"number {n}"} for n in range(8 * files)]
    for file in range(files):
        datasets.Dataset.from_list(rows[file * 8 : file * 8 + 8]).to_parquet(tmp_path / f"{file}.parquet")
    source, out = str(tmp_path / "*.parquet"), tmp_path / "out"
    environment = os.environ | {"HF_DATASETS_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}

    def start(delay):
        return [
            subprocess.Popen(
                [sys.executable, "-c", KILLED, source, str(out), TINY_MODEL, str(delay)],
                env=environment | {"RANK": str(rank), "WORLD_SIZE": "2"},
                stderr=subprocess.DEVNULL,
            )
            for rank in range(2)
        ]

    ranks = start(2.0)
    deadline = time.monotonic() + 240
    while len(shard_paths(out)) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    for process in ranks:
        process.send_signal(signal.SIGKILL)
    assert [process.wait() for process in ranks] == [-signal.SIGKILL] * 2
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in shard_paths(out)}
    assert 2 <= len(before) < 3 * files
    with pytest.raises(ValueError, match="not finished"):
        load_prepared(out)
    assert [process.wait(timeout=300) for process in start(0.0)] == [0, 0]
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in before} == before
    resumed = load_prepared(out, model=model, processor=processor)
    straight = prepare(source, tmp_path / "straight", model, processor, streaming=True, rows_per_shard=3)
    assert ids(resumed) == ids(straight) == ids(prepare_rows(rows, model, processor))
    assert resumed.meta == straight.meta
    names = [path.name for path in shard_paths(out)]
    assert names == [path.name for path in shard_paths(tmp_path / "straight")]
    assert all((out / name).read_bytes() == (tmp_path / "straight" / name).read_bytes() for name in names)
