"""Bad rows in raw data and in prepared data: they are counted and listed, the work goes on, and a limit ends it."""

import json
import logging
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch

from janus_hf.data import (
    JanusProCollator,
    PackedDataset,
    finish_prepared,
    load_prepared,
    prepare,
    prepare_mixture,
    prepare_rows,
)
from janus_hf.data.integrity.bad_rows import BadRows
from janus_hf.data.prepare import _rows_per_shard
from janus_hf.data.store import make_table, write_shard
from janus_hf_cli import main, training_commands


TALK = [{"role": "user", "content": "<image>What is it?"}, {"role": "assistant", "content": "A dog."}]
SURROGATE = [{"role": "user", "content": "Hm\ud83d?"}, {"role": "assistant", "content": "Yes."}]
# Bad row -> the reason for which it is skipped.
BAD = {
    "no picture": ({"messages": TALK, "images": [b"no picture"]}, "bad_picture"),
    "empty file": ({"messages": TALK, "images": [b""]}, "bad_picture"),
    "cut short": ({"messages": TALK, "images": [b"\x89PNG\r\n\x1a\n\x00\x00"]}, "bad_picture"),
    "missing file": ({"messages": TALK, "images": ["gone.png"]}, "missing_picture"),
    "a folder": ({"messages": TALK, "images": ["."]}, "missing_picture"),
    "no address": ({"messages": TALK, "images": ["http://127.0.0.1:9/x.png"]}, "bad_picture"),
    "another kind": ({"messages": TALK, "images": [5]}, "bad_picture"),
    "no image": ({"messages": TALK, "images": []}, "picture_mismatch"),
    "no turns": ({"messages": 5, "images": []}, "bad_conversation"),
    "turns in another order": ({"messages": TALK[::-1], "images": []}, "bad_conversation"),
    "too long": ({"messages": [TALK[0] | {"content": "dog " * 999}, TALK[1]], "images": []}, "too_long"),
    "half a character": ({"messages": SURROGATE, "images": []}, "bad_text"),
}


def good(conversations, count):
    """Return `count` rows that can be used."""
    return [conversations[number % len(conversations)] for number in range(count)]


@pytest.mark.parametrize(("row", "reason"), BAD.values(), ids=BAD)
def test_a_bad_row_is_counted_and_the_work_goes_on(row, reason, conversations, model, processor):
    prepared = prepare_rows([*good(conversations, 4), row, conversations[0]], model, processor)
    assert len(prepared) == 5
    assert prepared.meta["skipped"] == {reason: 1}
    assert prepared.meta["skipped_rows"] == {reason: [4]}


def test_the_end_lists_counts_and_first_rows_by_reason(conversations, model, processor, caplog):
    bad = [BAD["missing file"][0], BAD["too long"][0], *[BAD["no picture"][0]] * 7]
    prepared = prepare_rows([*good(conversations, 10), *bad], model, processor)
    assert prepared.meta["skipped"] == {"missing_picture": 1, "too_long": 1, "bad_picture": 7}
    assert prepared.meta["skipped_rows"] == {
        "bad_picture": [12, 13, 14, 15, 16],
        "missing_picture": [10],
        "too_long": [11],
    }
    listed = "bad_picture: rows 12, 13, 14, 15, 16 and 2 more; missing_picture: row 10; too_long: row 11."
    assert listed in caplog.text


def test_most_rows_bad_end_the_preparation(conversations, model, processor, tmp_path):
    bad = BAD["missing file"][0]
    half = [*good(conversations, 10), *[bad] * 10]
    assert len(prepare_rows(half, model, processor)) == 10
    with pytest.raises(ValueError, match=r"At most 0\.5 of the rows of builtins.list .* got 11 of 21.*gone.png"):
        prepare_rows([*half, bad], model, processor)
    assert len(prepare_rows([*half, bad], model, processor, max_bad_share=0.6)) == 10
    assert len(prepare_rows([conversations[0], *[bad] * 20], model, processor, max_bad_share=1)) == 1
    # Rows of another task were left out on purpose.
    assert len(prepare_rows(good(conversations, 20), model, processor, task="text")) == 8
    with pytest.raises(ValueError, match="may be bad, got 11 of 21"):
        prepare([*half, bad], tmp_path, model, processor)
    with pytest.raises(ValueError, match="not finished"):
        load_prepared(tmp_path)
    with pytest.raises(ValueError, match="may be bad"):
        finish_prepared(tmp_path)
    assert len(prepare([*half, bad], tmp_path, model, processor, max_bad_share=0.9)) == 10
    assert len(prepare([*half, bad], tmp_path, model, processor)) == 10  # it is done, and was accepted


def test_the_limit_ends_it_long_before_the_last_row(conversations, model, processor):
    read = []

    def rows():
        for number in range(10_000):
            read.append(number)
            yield BAD["missing file"][0] if number % 5 else conversations[4]

    stream = datasets.IterableDataset.from_generator(rows)
    with pytest.raises(ValueError, match="At most 0.5 of the rows"):
        prepare_rows(stream, model, processor, batch_size=8)
    assert len(read) < 200
    read.clear()
    with pytest.raises(ValueError, match=r"At most 0 of the rows .* got 6 of 8; row 7 \(missing_picture\)"):
        prepare_rows(stream, model, processor, batch_size=8, max_bad_share=0)
    assert len(read) < 40


@pytest.mark.parametrize("value", [-0.1, 1.1, "half", None, True, float("nan")])
def test_a_limit_is_a_share(value, conversations, model, processor, tmp_path):
    with pytest.raises((TypeError, ValueError), match="`max_bad_share` must be a number"):
        prepare_rows(conversations, model, processor, max_bad_share=value)
    with pytest.raises((TypeError, ValueError), match="`max_bad_share` must be a number"):
        prepare_mixture({"a": conversations}, tmp_path, model, processor, max_bad_share=value)


def test_the_first_rows_alone_do_not_decide():
    counter = BadRows(0.5, "x")
    counter.add(50, [(number, "bad_picture", "m") for number in range(50)])
    counter.add(1000, [(0, "other_task", "m")] * 1000)
    with pytest.raises(ValueError, match="got 526 of 1051"):
        counter.add(1, [(number, "bad_picture", "m") for number in range(476)])


@pytest.fixture
def spoilt(conversations, model, processor, tmp_path):
    """Prepared conversations of which row 1 has images that cannot be decoded here; its bytes are those written."""
    rows = prepare_rows(conversations, model, processor)
    content = [rows[number] for number in range(5)]
    content[1]["images"] = [content[1]["images"][0], b"a format that only the other machine reads"]
    prepare(conversations, tmp_path / "a", model, processor)
    write_shard(make_table(content), tmp_path / "a" / "shard-000000.arrow")
    return load_prepared(tmp_path / "a")


def test_a_row_that_cannot_be_decoded_in_training_is_not_trained(spoilt, processor, caplog):
    packed = PackedDataset({"talk": spoilt}, max_length=512)
    packs = [packed[number] for number in range(len(packed))]
    collate = JanusProCollator(processor)
    with caplog.at_level(logging.WARNING):
        batch = collate(packs)
    assert "Row 1 of the source 'talk' is not trained, because its image cannot be decoded here" in caplog.text
    assert (collate.bad_rows.bad, collate.bad_rows.read) == (1, 3)
    assert len(batch["pixel_values"]) == 4
    # Everything else stays where it is, so that a resumed run has the same batches.
    documents = [document for pack in packs for document in pack["documents"]]
    trained = sum(int((document["labels"] != -100).sum()) for document in documents if document["row"] != 1)
    assert int((batch["labels"] != -100).sum()) == trained
    again = JanusProCollator(processor)([packed[number] for number in range(len(packed))])
    assert all(
        torch.equal(batch[name], again[name]) for name in ("input_ids", "labels", "position_ids", "pixel_values")
    )
    assert [list(document["labels"]) for document in documents] == [
        spoilt[document["row"]]["labels"].tolist() for document in documents
    ]


def test_most_rows_undecodable_end_the_training(spoilt, processor):
    collate = JanusProCollator(processor)
    for _ in range(50):
        collate([spoilt[1]])
    with pytest.raises(ValueError, match="prepared data may be bad, got 51 of 51; .*could not be decoded"):
        collate([spoilt[1]])


def test_the_command_lists_the_rows(model, processor, tmp_path, capsys, monkeypatch):
    loaded = SimpleNamespace(model=model, processor=processor)
    monkeypatch.setattr(training_commands, "load_pipeline", lambda arguments: loaded)
    rows = [{"text": "Some words."}] * 3 + [{"text": ""}] * 2
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["prepare", f"mine={tmp_path / 'a.jsonl'}", "-o", str(tmp_path / "out"), "-m", "unused"]
    main([*arguments, "--rows-per-shard", "2", "--max-bad-share", "0.4"])
    out = capsys.readouterr().out
    assert "3 rows, skipped: {'empty_text': 2}" in out
    assert "mine: skipped rows of the source, by number: empty_text: rows 3, 4" in out
    assert len(list((tmp_path / "out" / "mine").glob("shard-*"))) == 3


# Rows of the source, rows per shard that the user asks for -> rows per shard.
@pytest.mark.parametrize(
    ("rows", "asked", "expected"),
    [
        (None, None, 1024),
        (1, None, 1024),
        (10**6, None, 1024),
        (2**21, None, 4096),
        (10**7, None, 8192),
        (10**9, None, 8192),
        (10**9, 5, 5),
        (None, 70_000, 70_000),
    ],
)
def test_large_sources_have_large_shards(rows, asked, expected, tmp_path):
    assert _rows_per_shard(rows, None, asked, tmp_path) == expected


def test_rows_per_shard_is_checked_and_kept(conversations, model, processor, tmp_path):
    for value in (0, -1, 1.5, True, "2"):
        with pytest.raises((TypeError, ValueError), match="`rows_per_shard` must be an integer"):
            prepare(conversations, tmp_path, model, processor, rows_per_shard=value)
    with pytest.raises(ValueError, match="must not be given together"):
        prepare(conversations, tmp_path, model, processor, rows_per_shard=2, num_shards=2)
    first = prepare(conversations, tmp_path, model, processor, rows_per_shard=2)
    assert np.diff(first.starts).tolist() == [2, 2, 1]
    again = prepare(conversations, tmp_path, model, processor)  # what an earlier run chose is the default
    assert again.meta == first.meta
    with pytest.raises(ValueError, match="rows_per_shard=2; now it is 3"):
        prepare(conversations, tmp_path, model, processor, rows_per_shard=3)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "cut', "Unterminated string"),
        ("no JSON", "Expecting value"),
        ("[1]", "must be a dict, got \\[1\\]"),
        ('{"text": "\\ud83d"}', "surrogates not allowed"),
    ],
)
@pytest.mark.parametrize("form", ["file", "folder", "pattern"])
def test_a_line_that_is_no_row_is_named(line, message, form, model, processor, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "one"}\n\n' + line + '\n{"text": "two"}\n')
    source = {"file": path, "folder": tmp_path, "pattern": tmp_path / "*.jsonl"}[form]
    with pytest.raises(ValueError, match=f"readable as json, got '{path}', which is not: line 3 .*{message}"):
        prepare_rows(source, model, processor)
