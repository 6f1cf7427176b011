"""CLIPScore and FID against arithmetic of their own, on tiny random networks."""

import json
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from launch import finish
from PIL import Image
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import CLIPImageProcessorPil, Dinov2Config, Dinov2Model
from transformers.utils import logging

from janus_hf.evaluation.benchmarks import image_metrics as picture_metrics
from janus_hf.evaluation.benchmarks.image_metrics import (
    VisionFeatures,
    evaluate_clip_score,
    evaluate_fid,
    folder_pictures,
    prompted_pictures,
    reference_pictures,
    run_pictures,
)
from janus_hf.evaluation.report import Report
from janus_hf.rewards.clip import Clip, ClipScore
from janus_hf_cli import evaluate as evaluation
from janus_hf_cli import model_arguments as model
from tiny_judges import SIDE, build, clip


# Sums in another order and a result in float32: measured 6e-8 at most. Covariances over n in the place of n - 1 would
# be 1.6e-3 off, a square root of a product that is not symmetric far more.
CLOSE = 1e-4
PROMPTS = ["a cat", "a red dog", "no", "the blue apple", "a", "left of the cat", "yes", "is there a dog"]


@pytest.fixture(autouse=True, scope="module")
def torchmetrics():
    return pytest.importorskip("torchmetrics")


class Colours(torch.nn.Module):
    """Features of uint8 pictures: means over a grid of `cells` x `cells`, three colours each, mixed linearly."""

    def __init__(self, cells: int = 2, features: int = 6) -> None:
        super().__init__()
        self.cells = cells
        self.mix = torch.randn(3 * cells**2, features, generator=torch.Generator().manual_seed(0))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        assert pixels.dtype == torch.uint8
        pooled = torch.nn.functional.adaptive_avg_pool2d(pixels.float() / 255, self.cells)
        return pooled.flatten(start_dim=1) @ self.mix


def write(folder: Path, count: int, seed: int, high: int = 256, size: tuple[int, int] = (8, 8)) -> list[Path]:
    """Pictures of noise in [0, high) of (height, width) `size`."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    paths = [folder / f"{number:04d}.png" for number in range(count)]
    for path in paths:
        Image.fromarray(rng.integers(0, high, (*size, 3), dtype=np.uint8)).save(path)
    return paths


def pixels(paths: list[Path]) -> torch.Tensor:
    return torch.from_numpy(np.stack([np.asarray(Image.open(path)) for path in paths])).permute(0, 3, 1, 2)


def frechet(one: np.ndarray, other: np.ndarray) -> float:
    """|m - n|^2 + tr(A + B - 2 (A^(1/2) B A^(1/2))^(1/2)), by eigenvalues of symmetric matrices only."""
    covariances = [np.cov(features, rowvar=False) for features in (one, other)]
    values, vectors = np.linalg.eigh(covariances[0])
    root = vectors @ np.diag(np.sqrt(values.clip(0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ covariances[1] @ root).clip(0)).sum()
    return float(((one.mean(0) - other.mean(0)) ** 2).sum() + sum(map(np.trace, covariances)) - 2 * cross)


# FID


def test_fid_is_the_distance_of_two_gaussians_whatever_the_batches(tmp_path):
    drawn, reference = write(tmp_path / "drawn", 50, seed=0, high=200), write(tmp_path / "reference", 40, seed=1)
    network = Colours()
    features = [network(pixels(paths)).double().numpy() for paths in (drawn, reference)]
    expected = frechet(*features)
    assert expected > 0.1
    for batch_size in (1, 7, 64):
        report = evaluate_fid(drawn, reference, network, batch_size=batch_size)
        assert report.metrics == {"fid[Colours]": pytest.approx(expected, rel=CLOSE)}
        assert (report.primary, len(report.rows), report.failures) == ("fid[Colours]", 90, [])
        assert report.settings["counts"] == {"drawn": 50, "reference": 40}
    assert not network.training
    assert evaluate_fid(drawn, drawn, network).value == pytest.approx(0, abs=CLOSE * expected)
    assert evaluate_fid(reference, drawn, network).value == pytest.approx(expected, rel=CLOSE)


def test_fid_of_one_feature_is_by_hand(tmp_path):
    """Two normal distributions are (m - n)^2 + (s - t)^2 apart."""
    drawn, reference = [tmp_path / f"a{k}.png" for k in range(3)], [tmp_path / f"b{k}.png" for k in range(3)]
    for path, gray in zip([*drawn, *reference], (0, 51, 102, 102, 204, 255), strict=True):
        Image.new("RGB", (4, 4), (gray,) * 3).save(path)
    network = Colours(cells=1, features=1)
    network.mix = torch.full((3, 1), 1 / 3)  # the gray itself, in [0, 1]: 0, 0.2, 0.4 and 0.4, 0.8, 1
    mean, other_mean = 0.2, 2.2 / 3
    deviation = 0.2
    other_deviation = ((0.4**2 + 0.8**2 + 1 - 3 * other_mean**2) / 2) ** 0.5
    expected = (mean - other_mean) ** 2 + (deviation - other_deviation) ** 2
    assert evaluate_fid(drawn, reference, network).value == pytest.approx(expected, rel=CLOSE)


def test_pictures_of_other_sizes_are_cut_and_resized_on_request(tmp_path):
    wide, reference = write(tmp_path / "wide", 6, seed=0, size=(8, 12)), write(tmp_path / "square", 6, seed=1)
    seen = []

    class Looking(Colours):
        def forward(self, pixels):
            seen.append(pixels)
            return super().forward(pixels)

    network = Looking(features=2)
    as_they_are = evaluate_fid(wide, [*reference, *wide], network, batch_size=12)
    assert sorted(tuple(batch.shape) for batch in seen[1:]) == [(6, 3, 8, 8), (6, 3, 8, 12), (6, 3, 8, 12)]
    assert "Pictures as they are." in as_they_are.protocol
    seen.clear()
    square = evaluate_fid(wide, reference, network, size=8)
    assert torch.equal(seen[1], pixels(wide)[..., 2:10])  # the middle of twelve columns
    assert "8 x 8" in square.protocol
    seen.clear()
    evaluate_fid(wide, reference, network, size=4)
    assert {tuple(batch.shape[1:]) for batch in seen[1:]} == {(3, 4, 4)}


def test_what_cannot_be_read_is_told_and_left_out(tmp_path):
    drawn, reference = write(tmp_path / "drawn", 9, seed=0), write(tmp_path / "reference", 9, seed=1)
    drawn[4].write_bytes(drawn[4].read_bytes()[:60])
    network = Colours(features=2)
    report = evaluate_fid(drawn, reference, network)
    assert len(report.failures) == 1
    assert report.failures[0].startswith(f"{drawn[4]} cannot be read")
    assert report.value == evaluate_fid(drawn[:4] + drawn[5:], reference, network).value


def test_too_few_pictures(tmp_path, monkeypatch):
    warnings = []
    monkeypatch.setattr(picture_metrics.logger, "warning", warnings.append)
    drawn = write(tmp_path / "drawn", 3, seed=0)
    with pytest.raises(ValueError, match="read 3 drawn ones and 1 of reference"):
        evaluate_fid(drawn, drawn[:1], Colours())
    report = evaluate_fid(drawn, drawn, Colours(features=1))
    assert [warning for warning in warnings if "3 drawn pictures against 3 of reference" in warning] == warnings != []
    assert "Fewer than 10000 pictures" in report.protocol
    monkeypatch.setattr(picture_metrics, "ENOUGH", 3)
    assert "Fewer than" not in evaluate_fid(drawn, drawn, Colours(features=1)).protocol
    assert len(warnings) == 1
    with pytest.raises(ValueError, match="size must be at least 1, got 0"):
        evaluate_fid(drawn, drawn, Colours(), size=0)


def test_missing_libraries_are_named(tmp_path, monkeypatch):
    import torchmetrics.image.fid

    drawn = write(tmp_path / "drawn", 2, seed=0)
    monkeypatch.setattr(torchmetrics.image.fid, "_TORCH_FIDELITY_AVAILABLE", False)
    with pytest.raises(ImportError, match=r"torch-fidelity's.*\[eval-metrics\].*--network"):
        evaluate_fid(drawn, drawn)
    monkeypatch.setitem(sys.modules, "torchmetrics.image.fid", None)
    with pytest.raises(ImportError, match=r"torchmetrics'.*pip install 'janus_hf\[eval-metrics\]'"):
        evaluate_fid(drawn, drawn)


def test_features_are_those_the_model_pools(tmp_path):
    images = write(tmp_path, 3, seed=0, size=(20, 20))
    model, processor = clip()
    inputs = processor.image_processor(images=[Image.open(path) for path in images], return_tensors="pt")
    with torch.no_grad():
        expected = model.visual_projection(model.vision_model(**inputs).pooler_output)
    seen = VisionFeatures(model, processor)(pixels(images))
    torch.testing.assert_close(seen, expected)
    assert len(torch.unique(seen, dim=0)) == 3

    image_processor = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    tower = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": SIDE, "patch_size": 8}
    dino = build(Dinov2Model, Dinov2Config(**tower))
    with torch.no_grad():
        tokens = dino(**image_processor(images=[Image.open(path) for path in images], return_tensors="pt"))[0]
    torch.testing.assert_close(VisionFeatures(dino, image_processor)(pixels(images)), tokens[:, 0])  # [CLS]


def test_features_are_where_the_pictures_are(tmp_path):
    """The metric may be on another device than the network: of tensors without values, so that it needs none."""

    class Elsewhere(torch.nn.Module):
        device, dtype = torch.device("cpu"), torch.float32

        def forward(self, pixel_values):
            with FakeTensorMode():
                pooled = torch.empty(len(pixel_values), 5, device="cuda", dtype=torch.bfloat16)
            return Namespace(pooler_output=pooled)

    seen = VisionFeatures(Elsewhere(), clip()[1])(pixels(write(tmp_path, 2, seed=0)))
    assert (seen.device, seen.dtype, seen.shape) == (torch.device("cpu"), torch.float32, (2, 5))


def test_models_that_do_not_pool_are_refused(tmp_path):
    class Bare(torch.nn.Module):
        device, dtype = torch.device("cpu"), torch.float32
        config = type("Config", (), {"name_or_path": "bare"})

        def forward(self, pixel_values):
            return pixel_values

    with pytest.raises(ValueError, match="bare has no pooled features"):
        VisionFeatures(Bare(), clip()[1])(pixels(write(tmp_path, 1, seed=0)))


# CLIPScore


def by_hand(model, processor, pictures: dict[Path, str]) -> list[float]:
    """100 max(cos, 0) from CLIP's own logits, a pair at a time."""
    with torch.no_grad():
        logits = [
            model(**processor(text=[prompt], images=[Image.open(path)], return_tensors="pt")).logits_per_image.item()
            for path, prompt in pictures.items()
        ]
    return [max(100 * logit / model.logit_scale.exp().item(), 0) for logit in logits]


@pytest.fixture
def prompted(tmp_path) -> dict[Path, str]:
    return dict(zip(write(tmp_path / "pictures", len(PROMPTS), seed=0, size=(20, 24)), PROMPTS, strict=True))


def test_clip_score_is_the_mean_of_the_models_cosines(prompted):
    model, processor = clip()
    expected = by_hand(model, processor, prompted)
    assert 0 in expected
    assert len(set(expected)) > 3
    for batch_size in (1, 3, 16):
        report = evaluate_clip_score(prompted, ClipScore(model, processor, batch_size=batch_size))
        assert report.metrics == {"clipscore": pytest.approx(np.mean(expected), rel=1e-4)}  # float32, worst 2e-6
        np.testing.assert_allclose([row["score"] for row in report.rows], expected, rtol=1e-4, atol=1e-4)
        assert [(row["filename"], row["prompt"]) for row in report.rows] == [(str(k), v) for k, v in prompted.items()]


class ForTorchmetrics:
    """`Clip` as torchmetrics 1.9 takes it: features as tensors, which transformers 5 wraps."""

    def __init__(self, clip: Clip) -> None:
        self.clip, self.config = clip, clip.model.config
        self.get_image_features = lambda pixels: clip.model.get_image_features(pixels).pooler_output
        self.get_text_features = lambda ids, mask: clip.model.get_text_features(ids, mask).pooler_output

    def to(self, device):
        return self


def test_clip_score_is_torchmetrics_where_no_cosine_is_negative(prompted):
    from torchmetrics.multimodal import CLIPScore

    judge = Clip(*clip())
    positive = {
        path: prompt
        for (path, prompt), score in zip(
            prompted.items(), by_hand(judge.model, judge.processor, prompted), strict=True
        )
        if score > 0
    }
    assert len(positive) >= 2
    metric = CLIPScore(lambda: (ForTorchmetrics(judge), judge.processor))
    with torch.no_grad():
        metric.update(list(pixels(list(positive))), list(positive.values()))
    report = evaluate_clip_score(positive, ClipScore(judge.model, judge.processor))
    assert report.value == pytest.approx(metric.compute().item(), rel=1e-4)


def test_clip_score_leaves_out_what_cannot_be_read(prompted, tmp_path):
    scorer = ClipScore(*clip(), batch_size=2)
    whole = evaluate_clip_score(prompted, scorer)
    report = evaluate_clip_score({tmp_path / "none.png": "a", **prompted}, scorer)
    assert report.value == pytest.approx(whole.value, rel=1e-4)  # other batches round differently
    assert len(report.rows) == len(prompted)
    assert len(report.failures) == 1
    assert str(tmp_path / "none.png") in report.failures[0]
    nothing = evaluate_clip_score({tmp_path / "none.png": "a"}, scorer)
    assert (nothing.metrics, len(nothing.failures)) == ({}, 1)


def test_prompts_that_clip_cuts_are_counted_once(tmp_path, monkeypatch):
    warnings = []
    monkeypatch.setattr("janus_hf.rewards.clip.logger.warning", warnings.append)
    logging.warning_once.cache_clear()
    scorer = ClipScore(*clip(), batch_size=1)  # reads 48 tokens: 46 letters and two ends
    prompts = ["a" * 47, "a" * 47, "b" * 60, "a" * 46, "a cat"]  # two pictures of the first
    pictures = dict(zip(write(tmp_path, 5, seed=0), prompts, strict=True))
    assert "5 pictures. 2 of 4 prompts were cut to 48 tokens. " in evaluate_clip_score(pictures, scorer).protocol
    assert len(warnings) == 1
    whole = {path: prompt for path, prompt in pictures.items() if len(prompt) <= 46}
    assert "cut to" not in evaluate_clip_score(whole, scorer).protocol


# Where pictures lie


def write_run(folder: Path, prompts: list[str], each: int = 2) -> Path:
    for number, prompt in enumerate(prompts):
        place = folder / f"{number:05d}"
        write(place / "samples", each, seed=number)
        (place / "metadata.jsonl").write_text(json.dumps({"tag": "x", "prompt": prompt}) + "\n")
        write(place, 1, seed=0)[0].rename(place / "grid.png")
    return folder


def test_a_run_is_read_in_the_official_layout(tmp_path):
    run = write_run(tmp_path / "run", ["a cat", "a dog"])
    read = {path.relative_to(run).as_posix(): prompt for path, prompt in run_pictures(run).items()}
    assert read == {
        "00000/samples/0000.png": "a cat",
        "00000/samples/0001.png": "a cat",
        "00001/samples/0000.png": "a dog",
        "00001/samples/0001.png": "a dog",
    }
    with pytest.raises(ValueError, match="holds a run, not pictures alone"):
        folder_pictures(run)
    assert reference_pictures(run) == list(run_pictures(run))
    assert reference_pictures(run / "00001" / "samples") == folder_pictures(run / "00001" / "samples")
    (run / "00001/samples/0001.png").unlink()
    with pytest.raises(ValueError, match="00001 has 1 pictures where other prompts have 2: the run was stopped"):
        run_pictures(run)
    (run / "00001/samples/0000.png").unlink()
    with pytest.raises(ValueError, match="00001 has 0 pictures"):
        run_pictures(run)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="Expected the folder of a run"):
        run_pictures(tmp_path / "empty")
    (run / "00001/metadata.jsonl").write_text("[]\n")
    write(run / "00001/samples", 2, seed=0)
    with pytest.raises(ValueError, match=r"00001.metadata.jsonl: expected an object with 'prompt'"):
        run_pictures(run)


def test_a_folder_is_read_with_its_prompts(tmp_path):
    pictures = [*write(tmp_path / "a", 1, seed=0), *write(tmp_path / "a" / "b", 1, seed=1)]
    (tmp_path / "a" / "note.txt").write_text("no picture")
    assert folder_pictures(tmp_path / "a") == pictures
    with pytest.raises(FileNotFoundError, match="needs a prompt for every picture"):
        prompted_pictures(tmp_path / "a")
    lines = tmp_path / "a" / "metadata.jsonl"
    lines.write_text('{"file_name": "0000.png", "prompt": "a cat"}\n')
    with pytest.raises(ValueError, match=r"no line for 1 of 2 pictures, as 0000.png"):
        prompted_pictures(tmp_path / "a")
    lines.write_text(lines.read_text() + '\n{"file_name": "b/0000.png", "caption": "a dog"}\n')
    assert prompted_pictures(tmp_path / "a") == dict(zip(pictures, ["a cat", "a dog"], strict=True))
    for line in ('{"file_name": "0000.png", "label": 3}', '{"prompt": "a cat"}', "no JSON", "[]"):
        lines.write_text(f"{line}\n")
        with pytest.raises(ValueError, match="line 1: expected an object with 'file_name'"):
            prompted_pictures(tmp_path / "a")
    with pytest.raises(FileNotFoundError, match="found none"):
        folder_pictures(tmp_path / "none")


# The command line


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
    assert report.value == pytest.approx(np.mean(by_hand(*clip(), run_pictures(drawn))), rel=1e-4)
    assert f"| **clipscore** | {report.value:.2f} |" in out
    assert report.settings["run"] == {"weights_sha256": "abc"}
    assert (tmp_path / "evaluations" / "mine-clipscore" / "sheet.png").is_file()
    status, out, _ = run("eval", "report", "evaluations/mine-clipscore")
    assert (status, "| clipscore |" in out) == (0, True)
    status, _, err = run(*command, "--output", drawn)  # would replace the run's own report
    assert (status, "was made with other settings" in err) == (1, True)


def test_the_command_line_compares_folders(run, tmp_path, tiny_clip):
    drawn, reference = write(tmp_path / "drawn", 12, seed=0), write(tmp_path / "reference", 12, seed=1, high=99)
    (tmp_path / "drawn" / "broken.png").write_bytes(b"no picture")
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
    assert (status, "needs a prompt for every picture" in err) == (1, True)


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

    monkeypatch.setattr(picture_metrics, "evaluate_clip_score", measure)
    drawn = write_run(tmp_path / "mine", ["a cat"])
    (drawn / "settings.json").write_text(content)
    status, _, err = run("eval", "clipscore", "--results", "mine", "--device", "cpu")
    assert (status, "Expected the settings of a run" in err) == (1, True)


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
def test_a_device_that_is_not_there_is_refused(benchmark, device, run, tmp_path):
    write_run(tmp_path / "mine", ["a cat"])
    arguments = {
        "clipscore": ["--results", "mine", "--clip", "none"],
        "fid": ["--results", "mine", "--reference", "mine", "--network", "none"],
        "shapes": ["--prompts-per-tag", "1", "--questions", "1"],
        "geneval": ["--detector", "shapes", "--prompts-per-tag", "1"],
    }
    status, _, err = run("eval", benchmark, *arguments[benchmark], "--device", device)
    assert (status, f"--device {device} cannot be used here" in err) == (1, True)


def test_the_chosen_gpu_is_the_one_that_cuda_means(monkeypatch):
    chosen = []
    monkeypatch.setattr(model, "check_device", lambda device: device)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    for device in ("cuda:1", "cuda", "mps", "cpu"):
        assert evaluation._begin(Namespace(device=device)) == device
    assert chosen == [torch.device("cuda:1")]
    monkeypatch.setattr("accelerate.PartialState", lambda cpu: Namespace(device=torch.device("cuda:0")))
    assert evaluation._begin(Namespace(device="cuda:0")) == "cuda:0"
    with pytest.raises(ValueError, match="cuda:1 asked for, but the launcher gave this process cuda:0"):
        evaluation._begin(Namespace(device="cuda:1"))


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
        assert two.value == pytest.approx(one.value, rel=CLOSE)
