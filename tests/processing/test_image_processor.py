"""`JanusProImageProcessor` gives the original's pixels, keeps its settings and refuses wrong ones."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor
from transformers.models.janus.image_processing_pil_janus import JanusImageProcessorPil

from janus_hf.processing import JanusProImageProcessor


GOLDENS = Path(__file__).parents[1] / "goldens"
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def golden_image(name: str) -> Path:
    return GOLDENS / "images" / f"{name}.png"


@pytest.mark.parametrize("name", ["wide", "tall", "tiny", "thin", "square"])
def test_pixels_equal_the_originals(name: str, golden: dict[str, torch.Tensor]) -> None:
    checked = 0
    for suffix, settings in {"model": {"image_size": 24, "min_size": 4}, "96": {"image_size": 96}}.items():
        if (expected := golden.get(f"proc.{name}.pixel_values_{suffix}")) is not None:
            got = JanusProImageProcessor(**settings)(golden_image(name)).pixel_values
            assert got.dtype == torch.float32
            assert torch.equal(got, expected)
            checked += 1
    assert checked


@pytest.mark.parametrize("name", ["wide", "tall", "tiny", "thin"])
def test_384_pixels_are_bitwise_the_originals(name: str, manifest: dict[str, Any]) -> None:
    expected = manifest["pixel_values_384_sha256"][f"proc.{name}.pixel_values_384"]
    got = JanusProImageProcessor()(golden_image(name)).pixel_values
    assert list(got.shape) == expected["shape"]
    assert hashlib.sha256(got.numpy().tobytes()).hexdigest() == expected["sha256_float32"]


def test_padding_colour_follows_the_mean(golden: dict[str, torch.Tensor]) -> None:
    processor = JanusProImageProcessor(96, image_mean=CLIP_MEAN, image_std=CLIP_STD, background_color=[1, 2, 3])
    assert processor.background_color == [122, 116, 104]
    assert torch.equal(processor(golden_image("wide")).pixel_values, golden["proc.wide.pixel_values_96_clipmean"])


def test_without_normalisation_values_are_the_pixels() -> None:
    white = Image.new("RGB", (8, 8), "white")
    assert JanusProImageProcessor(8, 2, None, None, do_normalize=False)(white).pixel_values.eq(1).all()


def test_flat_nested_and_single_inputs_agree() -> None:
    processor = JanusProImageProcessor(24, 4)
    names = ["wide", "tall", "square"]
    singles = torch.cat([processor(golden_image(name)).pixel_values for name in names])
    opened = [Image.open(golden_image(name)) for name in names]
    assert torch.equal(processor(opened).pixel_values, singles)
    assert torch.equal(processor([opened[:2], [], opened[2:]]).pixel_values, singles)
    assert processor(opened, return_tensors="np").pixel_values.shape == (3, 3, 24, 24)
    assert [one.shape for one in processor(opened, return_tensors=None).pixel_values] == [(3, 24, 24)] * 3


@pytest.mark.parametrize(("width", "height"), [(97, 31), (40, 133), (24, 24), (5, 3), (31, 30), (400, 9)])
def test_generation_mode_fits_the_short_side_and_crops(width: int, height: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    source, short = Image.fromarray(pixels), min(width, height)
    resized = source.resize((int(24 * width / short), int(24 * height / short)), Image.Resampling.BICUBIC)
    left, top = (int(round((side - 24) / 2.0)) for side in resized.size)  # noqa: RUF046  written as in torchvision's center_crop
    levels = np.asarray(resized)[top : top + 24, left : left + 24].transpose(2, 0, 1)
    for mean in ((0.5, 0.5, 0.5), CLIP_MEAN):
        got = JanusProImageProcessor(24, 4, image_mean=mean)(source, mode="generation").pixel_values
        assert got.shape == (1, 3, 24, 24)
        assert np.abs(got[0].numpy() - (levels / 127.5 - 1)).max() < 1e-6


def test_decoded_pixels_are_truncated_like_the_originals(golden: dict[str, torch.Tensor]) -> None:
    processor = JanusProImageProcessor()
    for pixels, expected in (
        ("gen.pixels", golden["gen.uint8"]),
        ("vq.random_ids_pixels", golden["vq.random_ids_uint8"]),
    ):
        images = processor.postprocess(golden[pixels])
        assert all(image.mode == "RGB" for image in images)
        assert np.array_equal(np.stack([np.asarray(image) for image in images]), expected.numpy())
        assert np.array_equal(np.stack(processor.postprocess(golden[pixels].numpy())), expected.numpy())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_postprocess_output_types(dtype: torch.dtype) -> None:
    pixels = torch.tensor([-3.0, -1.0, 0.0, 0.5, 1.0, 3.0], dtype=dtype).reshape(1, 1, 2, 3).repeat(2, 3, 1, 1)
    expected = torch.tensor([0, 0, 0.5, 0.75, 1, 1]).reshape(1, 1, 2, 3).expand(2, 3, 2, 3)
    processor = JanusProImageProcessor()
    as_tensor, as_array = processor.postprocess(pixels, "pt"), processor.postprocess(pixels, "np")
    assert torch.equal(as_tensor, expected)
    assert as_array.dtype == np.float32
    assert np.array_equal(as_array, expected.permute(0, 2, 3, 1).numpy())
    assert np.asarray(processor.postprocess(pixels)[1])[..., 2].tolist() == [[0, 0, 127], [191, 255, 255]]
    assert pixels.min() == -3


def test_postprocess_refuses_what_is_no_image() -> None:
    processor = JanusProImageProcessor()
    good = torch.zeros(1, 3, 4, 4)
    for bad in (good[0], good.permute(0, 2, 3, 1), good.to(torch.uint8), good.long().numpy()):
        with pytest.raises(ValueError, match=r"`pixel_values` must be floating-point pixels \(B, 3, H, W\)"):
            processor.postprocess(bad)
    with pytest.raises(ValueError, match="got NaN"):
        processor.postprocess(good * float("nan"))
    with pytest.raises(ValueError, match="`output_type` must be"):
        processor.postprocess(good, "latent")  # type: ignore[arg-type]


def test_bad_calls() -> None:
    processor = JanusProImageProcessor(24, 4)
    with pytest.raises(ValueError, match="`images` must hold at least one image"):
        processor([])
    with pytest.raises(ValueError, match="`mode` must be 'understanding' or 'generation', got 'draw'"):
        processor(Image.new("RGB", (4, 4)), mode="draw")
    with pytest.raises(TypeError, match="do_crop"):
        processor(Image.new("RGB", (4, 4)), do_crop=True)
    with pytest.raises(ValueError, match="crop it along its long side"):
        JanusProImageProcessor()(Image.new("RGB", (3000, 1)), mode="generation")


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"image_size": 8}, ValueError, "min_size=14, image_size=8"),
        ({"size": {"height": 24, "width": 32}}, ValueError, "`size` must be square"),
        ({"do_resize": False}, ValueError, "`do_resize` must be True"),
        ({"resample": 2}, ValueError, "`resample` must be 3"),
        ({"image_mean": None}, ValueError, "`image_mean` and `image_std` must be given"),
        ({"imagesize": 24}, TypeError, r"arguments of JanusProImageProcessor, got \['imagesize'\]"),
    ],
)
def test_bad_settings(settings: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        JanusProImageProcessor(**settings)


def test_settings_survive_dict_and_disk(tmp_path: Path) -> None:
    processor = JanusProImageProcessor(48, 6, list(CLIP_MEAN), CLIP_STD, rescale_factor=1 / 128)
    processor.save_pretrained(tmp_path)
    reopened = AutoImageProcessor.from_pretrained(tmp_path)
    assert type(reopened) is JanusProImageProcessor
    for other in (reopened, JanusProImageProcessor.from_dict(processor.to_dict())):
        assert other.to_dict() == processor.to_dict()
    assert JanusProImageProcessor.from_pretrained(tmp_path, image_size=96).size == {"height": 96, "width": 96}


def test_a_file_without_mean_and_std_means_clips(golden: dict[str, torch.Tensor]) -> None:
    processor = JanusProImageProcessor.from_dict({"image_size": 96, "image_processor_type": "VLMImageProcessor"})
    assert torch.equal(processor(golden_image("wide")).pixel_values, golden["proc.wide.pixel_values_96_clipmean"])


def test_reads_in_tree_settings() -> None:
    theirs = JanusImageProcessorPil(size={"height": 48, "width": 48}, min_size=6, image_mean=[0.5] * 3)
    ours = JanusProImageProcessor.from_dict(theirs.to_dict())
    assert (ours.image_size, ours.min_size, ours.image_mean) == (48, 6, [0.5] * 3)
    assert ours.image_std == list(theirs.image_std)
