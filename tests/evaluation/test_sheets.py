"""The sheet of the best and the worst pictures."""

import pytest
from PIL import Image

from janus_hf.evaluation.sheets import save_sheet, score_sheet


COLORS = ["red", "lime", "blue", "yellow", "cyan"]


def pictures(count):
    return [Image.new("RGB", (8, 8), COLORS[n]) for n in range(count)]


def shown(sheet, columns, rows=1):
    """The colour in the middle of every tile's picture, by name; None where there is none."""
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
    sheet = score_sheet(pictures(5), list("abcde"), [0.2, 20.5, -1, 3, 3], each=2)
    assert shown(sheet, 4) == [["lime", "yellow", "blue", "red"]]  # of equal ones the first: yellow before cyan


def test_no_picture_is_shown_twice():
    assert shown(score_sheet(pictures(3), list("abc"), [1, 1, 0], each=2), 4) == [["red", "lime", "blue", None]]
    assert shown(score_sheet(pictures(1), ["a"], [1], each=2), 4) == [["red", None, None, None]]


def test_every_group_has_a_row():
    sheet = score_sheet(pictures(4), list("abcd"), [0, 1, 1, 0], groups=["x", "y", "x", "y"], each=1)
    assert shown(sheet, 2, rows=2) == [["blue", "red"], ["lime", "yellow"]]


def test_frames_say_whether_a_score_is_enough():
    scores = [0.4, 0.5]
    with_mark = score_sheet(pictures(2), ["a", "b"], scores, each=1, pass_mark=0.5)
    without = score_sheet(pictures(2), ["a", "b"], scores, each=1)
    corners = [[sheet.getpixel((x, 0)) for x in (0, sheet.width // 2)] for sheet in (with_mark, without)]
    assert corners == [[(0, 128, 0), (255, 0, 0)], [(255, 255, 255)] * 2]


def test_captions_depend_on_prompt_and_score():
    def sheet(prompt="a red dog", score=0.5):
        return score_sheet(pictures(1), [prompt], [score]).tobytes()

    assert len({sheet(), sheet(prompt="a red cat"), sheet(score=0.25), sheet(prompt="a red dog " * 100)}) == 4
    assert len(sheet(prompt="dog " * 1000)) == len(sheet())  # cut off


def test_files_are_opened_and_the_sheet_is_saved(tmp_path):
    for name, picture in zip("ab", pictures(2), strict=True):
        picture.save(tmp_path / f"{name}.png")
    save_sheet(tmp_path, [tmp_path / "a.png", tmp_path / "b.png"], ["a", "b"], [0, 1])
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert shown(sheet, 12)[0][:3] == ["lime", "red", None]


def test_pictures_are_shown_upright(tmp_path):
    upright = Image.new("RGB", (40, 40), "red")
    upright.paste("lime", (0, 0, 40, 10))
    turned = Image.Exif()
    turned[0x0112] = 3  # "Orientation": stored upside down
    upright.rotate(180).save(tmp_path / "a.png", exif=turned)
    expected = score_sheet([upright], ["a"], [1]).tobytes()
    assert score_sheet([tmp_path / "a.png"], ["a"], [1]).tobytes() == expected
    with Image.open(tmp_path / "a.png") as opened:
        assert score_sheet([opened], ["a"], [1]).tobytes() == expected


def test_what_does_not_fit_together():
    with pytest.raises(ValueError, match="got 2 pictures, 1 prompts, 2 scores and 2 groups"):
        score_sheet(pictures(2), ["a"], [0, 1])
    with pytest.raises(ValueError, match="got 0 pictures"):
        score_sheet([], [], [])
