"""DPG-Bench from prompts to report, and its command."""

import sys

import pytest
from launch import files, finish
from PIL import Image

from janus_hf.assets import DEFAULT_MODEL
from janus_hf.evaluation.evaluators import DPGBench
from janus_hf.evaluation.report import Report
from janus_hf.rewards.mplug import MplugJudge
from tiny_judges import write_modelscope


def test_the_command_ends_the_other_python(run, dpg_data, monkeypatch, tmp_path):
    monkeypatch.setenv("PYTHONPATH", str(write_modelscope(tmp_path)))
    close, ended = MplugJudge.close, []

    def record(judge):
        process = judge.process
        close(judge)
        ended.append(process.poll())

    monkeypatch.setattr(MplugJudge, "close", record)
    status, out, err = run(
        "eval", "dpg", "--mplug-python", sys.executable, "--data", dpg_data, "--limit", 1, "-o", "out"
    )
    assert status == 0, err
    assert "| **overall** | 0.00 |" in out  # no image is 3 x 2, so every answer was no
    assert ended == [0]


class SaysYes:
    """A judge that says yes to the first questions about an image; the number depends on its first row of pixels."""

    name = "agreeable"

    def __call__(self, image, questions):
        share = sum(image.crop((0, 0, image.width, 1)).tobytes()) % 4
        return ["yes" if number < share else "no" for number in range(len(questions))]


def test_the_whole_way_with_a_sheet_and_no_other_data(pipe, dpg_data, tmp_path):
    report = DPGBench(dpg_data, SaysYes(), limit=2)(pipe, tmp_path / "run")
    assert [row["item_id"] for row in report.rows] == ["a", "b"]
    assert report.protocol.startswith("2 prompts, 4 images each in a 2x2 grid; agreeable answers")
    with Image.open(tmp_path / "run" / "sheet.png") as sheet:
        assert sheet.width > 2 * sheet.height  # one row
    assert Report.load(tmp_path / "run") == report

    table = (dpg_data / "dpg_bench.csv").read_text()
    (dpg_data / "dpg_bench.csv").write_text(table.replace("dog?", "puppy?", 1))
    with pytest.raises(ValueError, match="propositions_sha256: .* there, .* now"):
        DPGBench(dpg_data, SaysYes(), limit=2)(pipe, tmp_path / "run")
    (dpg_data / "prompts" / "a.txt").write_text("another prompt")
    with pytest.raises(ValueError, match="prompts_sha256: .* there, .* now"):
        DPGBench(dpg_data, SaysYes(), limit=2)(pipe, tmp_path / "run")


@pytest.mark.slow
def test_two_ranks_are_one(dpg_data, tmp_path):
    """The small model generates and judges. It knows no such questions, but its answers must be equal."""
    for processes in (1, 2):
        arguments = ["dpg", "--data", str(dpg_data), "--judge", str(DEFAULT_MODEL), "--batch-size", "3", "-o"]
        finish([*arguments, str(tmp_path / str(processes))], processes)
    one, two = (tmp_path / "1", tmp_path / "2")
    assert len(files(one, "*/samples/*.png")) == 12
    for pattern in ("*/samples/*.png", "grids/*.png", "sheet.png", "results.jsonl"):
        assert files(one, pattern) == files(two, pattern)
    reports = [Report.load(folder) for folder in (one, two)]
    assert reports[0].metrics == reports[1].metrics
    assert reports[1].settings["environments"][-1]["processes"] == 2
    shares = [len(path.read_text().splitlines()) for path in sorted(two.glob("answers-*/answers.rank*.jsonl"))]
    assert sorted(shares) == [1, 2]
