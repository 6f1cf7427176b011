"""`load_picture` loads every kind of source and PIL mode as a person would see it, and refuses bad input."""

import base64
import http.server
import threading
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from janus_hf.processing import load_picture
from janus_hf.processing.pictures import flatten_images


RED, GREEN, WHITE = (200, 30, 30), (10, 180, 60), (255, 255, 255)


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)


@pytest.fixture
def png(tmp_path: Path, pixels: np.ndarray) -> Path:
    path = tmp_path / "image.png"
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def serve(png: Path) -> Iterator[str]:
    """Yield the address of a local server for the folder of `png`."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args, directory=str(png.parent))

        def log_message(self, *args: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def encoded(image: Image.Image, **options: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, **{"format": "PNG"} | options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "give",
    [
        lambda path: path,
        str,
        Path.read_bytes,
        lambda path: bytearray(path.read_bytes()),
        lambda path: base64.b64encode(path.read_bytes()).decode(),
        lambda path: "data:image/png;base64," + base64.encodebytes(path.read_bytes()).decode(),
        Image.open,
        lambda path: np.asarray(Image.open(path)),
        lambda path: np.asarray(Image.open(path)).astype(np.float32) / 255,
        lambda path: np.asarray(Image.open(path)).transpose(2, 0, 1),
        lambda path: torch.tensor(np.asarray(Image.open(path))).permute(2, 0, 1),
        lambda path: torch.tensor(np.asarray(Image.open(path))).permute(2, 0, 1).double() / 255,
        lambda path: torch.tensor(np.asarray(Image.open(path))),
    ],
)
def test_every_source_gives_the_same_image(give: Callable[[Path], Any], png: Path, pixels: np.ndarray) -> None:
    image = load_picture(give(png))
    assert image.mode == "RGB"
    assert np.array_equal(np.asarray(image), pixels)


def test_url(serve: str, pixels: np.ndarray) -> None:
    assert np.array_equal(np.asarray(load_picture(f"{serve}/image.png")), pixels)
    with pytest.raises(ValueError, match="URL of an image must be reachable, got .*404"):
        load_picture(f"{serve}/missing.png")


def test_bfloat16_and_grey_arrays() -> None:
    grey = torch.tensor([[0.0, 1.0], [0.5, 0.25]], dtype=torch.bfloat16)
    expected = np.array([[0, 255], [128, 64]], np.uint8)
    for shaped in (grey, grey[None], grey[..., None], np.stack([grey.float().numpy()] * 3, -1)):
        assert np.array_equal(np.asarray(load_picture(shaped)), np.stack([expected] * 3, -1))


def test_ambiguous_arrays_follow_the_custom_of_their_library() -> None:
    cube = np.arange(27, dtype=np.uint8).reshape(3, 3, 3)
    assert np.array_equal(np.asarray(load_picture(cube)), cube)
    assert np.array_equal(np.asarray(load_picture(torch.tensor(cube))), cube.transpose(1, 2, 0))


def test_exif_orientation_is_applied_without_touching_the_source(tmp_path: Path) -> None:
    upright = Image.new("RGB", (6, 3), RED)
    upright.putpixel((0, 0), GREEN)
    exif = Image.Exif()
    exif[0x0112] = 6  # means: rotate by 90 degrees clockwise to view
    path = tmp_path / "phone.png"
    upright.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)
    assert np.array_equal(np.asarray(load_picture(path)), np.asarray(upright))
    with Image.open(path) as source:
        load_picture(source)
        assert source.size == (3, 6)
        assert source.getexif()[0x0112] == 6


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "RGBa", "La"])
def test_alpha_is_composited_over_white(mode: str) -> None:
    source = Image.new("RGBA", (3, 1))
    for x, alpha in enumerate((0, 255, 128)):
        source.putpixel((x, 0), (100, 100, 100, alpha))
    if mode == "PA":
        converted = source.convert("RGB").convert("P", palette=Image.Palette.ADAPTIVE)
        converted.putalpha(source.getchannel("A"))
    else:
        converted = source.convert("LA").convert(mode) if mode in ("LA", "La") else source.convert(mode)
    assert converted.mode == mode
    before = converted.tobytes()
    seen = np.asarray(load_picture(converted)).astype(int)
    assert converted.tobytes() == before
    assert np.array_equal(seen[0, 0], WHITE)
    assert np.abs(seen[0, 1] - 100).max() <= 1
    assert np.abs(seen[0, 2] - 177).max() <= 2  # 100 * 128/255 + 255 * 127/255


def test_rgba_arrays_are_composited_too() -> None:
    transparent = np.zeros((2, 2, 4), np.uint8)
    assert np.asarray(load_picture(transparent)).min() == 255
    assert np.asarray(load_picture(torch.zeros(4, 2, 2))).min() == 255


def test_palette_with_and_without_transparency() -> None:
    palette = Image.new("P", (2, 1))
    palette.putpalette([*RED, *GREEN])
    palette.putpixel((1, 0), 1)
    assert np.asarray(load_picture(encoded(palette))).tolist() == [[list(RED), list(GREEN)]]
    assert np.asarray(load_picture(encoded(palette, transparency=0))).tolist() == [[list(WHITE), list(GREEN)]]
    assert np.asarray(load_picture(encoded(palette, transparency=b"\xff\x00"))).tolist() == [[list(RED), list(WHITE)]]


def test_colour_key_transparency() -> None:
    image = Image.new("RGB", (2, 1), RED)
    image.putpixel((1, 0), GREEN)
    assert np.asarray(load_picture(encoded(image, transparency=RED))).tolist() == [[list(WHITE), list(GREEN)]]


def test_grey_and_bilevel() -> None:
    assert np.asarray(load_picture(Image.new("L", (2, 2), 77))).tolist() == [[[77] * 3] * 2] * 2
    bilevel = Image.new("1", (2, 1))
    bilevel.putpixel((1, 0), 1)
    assert np.asarray(load_picture(bilevel)).tolist() == [[[0] * 3, [255] * 3]]


@pytest.mark.parametrize("mode", ["I;16", "I;16L", "I;16B", "I"])
def test_16_bit_grey_is_scaled(mode: str) -> None:
    values = np.array([[0, 257, 32896, 65535]])
    kinds = {"I": "<i4", "I;16B": ">u2"}
    source = Image.frombytes(mode, (4, 1), values.astype(kinds.get(mode, "<u2")).tobytes())
    assert np.asarray(load_picture(source))[0, :, 0].tolist() == [0, 1, 128, 255]


def test_16_bit_png(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 65535]], np.uint16)).save(tmp_path / "deep.png")
    assert np.asarray(load_picture(tmp_path / "deep.png"))[0, :, 0].tolist() == [0, 255]


def test_cmyk_jpeg(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "print.jpg", quality=100)
    red, green, blue = np.asarray(load_picture(tmp_path / "print.jpg")).reshape(-1, 3).mean(0)
    assert red > 240
    assert max(green, blue) < 15


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG"])
def test_animation_gives_its_first_frame(format: str) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, GREEN)]
    data = encoded(frames[0], format=format, save_all=True, append_images=frames[1:], lossless=True)
    assert np.abs(np.asarray(load_picture(data)).astype(int) - RED).max() <= 2


def test_result_is_a_copy() -> None:
    source = Image.new("RGB", (2, 2), RED)
    load_picture(source).putpixel((0, 0), GREEN)
    assert source.getpixel((0, 0)) == RED


def test_missing_paths(tmp_path: Path) -> None:
    for path in (tmp_path / "no.png", "no.png", "abcd", str(tmp_path)):  # "abcd" is valid base64
        with pytest.raises(
            FileNotFoundError, match=r"`source` must be the path of an existing image.*check the spelling"
        ):
            load_picture(path)


@pytest.mark.parametrize("keep", [0, 6, 60, -30])
def test_truncated_and_corrupt_files(keep: int, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    for format in ("PNG", "JPEG"):
        path = tmp_path / f"cut.{format}"
        path.write_bytes(encoded(Image.fromarray(noise), format=format)[:keep])
        with pytest.raises(ValueError, match=r"must be a complete file, got .*cut.*Check that it opens"):
            load_picture(path)


def test_lazily_opened_broken_image(tmp_path: Path) -> None:
    path = tmp_path / "cut.jpg"
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    path.write_bytes(encoded(Image.fromarray(noise), format="JPEG")[:-200])
    with Image.open(path) as source, pytest.raises(ValueError, match="An image must be a complete file"):
        load_picture(source)


def test_text_is_no_image(tmp_path: Path) -> None:
    (tmp_path / "notes.png").write_text("not an image")
    for source in (tmp_path / "notes.png", b"not an image", "data:image/png;base64,AAAA"):
        with pytest.raises(ValueError, match="An image must be a complete file"):
            load_picture(source)


def test_decompression_bomb_follows_pillow(png: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = base64.b64encode(png.read_bytes()).decode()
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 30)  # 35 pixels: a warning
    with pytest.warns(Image.DecompressionBombWarning):
        assert load_picture(png).size == (7, 5)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)  # more than twice the limit: an error
    for source in (png, png.read_bytes(), data):
        with pytest.raises(ValueError, match=r"must not exceed Pillow.s limit on pixels.*MAX_IMAGE_PIXELS"):
            load_picture(source)


def test_zero_sized_images() -> None:
    for source in (Image.new("RGB", (0, 4)), np.zeros((4, 0, 3), np.uint8), torch.zeros(3, 0, 4)):
        with pytest.raises(ValueError, match="An image must have at least 1x1 pixel, got"):
            load_picture(source)


def test_unsupported_types_and_modes() -> None:
    for source in (None, 3, {"path": "x"}, [Image.new("RGB", (2, 2))]):
        with pytest.raises(ValueError, match=r"`source` must be a PIL image, a path.*convert it"):
            load_picture(source)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"got PIL mode 'F'.*scale it"):
        load_picture(Image.new("F", (2, 2), 0.5))
    with pytest.raises(ValueError, match=r"16-bit greyscale must have values.*\[-5, -5\].*scale it"):
        load_picture(Image.new("I", (2, 2), -5))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((5, 5, 2), np.uint8), r"An array must have the shape \(H, W\)"),
        (np.zeros((2, 4, 4, 3), np.uint8), r"An array must have the shape \(H, W\)"),
        (np.zeros(4, np.uint8), r"An array must have the shape \(H, W\)"),
        (np.zeros((4, 4), np.int64), "An array must be uint8, or floating point"),
        (np.zeros((4, 4), bool), "An array must be uint8, or floating point"),
        (np.full((4, 4), 1.5), r"Floating-point pixels must be in \[0, 1\]"),
        (np.full((4, 4), -0.5), r"Floating-point pixels must be in \[0, 1\]"),
        (np.full((4, 4), np.nan), r"Floating-point pixels must be in \[0, 1\]"),
    ],
)
def test_bad_arrays(array: np.ndarray, message: str) -> None:
    for source in (array, torch.tensor(array)):
        with pytest.raises(ValueError, match=message):
            load_picture(source)


def test_flatten_images_keeps_reading_order() -> None:
    assert flatten_images([["a", ("b", None)], [], "c"]) == ["a", "b", "c"]
    batch = np.arange(24, dtype=np.uint8).reshape(2, 2, 2, 3)
    first, second, third = flatten_images([batch, "d"])
    assert np.array_equal(first, batch[0])
    assert np.array_equal(second, batch[1])
    assert third == "d"
    assert flatten_images(None) == []
