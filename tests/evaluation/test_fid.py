"""FID against arithmetic of its own, on tiny random networks."""

import sys
from argparse import Namespace

import numpy as np
import pytest
import torch
from image_files import pixels, write
from PIL import Image
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import CLIPImageProcessorPil, Dinov2Config, Dinov2Model

import janus_hf.evaluation.benchmarks.image_metrics.fid as fid_module
from janus_hf.evaluation.benchmarks.image_metrics import VisionFeatures, evaluate_fid
from tiny_judges import SIDE, build, clip


# Relative tolerance: sums in another order and a result in float32 differ by 6e-8 at most (measured). Covariances over
# n instead of n - 1 would differ by 1.6e-3, the square root of a product that is not symmetric by far more.
CLOSE = 1e-4


@pytest.fixture(autouse=True, scope="module")
def torchmetrics():
    return pytest.importorskip("torchmetrics")


class Colours(torch.nn.Module):
    """A network whose features are mean colours over a grid of `cells` x `cells`, mixed linearly."""

    def __init__(self, cells: int = 2, features: int = 6) -> None:
        super().__init__()
        self.cells = cells
        self.mix = torch.randn(3 * cells**2, features, generator=torch.Generator().manual_seed(0))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        assert pixels.dtype == torch.uint8
        pooled = torch.nn.functional.adaptive_avg_pool2d(pixels.float() / 255, self.cells)
        return pooled.flatten(start_dim=1) @ self.mix


def frechet(one: np.ndarray, other: np.ndarray) -> float:
    """Compute |m - n|^2 + tr(A + B - 2 (A^(1/2) B A^(1/2))^(1/2)) from eigenvalues of symmetric matrices."""
    covariances = [np.cov(features, rowvar=False) for features in (one, other)]
    values, vectors = np.linalg.eigh(covariances[0])
    root = vectors @ np.diag(np.sqrt(values.clip(0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ covariances[1] @ root).clip(0)).sum()
    return float(((one.mean(0) - other.mean(0)) ** 2).sum() + sum(map(np.trace, covariances)) - 2 * cross)


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
    """The distance of two normal distributions in one dimension is (m - n)^2 + (s - t)^2."""
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


def test_images_of_other_sizes_are_cut_and_resized_on_request(tmp_path):
    wide, reference = write(tmp_path / "wide", 6, seed=0, size=(8, 12)), write(tmp_path / "square", 6, seed=1)
    seen = []

    class Looking(Colours):
        def forward(self, pixels):
            seen.append(pixels)
            return super().forward(pixels)

    network = Looking(features=2)
    as_they_are = evaluate_fid(wide, [*reference, *wide], network, batch_size=12)
    assert sorted(tuple(batch.shape) for batch in seen[1:]) == [(6, 3, 8, 8), (6, 3, 8, 12), (6, 3, 8, 12)]
    assert "Images as they are." in as_they_are.protocol
    seen.clear()
    square = evaluate_fid(wide, reference, network, size=8)
    assert torch.equal(seen[1], pixels(wide)[..., 2:10])  # the middle of twelve columns
    assert "8 x 8" in square.protocol
    seen.clear()
    evaluate_fid(wide, reference, network, size=4)
    assert {tuple(batch.shape[1:]) for batch in seen[1:]} == {(3, 4, 4)}


def test_what_cannot_be_read_is_reported_and_left_out(tmp_path):
    drawn, reference = write(tmp_path / "drawn", 9, seed=0), write(tmp_path / "reference", 9, seed=1)
    drawn[4].write_bytes(drawn[4].read_bytes()[:60])
    network = Colours(features=2)
    report = evaluate_fid(drawn, reference, network)
    assert len(report.failures) == 1
    assert report.failures[0].startswith(f"{drawn[4]} cannot be read")
    assert report.value == evaluate_fid(drawn[:4] + drawn[5:], reference, network).value


def test_too_few_images(tmp_path, monkeypatch):
    warnings = []
    monkeypatch.setattr(fid_module.logger, "warning", warnings.append)
    drawn = write(tmp_path / "drawn", 3, seed=0)
    with pytest.raises(ValueError, match="got 3 generated and 1 reference images"):
        evaluate_fid(drawn, drawn[:1], Colours())
    report = evaluate_fid(drawn, drawn, Colours(features=1))
    assert (
        [warning for warning in warnings if "3 generated images against 3 reference images" in warning]
        == warnings
        != []
    )
    assert "Fewer than 10000 images" in report.protocol
    monkeypatch.setattr(fid_module, "ENOUGH", 3)
    assert "Fewer than" not in evaluate_fid(drawn, drawn, Colours(features=1)).protocol
    assert len(warnings) == 1
    with pytest.raises(ValueError, match="`size` must be at least 1, got 0"):
        evaluate_fid(drawn, drawn, Colours(), size=0)


def test_missing_libraries_are_named(tmp_path, monkeypatch):
    import torchmetrics.image.fid

    drawn = write(tmp_path / "drawn", 2, seed=0)
    monkeypatch.setattr(torchmetrics.image.fid, "_TORCH_FIDELITY_AVAILABLE", False)
    with pytest.raises(ImportError, match=r"torch-fidelity, .*\[eval-metrics\].*--network"):
        evaluate_fid(drawn, drawn)
    monkeypatch.setitem(sys.modules, "torchmetrics.image.fid", None)
    with pytest.raises(ImportError, match=r"torchmetrics, .*pip install 'janus_hf\[eval-metrics\]'"):
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


def test_features_are_where_the_images_are(tmp_path):
    """The metric may be on another device than the network; tensors without values stand for those of a GPU."""

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
