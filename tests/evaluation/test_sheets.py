"""The sheet of a run's best and worst images."""

import pytest
from PIL import Image

from janus_hf.evaluation.sheets import save_sheet, score_sheet


COLORS = ["red", "lime", "blue", "yellow", "cyan"]


def images(count):
    """Return images of one colour each, in the order of `COLORS`."""
    return [Image.new("RGB", (8, 8), COLORS[n]) for n in range(count)]


def shown(sheet, columns, rows=1):
    """Return the colour in the middle of every tile's image, by name; None for a blank tile."""
    names = {Image.new("RGB", (1, 1), color).getpixel((0, 0)): color for color in COLORS}
    width, height = sheet.width // columns, sheet.height // rows
    return [
        [
            names.get(sheet.getpixel((column * width + width // 2, row * height + width // 2)))
            for column in range(columns)
        ]
        for row in range(rows)
    ]


def test_best_on_the_left_and_worst_on_the_right():
    sheet = score_sheet(images(5), list("abcde"), [0.2, 20.5, -1, 3, 3], each=2)
    assert shown(sheet, 4) == [["lime", "yellow", "blue", "red"]]  # equal scores keep their order


def test_no_image_is_shown_twice():
    assert shown(score_sheet(images(3), list("abc"), [1, 1, 0], each=2), 4) == [["red", "lime", "blue", None]]
    assert shown(score_sheet(images(1), ["a"], [1], each=2), 4) == [["red", None, None, None]]


def test_every_group_has_a_row():
    sheet = score_sheet(images(4), list("abcd"), [0, 1, 1, 0], groups=["x", "y", "x", "y"], each=1)
    assert shown(sheet, 2, rows=2) == [["blue", "red"], ["lime", "yellow"]]


def test_frames_depend_on_the_pass_mark():
    scores = [0.4, 0.5]
    with_mark = score_sheet(images(2), ["a", "b"], scores, each=1, pass_mark=0.5)
    without = score_sheet(images(2), ["a", "b"], scores, each=1)
    corners = [[sheet.getpixel((x, 0)) for x in (0, sheet.width // 2)] for sheet in (with_mark, without)]
    assert corners == [[(0, 128, 0), (255, 0, 0)], [(255, 255, 255)] * 2]


def test_captions_depend_on_prompt_and_score():
    def sheet(prompt="a red dog", score=0.5):
        return score_sheet(images(1), [prompt], [score]).tobytes()

    assert len({sheet(), sheet(prompt="a red cat"), sheet(score=0.25), sheet(prompt="a red dog " * 100)}) == 4
    assert len(sheet(prompt="dog " * 1000)) == len(sheet())  # cut off


def test_files_are_opened_and_the_sheet_is_saved(tmp_path):
    for name, image in zip("ab", images(2), strict=True):
        image.save(tmp_path / f"{name}.png")
    save_sheet(tmp_path, [tmp_path / "a.png", tmp_path / "b.png"], ["a", "b"], [0, 1])
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert shown(sheet, 12)[0][:3] == ["lime", "red", None]


def test_images_are_shown_upright(tmp_path):
    upright = Image.new("RGB", (40, 40), "red")
    upright.paste("lime", (0, 0, 40, 10))
    turned = Image.Exif()
    turned[0x0112] = 3  # "Orientation": stored upside down
    upright.rotate(180).save(tmp_path / "a.png", exif=turned)
    expected = score_sheet([upright], ["a"], [1]).tobytes()
    assert score_sheet([tmp_path / "a.png"], ["a"], [1]).tobytes() == expected
    with Image.open(tmp_path / "a.png") as opened:
        assert score_sheet([opened], ["a"], [1]).tobytes() == expected


def test_arguments_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match="got 2 images, 1 prompts, 2 scores and 2 groups"):
        score_sheet(images(2), ["a"], [0, 1])
    with pytest.raises(ValueError, match="got 0 images"):
        score_sheet([], [], [])
