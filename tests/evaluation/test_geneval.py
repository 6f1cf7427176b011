"""The GenEval path from prompts to report, on the shipped model: layout, resuming, sharing, refusing."""

import json
import os
import re
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from launch import files, start
from PIL import Image
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    SwinConfig,
)

import janus_hf
from janus_hf.evaluation.benchmarks.geneval import TAGS, GenEval, read_prompts, shapes_items, summarise
from janus_hf.evaluation.generate_run import picture_seed
from janus_hf.evaluation.report import Report
from janus_hf.rewards.detectors import COLORS, ClipColors
from janus_hf.rewards.geneval_rules import Rules
from janus_hf.rewards.mask2former import COCO_NAMES, Mask2FormerDetector
from janus_hf.rewards.shapes_detector import ShapesDetector, detect


def evaluator(**changes) -> GenEval:
    return GenEval(shapes_items(1), ShapesDetector(), **{"images_per_prompt": 2, "batch_size": 5, **changes})


@pytest.fixture(scope="module")
def straight(pipe, tmp_path_factory):
    """Folder and report of a run that was not stopped. Shared: do not change them."""
    folder = tmp_path_factory.mktemp("straight") / "run"
    return folder, evaluator()(pipe, folder)


def samples(folder: Path) -> dict[str, bytes]:
    """Return the content of the images of a run, by relative path."""
    return files(folder, "*/samples/*.png")


class Counting:
    """The pipeline; it counts prompts and, after `stop_after` calls, raises KeyboardInterrupt."""

    def __init__(self, pipe, stop_after: int | None = None) -> None:
        self.pipe, self.left, self.drawn = pipe, stop_after, 0

    def __getattr__(self, name):
        return getattr(self.pipe, name)

    def __call__(self, prompts, **settings):
        if self.left == 0:
            raise KeyboardInterrupt
        self.left = None if self.left is None else self.left - 1
        self.drawn += len(prompts)
        return self.pipe(prompts, **settings)


def test_the_folder_is_what_the_official_scorer_reads(straight):
    folder, _ = straight
    items = shapes_items(1)
    prompts = sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name.isdigit())
    assert prompts == [f"{n:05d}" for n in range(len(items))]
    for name, item in zip(prompts, items, strict=True):
        assert json.loads((folder / name / "metadata.jsonl").read_text().splitlines()[0]) == item
        names = sorted(path.name for path in (folder / name / "samples").iterdir())
        assert names == ["0000.png", "0001.png"]
        assert all(re.match(r"\d+\.png", sample) for sample in names)
    with Image.open(folder / "00000" / "grid.png") as grid:
        assert grid.size == (128, 64)


def test_the_report_is_what_the_detector_finds_in_the_images_on_disk(straight):
    folder, report = straight
    assert [row["filename"] for row in report.rows] == list(samples(folder))
    for row in report.rows:
        found = [[d.label, d.score, list(d.box), d.color] for d in detect(Image.open(folder / row["filename"]))]
        assert json.loads(row["details"]) == found
    shares = {tag: np.mean([row["correct"] for row in report.rows if row["tag"] == tag]) for tag in TAGS}
    assert {tag: report.metrics[tag] for tag in TAGS} == shares
    assert report.value == report.metrics["overall"] == pytest.approx(np.mean(list(shares.values())))
    assert report.metrics["single_object"] == 1  # a report without correct images would prove little
    assert (folder / "sheet.png").is_file()
    assert Report.load(folder) == report


def test_everything_that_matters_is_recorded(straight, pipe):
    folder, report = straight
    recorded = json.loads((folder / "settings.json").read_text())
    assert recorded["settings"]["seed"] == 0
    assert recorded["settings"]["drawing"] == {"guidance_scale": pipe.default_guidance_scale, "temperature": 1.0}
    assert len(recorded["settings"]["weights_sha256"]) == 64
    (environment,) = recorded["environments"]
    assert environment["torch"] == torch.__version__
    assert environment["janus_hf"] == janus_hf.__version__
    assert report.settings["environments"] == [environment]
    assert report.settings["detector"] == ShapesDetector().name


def test_a_stopped_run_continues_and_equals_the_straight_one(straight, pipe, tmp_path):
    stopped = Counting(pipe, stop_after=1)
    with pytest.raises(KeyboardInterrupt):
        evaluator()(stopped, tmp_path / "run")
    assert stopped.drawn == len(samples(tmp_path / "run")) == 5
    continuing = Counting(pipe)
    report = evaluator(batch_size=3)(continuing, tmp_path / "run")
    assert continuing.drawn == 7
    assert samples(tmp_path / "run") == samples(straight[0])
    assert report.metrics == straight[1].metrics


def test_an_image_that_cannot_be_read_is_generated_again(straight, pipe, tmp_path):
    shutil.copytree(straight[0], tmp_path / "run")
    spoiled = tmp_path / "run" / "00002" / "samples" / "0001.png"
    spoiled.write_bytes(spoiled.read_bytes()[:100])
    again = Counting(pipe)
    report = evaluator()(again, tmp_path / "run")
    assert again.drawn == 1
    assert report.settings["drawn_again"] == ["00002/samples/0001.png could not be read: drawn again"]
    assert samples(tmp_path / "run") == samples(straight[0])


def test_other_settings_are_refused(straight, pipe):
    with pytest.raises(ValueError, match=r"other settings:\n  seed: 0 there, 1 now"):
        evaluator(seed=1)(pipe, straight[0])
    with pytest.raises(ValueError, match="drawing: .*'guidance_scale': 3.0"):
        evaluator(drawing={"guidance_scale": 3.0})(pipe, straight[0])


def test_a_folder_with_other_files_is_refused(pipe, tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(FileExistsError, match="Choose a new folder"):
        evaluator()(pipe, tmp_path)


def test_a_missing_image_is_a_failure_and_not_wrong(straight, tmp_path):
    shutil.copytree(straight[0], tmp_path / "run")
    (tmp_path / "run" / "00000" / "samples" / "0000.png").unlink()
    report = evaluator().judge(tmp_path / "run")
    assert report.failures == ["00000/samples/0000.png is missing or cannot be read"]
    assert len(report.rows) == 11
    assert report.failed_share == pytest.approx(1 / 12)
    assert "Failed: 1 (8.33 % of all)" in report.to_markdown()


def test_every_image_has_a_seed_of_its_own():
    assert len({picture_seed(seed, n, k) for seed in (0, 1) for n in range(100) for k in range(4)}) == 800


def test_with_mask2former_and_clip(straight, pipe, tmp_path):
    """The weights are random, so this proves only that the parts fit together; other tests prove the arithmetic."""
    torch.manual_seed(0)
    swin = SwinConfig(
        embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 1, 1], out_features=["stage1", "stage2", "stage3", "stage4"]
    )
    sizes = {"hidden_size": 32, "feature_size": 32, "mask_feature_size": 32, "encoder_feedforward_dim": 32}
    config = Mask2FormerConfig(
        backbone_config=swin, **sizes, dim_feedforward=32, encoder_layers=1, decoder_layers=2, num_attention_heads=2,
        num_queries=10, num_labels=80,
    )  # fmt: skip
    text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    clip = CLIPModel(
        CLIPConfig(
            text_config={**text, "vocab_size": 600, "bos_token_id": 0, "eos_token_id": 2},
            vision_config={**text, "image_size": 16, "patch_size": 8},
        )
    )
    colors = ClipColors(clip, processor=ClipProcessor(pipe.processor.tokenizer))
    detector = Mask2FormerDetector(
        Mask2FormerForUniversalSegmentation(config), colors=colors, scale=(64, 64), min_score=0.0
    )
    items = [
        {"tag": "colors", "include": [{"class": name, "count": 1, "color": "red"} for name in COCO_NAMES], **prompt}
        for prompt in ({"prompt": item["prompt"]} for item in shapes_items(1)[:3])
    ]
    report = GenEval(items, detector, images_per_prompt=2, rules=Rules(threshold=0.0))(pipe, tmp_path / "run")
    assert len(report.rows) == 2 * len(items)
    assert not report.failures
    assert set(report.metrics) == {"colors", "overall", "pictures", "prompts"}
    found = [detection for row in report.rows for detection in json.loads(row["details"])]
    assert found
    assert {label for label, *_ in found} <= set(COCO_NAMES)
    assert {color for *_, color in found} - {None} <= set(COLORS)
    assert any(color for *_, color in found)
    assert "changed rules" in report.protocol
    assert "Without single_object, two_object, counting, position, color_attr" in report.protocol


class ClipProcessor:
    """A processor of CLIP's image processor and any tokenizer."""

    def __init__(self, tokenizer) -> None:
        size = {"shortest_edge": 16}
        self.image_processor = CLIPImageProcessor(size=size, crop_size={"height": 16, "width": 16})
        self.tokenizer = tokenizer

    def __call__(self, text=None, images=None, **kwargs):
        if images is not None:
            return self.image_processor(images, return_tensors="pt")
        return self.tokenizer(text, padding=True, return_tensors="pt")


def test_summary_by_hand():
    rows = [
        {"tag": "colors", "correct": True, "metadata": "a"},
        {"tag": "colors", "correct": False, "metadata": "a"},
        {"tag": "colors", "correct": False, "metadata": "b"},
        {"tag": "counting", "correct": True, "metadata": "c"},
    ]
    expected = {"counting": 1.0, "colors": 1 / 3, "overall": 2 / 3, "pictures": 0.5, "prompts": 2 / 3}
    assert summarise(rows) == pytest.approx(expected)
    assert summarise([]) == {}


def test_prompts_are_checked(tmp_path):
    with pytest.raises(FileNotFoundError, match="github.com/djghosh13/geneval"):
        read_prompts(tmp_path / "none.jsonl")
    path = tmp_path / "some.jsonl"
    path.write_text('{"tag": "colors", "prompt": "x"}\n')
    with pytest.raises(ValueError, match=r"line 1 must be .* 'tag', 'prompt', 'include', got \['prompt', 'tag'\]"):
        read_prompts(path)
    path.write_text("\n")
    with pytest.raises(ValueError, match="must hold prompts, got none"):
        read_prompts(path)


def test_the_command_line_runs_and_reports(run, tmp_path):
    arguments = ["eval", "geneval", "--detector", "shapes", "--prompts-per-tag", "1", "-n", "1", "-o", "out"]
    status, out, err = run(*arguments)
    assert status == 0
    assert "| **overall** |" in out
    assert "0.800" not in out  # the score of Janus-Pro-7B on photographs
    status, out, _ = run("eval", "report", "out")
    assert status == 0
    assert "| out | shapes | overall |" in out
    assert "6 prompts, 1 images each." in out
    status, _, err = run(*arguments, "--seed", "7")
    assert status == 1
    assert "seed: 0 there, 7 now" in err


ARGUMENTS = ["geneval", "--detector", "shapes", "--prompts-per-tag", "4", "-n", "2", "--batch-size", "4", "-o"]


@pytest.mark.slow
def test_two_ranks_killed_and_resumed_are_one_straight_run(tmp_path):
    one = start([*ARGUMENTS, str(tmp_path / "one")], 1)
    assert one.wait(timeout=300) == 0, one.stderr.read()[-3000:]

    killed = start([*ARGUMENTS, str(tmp_path / "two")], 2)
    deadline = time.monotonic() + 200
    while len(samples(tmp_path / "two")) < 8 and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    drawn = samples(tmp_path / "two")
    assert 8 <= len(drawn) < 48, "killed too late to prove anything"

    two = start([*ARGUMENTS, str(tmp_path / "two")], 2)
    assert two.wait(timeout=300) == 0, two.stderr.read()[-3000:]
    recorded = json.loads((tmp_path / "two" / "settings.json").read_text())
    assert recorded["environments"][-1]["processes"] == 2
    assert samples(tmp_path / "two") == samples(tmp_path / "one")
    reports = [Report.load(tmp_path / name) for name in ("one", "two")]
    assert reports[0].metrics == reports[1].metrics
    assert reports[0].rows == reports[1].rows
