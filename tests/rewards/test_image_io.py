"""How images are opened for judging: upright, in RGB, and whole."""

import pytest
import torch
from PIL import Image

from janus_hf.rewards.image_io import UNREADABLE, as_rgb, open_rgb, readable


ORIENTATION = 0x0112


def test_images_are_upright_and_without_alpha(tmp_path):
    stored = Image.new("RGBA", (4, 2), (255, 0, 0, 255))
    stored.putpixel((0, 0), (0, 0, 255, 255))
    exif = Image.Exif()
    exif[ORIENTATION] = 6  # the viewer must turn the image clockwise by a quarter
    stored.save(tmp_path / "a.png", exif=exif)
    opened = open_rgb(tmp_path / "a.png")
    assert (opened.mode, opened.size) == ("RGB", (2, 4))
    assert opened.getpixel((1, 0)) == (0, 0, 255)  # what was the upper left corner is the upper right one
    with Image.open(tmp_path / "a.png") as image:
        assert as_rgb(image).tobytes() == opened.tobytes()
    with pytest.raises(TypeError, match="must be a PIL image, got Tensor"):
        as_rgb(torch.zeros(3, 2, 2))


@pytest.mark.parametrize("how", ["missing", "no image", "cut off", "broken", "too large"])
def test_unreadable_files(how, tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    Image.effect_noise((32, 32), 50).save(path)
    assert readable(path)
    content = path.read_bytes()
    if how == "missing":
        path.unlink()
    elif how == "too large":
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 16)
    else:
        damaged = {"no image": b"{}", "cut off": content[:200], "broken": content[:40] + bytes(8) + content[48:]}
        path.write_bytes(damaged[how])
    assert not readable(path)
    with pytest.raises(UNREADABLE):
        open_rgb(path)
