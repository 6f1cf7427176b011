"""Runs of the understanding benchmarks: resuming, two processes, batches and failures on the small model."""

import base64
import io
import json
import os
import socket

import numpy as np
import pytest
import torch
from accelerate import PartialState
from understanding_data import IMAGE, POPE_ANSWERS, Answerer, pope_tsv, write_tsv

from janus_hf.evaluation.benchmarks.understanding import run_understanding
from janus_hf.evaluation.report import Report
from janus_hf.shapes import ask, picture, random_scene


def test_a_stopped_run_continues(tmp_path, monkeypatch):
    data, folder = pope_tsv(tmp_path / "POPE.tsv"), tmp_path / "run"
    whole = run_understanding(Answerer(monkeypatch, POPE_ANSWERS), "pope", data)
    with pytest.raises(KeyboardInterrupt):
        run_understanding(Answerer(monkeypatch, POPE_ANSWERS, stop_after=3), "pope", data, folder=folder, batch_size=2)
    with (folder / "answers.rank0.jsonl").open("ab") as file:
        file.write('{"index": "3", "answer": "ü'.encode()[:-1])  # killed while writing
    pipe = Answerer(monkeypatch, POPE_ANSWERS)
    report = run_understanding(pipe, "pope", data, folder=folder, batch_size=2)
    assert len(pipe.asked) == 4  # the first batch was kept
    assert (report.rows, report.metrics) == (whole.rows, whole.metrics)
    pipe = Answerer(monkeypatch, {})
    assert run_understanding(pipe, "pope", data, folder=folder).rows == whole.rows
    assert pipe.asked == []
    with pytest.raises(ValueError, match="limit: None there, 2 now"):
        run_understanding(pipe, "pope", data, folder=folder, limit=2)


def _one_of_two(rank, port, data, folder):
    """Run POPE as process `rank` of two, and write the report and the number of questions asked to the folder."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    PartialState._reset_state()
    PartialState(cpu=True)
    with pytest.MonkeyPatch.context() as patch:
        pipe = Answerer(patch, POPE_ANSWERS)
        report = run_understanding(pipe, "pope", data, folder=os.path.join(folder, "run"), batch_size=2)
        assert PartialState().num_processes == 2
    report.save(os.path.join(folder, f"report{rank}"))
    with open(os.path.join(folder, f"asked{rank}"), "w") as file:
        file.write(str(len(pipe.asked)))
    PartialState().wait_for_everyone()
    torch.distributed.destroy_process_group()


def test_two_processes_share_the_questions(tmp_path, monkeypatch):
    data = pope_tsv(tmp_path / "POPE.tsv")
    alone = run_understanding(Answerer(monkeypatch, POPE_ANSWERS), "pope", data)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = (port, data, str(tmp_path))
    torch.multiprocessing.start_processes(_one_of_two, arguments, nprocs=2, start_method="fork")
    for rank in range(2):
        report = Report.load(tmp_path / f"report{rank}")
        assert (report.metrics, report.rows, report.failures) == (alone.metrics, alone.rows, [])
        assert (tmp_path / f"asked{rank}").read_text() == "3"
    assert sorted(path.name for path in (tmp_path / "run").glob("answers.*")) == [
        "answers.rank0.jsonl",
        "answers.rank1.jsonl",
    ]
    again = Answerer(monkeypatch, {})  # one process continues where two stopped
    assert run_understanding(again, "pope", data, folder=tmp_path / "run").rows == alone.rows


def shapes_tsv(path, count=7):
    """Write GQA's table with questions of the shapes world, two of which have no readable image; return its path."""
    rng = np.random.default_rng(3)
    rows = []
    for index in range(count):
        scene = random_scene(rng)
        buffer = io.BytesIO()
        picture(scene).save(buffer, format="PNG")
        asked = ask(scene, rng)
        question = asked.question if index % 2 else f"{asked.question} {asked.question}"  # of different lengths
        image = base64.b64encode(buffer.getvalue()).decode()
        rows.append({"index": str(index), "question": question, "answer": asked.answer, "image": image})
    rows[2]["image"] = json.dumps([rows[2]["image"], IMAGE])
    rows[3]["image"] = IMAGE[:200]  # cut off
    rows[5]["image"] = ""
    return write_tsv(path, rows)


def test_batched_as_singly_on_the_small_model(pipe, tmp_path):
    data = shapes_tsv(tmp_path / "GQA.tsv")
    batched = run_understanding(pipe, "gqa", data, batch_size=4, max_new_tokens=8)
    single = run_understanding(pipe, "gqa", data, batch_size=1, max_new_tokens=8)
    assert batched.rows == single.rows
    assert batched.metrics == single.metrics
    assert [row["index"] for row in batched.rows] == ["0", "1", "2", "4", "6"]
    assert len({row["given"] for row in batched.rows}) > 1  # the images matter
    spoiled, none = batched.failures
    assert spoiled.startswith("3: ")
    assert none == "5: no image"
    assert batched.failed_share == pytest.approx(2 / 7)
    assert len(batched.settings["weights_sha256"]) == 64


def test_a_question_that_does_not_fit_is_a_failure(pipe, tmp_path):
    rows = [{"index": "0", "question": "circle " * 300, "answer": "x", "image": IMAGE}]
    rows += [{"index": "1", "question": "is there a circle ?", "answer": "x", "image": IMAGE}]
    report = run_understanding(pipe, "gqa", write_tsv(tmp_path / "GQA.tsv", rows), max_new_tokens=4)
    assert [row["index"] for row in report.rows] == ["1"]
    assert "the model's context holds 256" in report.failures[0]
