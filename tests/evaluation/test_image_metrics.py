"""`janus-hf eval clipscore` and `fid`, and the choice of the device by every benchmark."""

import json
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from image_files import PROMPTS, write, write_run
from launch import finish

from janus_hf.evaluation.benchmarks import image_metrics
from janus_hf.evaluation.benchmarks.image_metrics import (
    VisionFeatures,
    evaluate_clip_score,
    evaluate_fid,
    run_pictures,
)
from janus_hf.evaluation.report import Report
from janus_hf.rewards.clip import ClipScore
from janus_hf_cli import model_arguments
from janus_hf_cli.evaluate import use_device
from tiny_judges import clip


@pytest.fixture(autouse=True, scope="module")
def torchmetrics():
    return pytest.importorskip("torchmetrics")


@pytest.fixture(scope="module")
def tiny_clip(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    for part in clip():
        part.save_pretrained(folder)
    return folder


def test_the_command_line_scores_a_run(run, tmp_path, tiny_clip):
    drawn = write_run(tmp_path / "evaluations" / "mine", ["a cat", "a dog"])
    (drawn / "settings.json").write_text(json.dumps({"settings": {"weights_sha256": "abc"}, "environments": []}))
    command = ["eval", "clipscore", "--results", drawn, "--clip", tiny_clip, "--device", "cpu"]
    status, out, _ = run(*command)
    assert status == 0
    report = Report.load(tmp_path / "evaluations" / "mine-clipscore")
    expected = evaluate_clip_score(run_pictures(drawn), ClipScore(*clip()))
    assert report.value == pytest.approx(expected.value, rel=1e-4)
    assert f"| **clipscore** | {report.value:.2f} |" in out
    assert report.settings["run"] == {"weights_sha256": "abc"}
    assert (tmp_path / "evaluations" / "mine-clipscore" / "sheet.png").is_file()
    status, out, _ = run("eval", "report", "evaluations/mine-clipscore")
    assert (status, "| clipscore |" in out) == (0, True)
    status, _, err = run(*command, "--output", drawn)  # would replace the run's own report
    assert (status, "was made with other settings" in err) == (1, True)


def test_the_command_line_compares_folders(run, tmp_path, tiny_clip):
    drawn, reference = write(tmp_path / "drawn", 12, seed=0), write(tmp_path / "reference", 12, seed=1, high=99)
    (tmp_path / "drawn" / "broken.png").write_bytes(b"no image")
    folders = ["--images", "drawn", "--reference", "reference"]
    status, out, err = run("eval", "fid", *folders, "--network", tiny_clip, "--size", 16, "-o", "fid")
    assert (status, "1 could not be judged" in err) == (1, True)
    report = Report.load("fid")
    expected = evaluate_fid(drawn, reference, VisionFeatures(*clip()), size=16)
    assert report.metrics == {f"fid[{tiny_clip}]": pytest.approx(expected.value, rel=1e-4)}
    assert "not comparable with published FIDs" in out
    assert (report.settings["network"], report.settings["size"]) == (str(tiny_clip), 16)
    status, _, err = run("eval", "fid", *folders, "--network", tiny_clip, "-o", "fid")
    assert (status, "size: 16 there, None now" in err) == (1, True)
    status, _, err = run("eval", "clipscore", "--images", "drawn", "--clip", tiny_clip)
    assert (status, "needs a prompt for every image" in err) == (1, True)


def test_a_run_may_be_the_reference(run, tmp_path, tiny_clip):
    drawn = write(tmp_path / "drawn", 6, seed=5)
    reference = write_run(tmp_path / "mine", ["a cat", "a dog"], each=3)
    status, _, err = run(
        "eval", "fid", "--images", "drawn", "--reference", reference, "--network", tiny_clip, "-o", "fid"
    )
    assert (status, "holds a run" in err) == (0, False)
    samples = sorted(reference.glob("*/samples/*.png"))
    report = Report.load("fid")
    assert [row["filename"] for row in report.rows if row["side"] == "reference"] == list(map(str, samples))
    expected = evaluate_fid(drawn, samples, VisionFeatures(*clip()))
    assert report.value == pytest.approx(expected.value, rel=1e-4)
    assert "run" not in report.settings
    status, _, err = run("eval", "fid", "--images", "mine", "--reference", "drawn", "--network", tiny_clip)
    assert (status, "read it by --results" in err) == (1, True)


@pytest.mark.parametrize("content", ["no JSON", '{"seed": 0}'])
def test_what_a_run_recorded_is_read_before_the_work(content, run, tmp_path, monkeypatch):
    def measure(*arguments, **options):
        raise AssertionError("hours of work, to be thrown away")

    monkeypatch.setattr(image_metrics, "evaluate_clip_score", measure)
    drawn = write_run(tmp_path / "mine", ["a cat"])
    (drawn / "settings.json").write_text(content)
    status, _, err = run("eval", "clipscore", "--results", "mine", "--device", "cpu")
    assert (status, "must hold the settings of a run" in err) == (1, True)


def test_other_folders_may_have_a_file_of_that_name(run, tmp_path, tiny_clip):
    folder = write(tmp_path / "drawn", 2, seed=0)[0].parent
    (folder / "settings.json").write_text('{"theme": "dark"}')
    (folder / "metadata.jsonl").write_text(
        "".join(json.dumps({"file_name": f"{n:04d}.png", "prompt": "a cat"}) + "\n" for n in range(2))
    )
    status, _, _ = run("eval", "clipscore", "--images", "drawn", "--clip", tiny_clip)
    assert (status, "run" in Report.load("drawn-clipscore").settings) == (0, False)


@pytest.mark.parametrize("device", ["abacus", "cuda:99"])
@pytest.mark.parametrize("benchmark", ["clipscore", "fid", "shapes", "geneval"])
def test_a_missing_device_is_refused(benchmark, device, run, tmp_path):
    write_run(tmp_path / "mine", ["a cat"])
    arguments = {
        "clipscore": ["--results", "mine", "--clip", "none"],
        "fid": ["--results", "mine", "--reference", "mine", "--network", "none"],
        "shapes": ["--prompts-per-tag", "1", "--questions", "1"],
        "geneval": ["--detector", "shapes", "--prompts-per-tag", "1"],
    }
    status, _, err = run("eval", benchmark, *arguments[benchmark], "--device", device)
    assert (status, f"got {device!r}, which cannot be used here" in err) == (1, True)


def test_the_chosen_gpu_is_the_one_that_cuda_means(monkeypatch):
    chosen = []
    monkeypatch.setattr(model_arguments, "check_device", lambda device: device)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    for device in ("cuda:1", "cuda", "mps", "cpu"):
        assert use_device(device) == device
    assert chosen == [torch.device("cuda:1")]
    monkeypatch.setattr("accelerate.PartialState", lambda cpu: Namespace(device=torch.device("cuda:0")))
    assert use_device("cuda:0") == "cuda:0"
    with pytest.raises(ValueError, match="gave this process, cuda:0, got cuda:1: leave it out"):
        use_device("cuda:1")


@pytest.mark.slow
def test_two_ranks_are_one(tmp_path, tiny_clip):
    drawn, reference = write_run(tmp_path / "drawn", PROMPTS[:7], each=3), tmp_path / "reference"
    write(reference, 14, seed=9, high=99)
    commands = {
        "clipscore": ["--results", drawn, "--clip", tiny_clip, "--batch-size", "2"],
        "fid": ["--results", drawn, "--reference", reference, "--network", tiny_clip, "--batch-size", "2"],
    }
    for name, arguments in commands.items():
        for processes in (1, 2):
            finish([name, *map(str, arguments), "-o", str(tmp_path / f"{name}{processes}")], processes)
        one, two = Report.load(tmp_path / f"{name}1"), Report.load(tmp_path / f"{name}2")
        assert two.settings["environments"][0]["processes"] == 2
        assert [row["filename"] for row in one.rows] == [row["filename"] for row in two.rows]
        assert len(two.rows) == (21 if name == "clipscore" else 35)
        assert two.value == pytest.approx(one.value, rel=1e-4)
