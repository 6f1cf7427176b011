"""Damaged files of prepared data: every changed byte is either harmless or an error that names the file."""

import json
import random
import shutil

import numpy as np
import pyarrow as pa
import pytest

from janus_hf.data import PackedDataset, load_prepared, prepare, stream_packs
from janus_hf.data.store import make_table, read_shard, shard_paths, write_shard


SHARD = "shard-000001.arrow"


@pytest.fixture(scope="module")
def intact(tmp_path_factory, drawings, conversations, model, processor):
    """A folder of three shards with drawings, or with conversations that have images."""
    folder = tmp_path_factory.mktemp("intact")
    prepare(drawings, folder / "draw", model, processor, num_shards=3)
    prepare(conversations, folder / "talk", model, processor, num_shards=3)
    return folder


@pytest.fixture(params=["draw", "talk"])
def folder(intact, request, tmp_path):
    """A copy of one of these folders."""
    return shutil.copytree(intact / request.param, tmp_path / request.param)


def read_all(folder):
    """Return every row of a folder as plain Python values."""
    rows = load_prepared(folder)
    return [
        {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in rows[index].items()}
        for index in range(len(rows))
    ]


def outcome(folder):
    """Return the rows of a folder, or the message of the error that reading them raises."""
    try:
        return read_all(folder)
    except ValueError as error:
        return str(error)


@pytest.mark.parametrize("name", [SHARD, "index.arrow", "meta.json"])
def test_every_changed_byte_is_harmless_or_named(folder, name):
    """The index and the manifest are read completely, so an error about them names the file or the folder."""
    expected, path = read_all(folder), folder / name
    content, chance = path.read_bytes(), random.Random(0)
    found = 0
    for place in chance.sample(range(len(content)), min(len(content), 150)):
        changed = bytearray(content)
        changed[place] ^= chance.choice([1, 4, 0x40, 0x7F, 0x80, 0xFF])
        path.write_bytes(changed)
        if (read := outcome(folder)) != expected:
            found += 1
            assert isinstance(read, str)
            assert str(path if name == SHARD else folder) in read, read
            assert any(word in read for word in ("delete", "restore", "Take away", "run it again")), read
    assert found > 10


def flip(column, buffer, place, mask):
    """Return a function that changes one byte of a buffer of a column, found by the content before it."""

    def change(content, table):
        values = table.column(column).chunk(0).buffers()[buffer].to_pybytes()
        content[content.index(values) + place % len(values)] ^= mask

    return change


DAMAGE = {
    "offset far behind": flip("input_ids", 1, 6, 0x7F),
    "offset one further": flip("input_ids", 1, 4, 0x01),
    "offset before the one before": flip("labels", 1, 7, 0x80),
    "id beyond the vocabularies": flip("input_ids", 3, 10, 0x10),
    "negative id": flip("input_ids", 3, 11, 0x80),
    "another id": flip("input_ids", 3, 8, 0x01),
    "another label": flip("labels", 3, -4, 0x01),
    "another task": flip("task", 2, 0, 0x01),
    "offset of a task": flip("task", 1, 6, 0x7F),
    "another length": flip("length", 1, 0, 0x01),
    "another end of the prompt": flip("prompt_end", 1, 0, 0x02),
    "another checksum": flip("checksum", 1, 0, 0x01),
}


@pytest.mark.parametrize("change", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_row_is_named(folder, change):
    content = bytearray((folder / SHARD).read_bytes())
    change(content, read_shard(folder / SHARD))
    (folder / SHARD).write_bytes(content)
    with pytest.raises(ValueError, match=f"{folder / SHARD} must be .* delete this file, and run"):
        read_all(folder)
    with pytest.raises(ValueError, match=f"{folder / SHARD} must be"):
        list(stream_packs({"a": str(folder)}, max_length=512, ratios={"a": 1}, epochs=1))


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("name", [SHARD, "index.arrow", "meta.json"])
def test_a_file_that_was_cut_is_named(folder, name, share):
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ValueError, match=f"{folder / name} must be a complete file"):
        read_all(folder)


@pytest.mark.parametrize("content", [b"", b"no Arrow file", b"\x00" * 5000, b"[]", b"{}", b"\xff\xfe"])
@pytest.mark.parametrize("name", [SHARD, "index.arrow", "meta.json"])
def test_other_content_is_named(folder, name, content):
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{folder / name} must be a complete file"):
        read_all(folder)


def test_a_shard_of_other_columns_or_rows_is_named(folder):
    table = pa.ipc.open_file((folder / SHARD).read_bytes()).read_all()
    for other in (
        table.drop_columns(["task"]),
        table.append_column("more", table.column("length")),
        table.set_column(3, "length", table.column("length").cast(pa.int64())),
        table.slice(0, 1),
        pa.concat_tables([table, table]).combine_chunks(),
    ):
        with pa.OSFile(str(folder / SHARD), "wb") as file, pa.ipc.new_file(file, other.schema) as writer:
            writer.write_table(other)
        with pytest.raises(ValueError, match=f"{folder / SHARD} must be"):
            read_all(folder)


def test_ids_beyond_the_vocabularies_are_refused_without_a_checksum(folder, model):
    """Such a shard may come from an early version, whose rows had no checksum, or from another program."""
    last = model.config.text_config.vocab_size + model.config.vq_config.num_embeddings - 1
    rows, columns = read_all(folder), read_shard(folder / SHARD).column_names[:-1]
    first = len(read_shard(folder / "shard-000000.arrow"))
    for ids, is_good in (([last], True), ([last + 1], False), ([-1], False)):
        row = rows[first]
        changed = row | {name: row[name][:-1] + ids for name in ("input_ids", "labels")}
        write_shard(make_table([changed, rows[first + 1]]).select(columns), folder / SHARD)
        if is_good:
            assert read_all(folder)[first] == changed
        else:
            with pytest.raises(
                ValueError, match=rf"{SHARD} must be .* the id {ids[0]} \(ids are 0 to {last}\) in its row 0"
            ):
                read_all(folder)


def test_missing_and_other_shards_are_named(folder):
    shutil.copy(folder / SHARD, folder / "shard-000003.arrow")
    with pytest.raises(ValueError, match=r"must hold 3 shards, got 4; .*not its own: shard-000003.arrow"):
        load_prepared(folder)
    (folder / SHARD).unlink()
    with pytest.raises(ValueError, match=rf"got 3; missing: {SHARD}; not its own: shard-000003.arrow"):
        load_prepared(folder)


def test_a_shard_that_vanishes_is_named(folder):
    rows = load_prepared(folder)
    rows.check_shards()
    (folder / SHARD).unlink()
    rows = PackedDataset({"a": _reopened(rows)}, max_length=512)
    with pytest.raises(ValueError, match=f"{folder / SHARD} must be a complete file .*No such file"):
        [rows[index] for index in range(len(rows))]
    with pytest.raises(ValueError, match=SHARD):
        rows.sources["a"].check_shards(rank=1, world_size=2)
    rows.sources["a"].check_shards(rank=0, world_size=2)


def _reopened(rows):
    """Return the same rows with shards that are not open yet."""
    return type(rows)(type(rows.tables)(rows.tables.paths), rows.meta, rows.path, rows.index)


def test_only_a_damaged_shard_is_made_again(folder, drawings, conversations, model, processor):
    source = drawings if folder.name == "draw" else conversations
    before, expected = {path.name: path.read_bytes() for path in shard_paths(folder)}, read_all(folder)
    (folder / SHARD).write_bytes(before[SHARD][:-9])
    with pytest.raises(ValueError, match=f"{folder / SHARD} must be .* delete this file, and run"):
        prepare(source, folder, model, processor, num_shards=3)
    times = {path.name: path.stat().st_mtime_ns for path in shard_paths(folder)}
    (folder / SHARD).unlink()
    prepare(source, folder, model, processor, num_shards=3)
    assert {path.name: path.read_bytes() for path in shard_paths(folder)} == before
    assert [name for name, time in times.items() if (folder / name).stat().st_mtime_ns != time] == [SHARD]
    assert read_all(folder) == expected


def test_prepare_names_shards_with_damaged_offsets(folder, drawings, conversations, model, processor):
    """`prepare` makes the index anew from the shards, and Arrow would end the process over such an offset."""
    source = drawings if folder.name == "draw" else conversations
    for kind in ("offset far behind", "offset before the one before", "offset of a task", "another task"):
        content = bytearray((folder / SHARD).read_bytes())
        DAMAGE[kind](content, read_shard(folder / SHARD))
        before, _ = (folder / SHARD).read_bytes(), (folder / SHARD).write_bytes(content)
        with pytest.raises(ValueError, match=f"{folder / SHARD} must be"):
            prepare(source, folder, model, processor, num_shards=3)
        (folder / "index.arrow").unlink(missing_ok=True)
        with pytest.raises(ValueError, match=f"{folder / SHARD} must be"):
            load_prepared(folder)
        (folder / SHARD).write_bytes(before)


@pytest.mark.parametrize("entry", ["num_rows", "num_shards", "complete", "model", "processor"])
@pytest.mark.parametrize("value", [None, "many", -1, []])
def test_a_manifest_that_lacks_an_entry_is_named(folder, entry, value):
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps(meta | {entry: value}))
    with pytest.raises(ValueError, match=f"{folder}.* must "):
        load_prepared(folder)
