"""DPG-Bench's arithmetic against an example computed by hand, and its files."""

import re

import pytest
from PIL import Image

from janus_hf.evaluation.benchmarks.dpg import evaluate_dpg
from janus_hf.evaluation.benchmarks.dpg_data import collect_grids, read_prompts, read_propositions, split_grid
from janus_hf.evaluation.benchmarks.propositions import Proposition, Quirks, score_image, score_prompt, summarise
from janus_hf.image_grid import image_grid


OFF = {"skip_first_row": False, "last_crop_categories": False, "drop_failed": False}

COLORS = ["red", "green", "blue", "white"]  # of the four images of a grid
# Questions that the judge answers with yes, per image.
YES = {
    "red": {"a first?", "a second?", "dog?", "red dog?", "dog on mat?", "cat?"},
    "green": {"a second?", "red dog?", "dog on mat?", "cat?", "tail?"},
    "blue": {"a first?", "dog?", "dog on mat?", "tail?"},
    "white": {"dog?", "red dog?", "tail?"},
}


class ByColor:
    """A judge that recognises an image by its colour and gives no answer to the questions `silent`."""

    name = "mplug"

    def __init__(self, silent=()):
        self.silent, self.asked = silent, []

    def __call__(self, image, questions):
        color = next(
            name for name in COLORS if image.getpixel((0, 0)) == Image.new("RGB", (1, 1), name).getpixel((0, 0))
        )
        self.asked.append((color, tuple(questions)))
        return ["" if q in self.silent else "yes" if q in YES[color] else "no" for q in questions]


@pytest.fixture
def grids(tmp_path):
    folder = tmp_path / "grids"
    folder.mkdir()
    for item in "abc":
        image_grid([Image.new("RGB", (8, 6), color) for color in COLORS], 2).save(folder / f"{item}.png")
    return folder


def answers(text):
    return dict(enumerate(("yes" if letter == "y" else "no" for letter in text), start=1))


@pytest.mark.parametrize(
    ("given", "dependencies", "expected"),
    [
        ("yyy", {1: [0], 2: [1], 3: [2]}, [1, 1, 1]),
        ("nyy", {1: [0], 2: [1], 3: [2]}, [0, 0, 0]),  # the zero is inherited: 2 is zero before 3 is visited
        ("nyy", {1: [0], 3: [2], 2: [1]}, [0, 0, 1]),  # but 3 is visited before 2 and sees its own answer, a yes
        ("yny", {1: [0], 2: [0], 3: [1, 2]}, [1, 0, 0]),  # any parent
        ("yny", {1: [0], 2: [0], 3: [0, 1]}, [1, 0, 1]),  # 0 is no parent
        ("nn", {1: [2], 2: [0]}, [0, 0]),
    ],
)
def test_dependencies(given, dependencies, expected):
    scores = score_image(answers(given), dependencies)
    assert [scores[number] for number in sorted(scores)] == expected


def test_only_yes_is_yes():
    assert score_image({1: "Yes", 2: "yes.", 3: "yes", 4: "true"}, {n: [0] for n in range(1, 5)}) == {
        1: 0,
        2: 0,
        3: 1,
        4: 0,
    }


def test_a_parent_that_was_not_asked():
    with pytest.raises(ValueError, match="proposition 2 depends on 1, which was not asked"):
        score_image({2: "yes"}, {2: [1]})


# By hand, with parents (dog -> red dog -> dog on mat):
#            red             green               blue                white             mean
# a (2)      1               1                   0                   0                 1/2
# a (1, 2)   1               1/2                 1/2                 0                 1/2
# b          3/3             0 (no dog)          1/3 (mat needs red) 2/3               1/2
# c          1/2             2/2                 1/2                 1/2               5/8
OVERALL = 100 * (1 / 2 + 1 / 2 + 5 / 8) / 3


def test_worked_example_with_all_quirks(dpg_data, grids):
    report = evaluate_dpg(grids, dpg_data, ByColor())
    assert [row["pictures"] for row in report.rows] == [
        [1, 1, 0, 0],
        [1, 0, pytest.approx(1 / 3), pytest.approx(2 / 3)],
        [0.5, 1, 0.5, 0.5],
    ]
    # From the white image only, without parents: a2 no; dog and red dog yes, dog on mat no; cat no, tail yes.
    assert report.metrics == pytest.approx(
        {
            "overall": OVERALL,
            "attribute": 100.0,
            "entity": 100 * 2 / 3,
            "global": 0.0,
            "relation": 0.0,
            "attribute - color": 100.0,
            "entity - part": 100.0,
            "entity - whole": 50.0,
            "global -": 0.0,
            "relation - spatial": 0.0,
        }
    )
    assert (report.primary, report.failures) == ("overall", [])


def test_worked_example_without_quirks(dpg_data, grids):
    report = evaluate_dpg(grids, dpg_data, ByColor(), quirks=Quirks(**OFF))
    assert report.value == pytest.approx(OVERALL)  # a happens to score 1/2 either way
    assert report.rows[0]["pictures"] == [1, 0.5, 0.5, 0]
    # Four images, with parents: sky 2; dog 3, cat 2 -> 7 of 12 whole; tail 3 of 4; a2 2 of 4;
    # red dog: red, white -> 2 (green has no dog); dog on mat: red only.
    expected = {"entity - whole": 7 / 12, "entity - part": 3 / 4, "entity": 10 / 16, "global": 2 / 4}
    expected |= {"attribute": 2 / 4, "relation": 1 / 4}
    assert {name: report.metrics[name] / 100 for name in expected} == pytest.approx(expected)
    assert "Other than officially: Quirks(skip_first_row=False" in report.protocol
    assert report.protocol.startswith("3 prompts, 4 images each in a 2x2 grid; mPLUG-large answers")
    assert "The whole benchmark has 1065 prompts." in report.protocol


def test_each_quirk_by_itself(dpg_data, grids):
    first = evaluate_dpg(grids, dpg_data, ByColor(), quirks=Quirks(skip_first_row=False)).metrics
    assert first["entity - whole"] == pytest.approx(100 / 3)  # white: sky no, dog yes, cat no
    crops = evaluate_dpg(grids, dpg_data, ByColor(), quirks=Quirks(last_crop_categories=False)).metrics
    assert crops["entity - whole"] == pytest.approx(100 * 5 / 8)

    (grids / "c.png").unlink()
    dropped = evaluate_dpg(grids, dpg_data, ByColor())
    kept = evaluate_dpg(grids, dpg_data, ByColor(), quirks=Quirks(drop_failed=False))
    assert dropped.failures == kept.failures == ["c: no image of this name"]
    assert dropped.value == pytest.approx(50)
    assert kept.value == pytest.approx(100 / 3)  # (1/2 + 1/2 + 0) / 3
    for report in (dropped, kept):
        assert [row["item_id"] for row in report.rows] == ["a", "b"]
        assert report.failed_share == pytest.approx(1 / 3)
    assert "Judged: 2. Failed: 1 (33.33 % of all), not in the numbers above." in dropped.to_markdown()
    assert "Failed: 1 (33.33 % of all), 1 of them, as wrong, in the numbers above." in kept.to_markdown()


def test_the_skipped_first_row_fails_a_prompt_that_depends_on_it(dpg_data, grids):
    path = dpg_data / "dpg_bench.csv"
    lines = path.read_text().splitlines()
    lines[2] = lines[2].replace(",2,0,", ",2,1,")
    path.write_text("\n".join(lines) + "\n")
    report = evaluate_dpg(grids, dpg_data, ByColor())
    assert report.failures == ["a: proposition 2 depends on 1, which was not asked"]
    assert report.value == pytest.approx(100 * (1 / 2 + 5 / 8) / 2)
    zero = evaluate_dpg(grids, dpg_data, ByColor(), quirks=Quirks(drop_failed=False))
    assert zero.value == pytest.approx(100 * (1 / 2 + 5 / 8) / 3)


def test_what_fails_is_named(dpg_data, grids):
    (grids / "a.png").write_bytes((grids / "a.png").read_bytes()[:60])
    Image.new("RGB", (4, 4)).save(grids / "stranger.png")
    report = evaluate_dpg(grids, dpg_data, ByColor(silent={"red dog?"}))
    unreadable, silent, stranger = report.failures
    assert unreadable.startswith("a: a.png cannot be read")
    assert silent == "b: the judge answered 2 of 3 questions about image 0"
    assert stranger == "stranger: no prompt of this name"
    assert report.value == pytest.approx(62.5)
    assert report.failed_share == 0.75
    Image.new("RGB", (5, 4)).save(grids / "c.png")
    assert (
        "c: `grid` must be of 2x2 images, with even sides, got 5x4"
        in evaluate_dpg(grids, dpg_data, ByColor()).failures[1]
    )


def test_some_prompts_only(dpg_data, grids):
    Image.new("RGB", (4, 4)).save(grids / "stranger.png")
    report = evaluate_dpg(grids, dpg_data, ByColor(), items=["c", "b", "nobody"])
    assert report.value == pytest.approx(100 * (1 / 2 + 5 / 8) / 2)
    assert report.failures == ["nobody: no propositions are asked of it"]
    assert report.protocol.startswith("2 prompts, 4 images each")


def test_other_judges_label_every_metric(dpg_data, grids):
    judge = ByColor()
    judge.name = "blip"
    report = evaluate_dpg(grids, dpg_data, judge)
    assert report.primary == "dpg[blip]"
    assert report.value == pytest.approx(OVERALL)
    assert all(name.endswith("[blip]") for name in report.metrics)
    assert "not comparable" in report.protocol
    assert re.search(r"\| \*\*dpg\[blip\]\*\* \| 54\.17 \|( - \|)+", report.to_markdown())


def test_it_goes_on_where_it_stopped(dpg_data, grids, tmp_path):
    class Stops(ByColor):
        def __call__(self, image, questions):
            if "dog?" in questions and image.getpixel((0, 0)) == (0, 0, 255):
                raise KeyboardInterrupt
            return super().__call__(image, questions)

    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        evaluate_dpg(grids, dpg_data, Stops(), folder=folder)
    judge = ByColor()
    report = evaluate_dpg(grids, dpg_data, judge, folder=folder)
    assert len(judge.asked) == 8  # b and c; a was done
    assert report.value == pytest.approx(OVERALL)
    with pytest.raises(ValueError, match="quirks: .* there, .* now"):
        evaluate_dpg(grids, dpg_data, ByColor(), folder=folder, quirks=Quirks(skip_first_row=False))


def test_files(dpg_data, tmp_path):
    prompts = {"a": "prompt a, long", "b": "prompt b, long", "c": "prompt c, long"}
    assert (
        read_prompts(dpg_data)
        == read_prompts(dpg_data / "prompts")
        == read_prompts(dpg_data / "dpg_bench.csv")
        == prompts
    )
    propositions = read_propositions(dpg_data)
    assert {item: [p.id for p in listed] for item, listed in propositions.items()} == {
        "a": [2],
        "b": [1, 2, 3],
        "c": [1, 2],
    }
    assert propositions["b"][2] == Proposition(3, "dog on mat?", (1, 2), "relation - spatial")
    assert [p.id for p in read_propositions(dpg_data / "dpg_bench.csv", skip_first_row=False)["a"]] == [1, 2]
    for read in (read_prompts, read_propositions):
        with pytest.raises(FileNotFoundError, match=r"TencentQQGYLab/ELLA \(Apache-2.0\)"):
            read(tmp_path / "nowhere")
    wrong = tmp_path / "wrong.csv"
    wrong.write_text("item_id,text\na,b\n")
    with pytest.raises(
        ValueError, match=r"got \['item_id', 'text'\]: \['proposition_id', 'dependency', .*\] are missing"
    ):
        read_propositions(wrong)
    wrong.write_text((dpg_data / "dpg_bench.csv").read_text().replace('"1,2"', "none"))
    with pytest.raises(ValueError, match="row 5 must have integers .*, got '3' and 'none'"):
        read_propositions(wrong)


def test_grids_are_split_row_by_row_and_collected(tmp_path):
    cells = [Image.new("RGB", (8, 6), color) for color in COLORS]
    assert [cell.tobytes() for cell in split_grid(image_grid(cells, 2))] == [cell.tobytes() for cell in cells]
    with pytest.raises(ValueError, match="got 7x6"):
        split_grid(Image.new("RGB", (7, 6)))
    for number in range(2):
        (tmp_path / "run" / f"{number:05d}").mkdir(parents=True)
        image_grid(cells[number:] + cells[:number]).save(tmp_path / "run" / f"{number:05d}" / "grid.png")
    collect_grids(tmp_path / "run", ["x", "y"], tmp_path / "flat")
    with Image.open(tmp_path / "flat" / "y.png") as second:
        assert split_grid(second.convert("RGB"))[0].getpixel((0, 0)) == (0, 128, 0)


def test_summary_of_nothing_and_a_judge_that_skips():
    assert summarise([]) == {}
    with pytest.raises(ValueError, match="answered 1 of 2 questions about image 1"):
        score_prompt("a", [Proposition(1, "?", (0,), "x"), Proposition(2, "?", (0,), "x")], [["yes", "no"], ["yes"]])
