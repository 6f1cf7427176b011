"""DPG-Bench's arithmetic against an example worked out by hand, its files, and its command."""

import csv
import re
import sys

import pytest
from launch import files, finish
from PIL import Image

from janus_hf import JanusProPipeline
from janus_hf.assets import DEFAULT_MODEL
from janus_hf.evaluation.benchmarks.dpg import Quirks, evaluate_dpg, score_image, score_prompt, summarise
from janus_hf.evaluation.benchmarks.dpg_data import (
    Proposition,
    collect_grids,
    read_prompts,
    read_propositions,
    split_grid,
)
from janus_hf.evaluation.evaluators import DPGBench
from janus_hf.evaluation.report import Report
from janus_hf.image_grid import image_grid
from janus_hf.rewards.mplug import MplugJudge
from tiny_judges import write_modelscope


COLUMNS = ["item_id", "text", "keywords", "proposition_id", "dependency", "category_broad", "category_detailed"]
COLUMNS += ["tuple", "question_natural_language"]
OFF = {"skip_first_row": False, "last_crop_categories": False, "drop_failed": False}

# Three prompts. Reading the first row as a header, as the official script in effect does, loses "a's first".
ROWS = [
    ("a", 1, "0", "entity - whole (sky)", "a first?"),
    ("a", 2, "0", "global - (photo)", "a second?"),
    ("b", 1, "0", "entity - whole (dog)", "dog?"),
    ("b", 2, "1", "attribute - color (dog, red)", "red dog?"),
    ("b", 3, "1,2", "relation - spatial (dog, mat, on)", "dog on mat?"),
    ("c", 1, "0", "entity - whole (cat)", "cat?"),
    ("c", 2, "0", "entity - part (cat, tail)", "tail?"),
]
COLORS = ["red", "green", "blue", "white"]  # of the four pictures of a grid
# What the judge says yes to, per picture. Nobody asks for what it was not asked.
YES = {
    "red": {"a first?", "a second?", "dog?", "red dog?", "dog on mat?", "cat?"},
    "green": {"a second?", "red dog?", "dog on mat?", "cat?", "tail?"},
    "blue": {"a first?", "dog?", "dog on mat?", "tail?"},
    "white": {"dog?", "red dog?", "tail?"},
}


class ByColor:
    """Knows a picture by its colour; says nothing about `silent`."""

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
def data(tmp_path):
    folder = tmp_path / "dpg_bench"
    (folder / "prompts").mkdir(parents=True)
    with (folder / "dpg_bench.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(COLUMNS)
        for item, number, parents, what, question in ROWS:
            table.writerow([item, f"prompt {item}, long", "", number, parents, "", "", what, question])
    for item in "abc":
        (folder / "prompts" / f"{item}.txt").write_text(f"prompt {item}, long\n")
    return folder


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
        ("nyy", {1: [0], 2: [1], 3: [2]}, [0, 0, 0]),  # the zero is handed down: 2 is zeroed before 3 looks at it
        ("nyy", {1: [0], 3: [2], 2: [1]}, [0, 0, 1]),  # but 3 stands before 2 and sees its own answer, a yes
        ("yny", {1: [0], 2: [0], 3: [1, 2]}, [1, 0, 0]),  # any parent
        ("yny", {1: [0], 2: [0], 3: [0, 1]}, [1, 0, 1]),  # 0 is nobody
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


def test_worked_example_with_all_quirks(data, grids):
    report = evaluate_dpg(grids, data, ByColor())
    assert [row["pictures"] for row in report.rows] == [
        [1, 1, 0, 0],
        [1, 0, pytest.approx(1 / 3), pytest.approx(2 / 3)],
        [0.5, 1, 0.5, 0.5],
    ]
    # Of the white picture only, parents ignored: a2 no; dog and red dog yes, dog on mat no; cat no, tail yes.
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


def test_worked_example_without_quirks(data, grids):
    report = evaluate_dpg(grids, data, ByColor(), quirks=Quirks(**OFF))
    assert report.value == pytest.approx(OVERALL)  # a happens to score 1/2 either way
    assert report.rows[0]["pictures"] == [1, 0.5, 0.5, 0]
    # Four pictures, with parents: sky 2; dog 3, cat 2 -> 7 of 12 whole; tail 3 of 4; a2 2 of 4;
    # red dog: red, white -> 2 (green has no dog); dog on mat: red only.
    expected = {"entity - whole": 7 / 12, "entity - part": 3 / 4, "entity": 10 / 16, "global": 2 / 4}
    expected |= {"attribute": 2 / 4, "relation": 1 / 4}
    assert {name: report.metrics[name] / 100 for name in expected} == pytest.approx(expected)
    assert "Other than officially: Quirks(skip_first_row=False" in report.protocol
    assert report.protocol.startswith("3 prompts, 4 pictures each in a 2x2 grid; mPLUG-large answers")
    assert "The whole benchmark has 1065 prompts." in report.protocol


def test_each_quirk_by_itself(data, grids):
    first = evaluate_dpg(grids, data, ByColor(), quirks=Quirks(skip_first_row=False)).metrics
    assert first["entity - whole"] == pytest.approx(100 / 3)  # white: sky no, dog yes, cat no
    crops = evaluate_dpg(grids, data, ByColor(), quirks=Quirks(last_crop_categories=False)).metrics
    assert crops["entity - whole"] == pytest.approx(100 * 5 / 8)

    (grids / "c.png").unlink()
    dropped = evaluate_dpg(grids, data, ByColor())
    kept = evaluate_dpg(grids, data, ByColor(), quirks=Quirks(drop_failed=False))
    assert dropped.failures == kept.failures == ["c: no picture of this name"]
    assert dropped.value == pytest.approx(50)
    assert kept.value == pytest.approx(100 / 3)  # (1/2 + 1/2 + 0) / 3
    for report in (dropped, kept):
        assert [row["item_id"] for row in report.rows] == ["a", "b"]
        assert report.failed_share == pytest.approx(1 / 3)
    assert "Judged: 2. Failed: 1 (33.33 % of all), not in the numbers above." in dropped.to_markdown()
    assert "Failed: 1 (33.33 % of all), 1 of them, as wrong, in the numbers above." in kept.to_markdown()


def test_the_skipped_first_row_fails_a_prompt_that_depends_on_it(data, grids):
    path = data / "dpg_bench.csv"
    lines = path.read_text().splitlines()
    lines[2] = lines[2].replace(",2,0,", ",2,1,")
    path.write_text("\n".join(lines) + "\n")
    report = evaluate_dpg(grids, data, ByColor())
    assert report.failures == ["a: proposition 2 depends on 1, which was not asked"]
    assert report.value == pytest.approx(100 * (1 / 2 + 5 / 8) / 2)
    zero = evaluate_dpg(grids, data, ByColor(), quirks=Quirks(drop_failed=False))
    assert zero.value == pytest.approx(100 * (1 / 2 + 5 / 8) / 3)


def test_what_fails_is_named(data, grids):
    (grids / "a.png").write_bytes((grids / "a.png").read_bytes()[:60])
    Image.new("RGB", (4, 4)).save(grids / "stranger.png")
    report = evaluate_dpg(grids, data, ByColor(silent={"red dog?"}))
    unreadable, silent, stranger = report.failures
    assert unreadable.startswith("a: a.png cannot be read")
    assert silent == "b: the judge answered 2 of 3 questions about picture 0"
    assert stranger == "stranger: no prompt of this name"
    assert report.value == pytest.approx(62.5)
    assert report.failed_share == 0.75
    Image.new("RGB", (5, 4)).save(grids / "c.png")
    assert "c: Expected a grid of 2x2 pictures" in evaluate_dpg(grids, data, ByColor()).failures[1]


def test_some_prompts_only(data, grids):
    Image.new("RGB", (4, 4)).save(grids / "stranger.png")
    report = evaluate_dpg(grids, data, ByColor(), items=["c", "b", "nobody"])
    assert report.value == pytest.approx(100 * (1 / 2 + 5 / 8) / 2)
    assert report.failures == ["nobody: no propositions are asked of it"]
    assert report.protocol.startswith("2 prompts, 4 pictures each")


def test_other_judges_label_every_metric(data, grids):
    judge = ByColor()
    judge.name = "blip"
    report = evaluate_dpg(grids, data, judge)
    assert report.primary == "dpg[blip]"
    assert report.value == pytest.approx(OVERALL)
    assert all(name.endswith("[blip]") for name in report.metrics)
    assert "not comparable" in report.protocol
    assert re.search(r"\| \*\*dpg\[blip\]\*\* \| 54\.17 \|( - \|)+", report.to_markdown())


def test_it_goes_on_where_it_stopped(data, grids, tmp_path):
    class Stops(ByColor):
        def __call__(self, image, questions):
            if "dog?" in questions and image.getpixel((0, 0)) == (0, 0, 255):
                raise KeyboardInterrupt
            return super().__call__(image, questions)

    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        evaluate_dpg(grids, data, Stops(), folder=folder)
    judge = ByColor()
    report = evaluate_dpg(grids, data, judge, folder=folder)
    assert len(judge.asked) == 8  # b and c; a was done
    assert report.value == pytest.approx(OVERALL)
    with pytest.raises(ValueError, match="quirks: .* there, .* now"):
        evaluate_dpg(grids, data, ByColor(), folder=folder, quirks=Quirks(skip_first_row=False))


def test_files(data, tmp_path):
    prompts = {"a": "prompt a, long", "b": "prompt b, long", "c": "prompt c, long"}
    assert read_prompts(data) == read_prompts(data / "prompts") == read_prompts(data / "dpg_bench.csv") == prompts
    propositions = read_propositions(data)
    assert {item: [p.id for p in listed] for item, listed in propositions.items()} == {
        "a": [2],
        "b": [1, 2, 3],
        "c": [1, 2],
    }
    assert propositions["b"][2] == Proposition(3, "dog on mat?", (1, 2), "relation - spatial")
    assert [p.id for p in read_propositions(data / "dpg_bench.csv", skip_first_row=False)["a"]] == [1, 2]
    for read in (read_prompts, read_propositions):
        with pytest.raises(FileNotFoundError, match=r"TencentQQGYLab/ELLA \(Apache-2.0\)"):
            read(tmp_path / "nowhere")
    wrong = tmp_path / "wrong.csv"
    wrong.write_text("item_id,text\na,b\n")
    with pytest.raises(
        ValueError, match=r"\['proposition_id', 'dependency', .*\] are missing of \['item_id', 'text'\]"
    ):
        read_propositions(wrong)
    wrong.write_text((data / "dpg_bench.csv").read_text().replace('"1,2"', "none"))
    with pytest.raises(ValueError, match="in row 5 of .*; got '3' and 'none'"):
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
    with pytest.raises(ValueError, match="answered 1 of 2 questions about picture 1"):
        score_prompt("a", [Proposition(1, "?", (0,), "x"), Proposition(2, "?", (0,), "x")], [["yes", "no"], ["yes"]])


def test_the_command_ends_the_other_python(run, data, monkeypatch, tmp_path):
    monkeypatch.setenv("PYTHONPATH", str(write_modelscope(tmp_path)))
    close, ended = MplugJudge.close, []

    def record(judge):
        process = judge.process
        close(judge)
        ended.append(process.poll())

    monkeypatch.setattr(MplugJudge, "close", record)
    status, out, err = run("eval", "dpg", "--mplug-python", sys.executable, "--data", data, "--limit", 1, "-o", "out")
    assert status == 0, err
    assert "| **overall** | 0.00 |" in out  # no picture is 3 x 2, so every answer was no
    assert ended == [0]


class SaysYes:
    """To all questions about some pictures, by the bytes of their first pixel row."""

    name = "agreeable"

    def __call__(self, image, questions):
        share = sum(image.crop((0, 0, image.width, 1)).tobytes()) % 4
        return ["yes" if number < share else "no" for number in range(len(questions))]


def test_the_whole_way_with_a_sheet_and_no_other_data(data, tmp_path):
    pipe = JanusProPipeline.from_pretrained(DEFAULT_MODEL, dtype="float32")
    pipe.set_progress_bar_config(disable=True)
    report = DPGBench(data, SaysYes(), limit=2)(pipe, tmp_path / "run")
    assert [row["item_id"] for row in report.rows] == ["a", "b"]
    assert report.protocol.startswith("2 prompts, 4 pictures each in a 2x2 grid; agreeable answers")
    with Image.open(tmp_path / "run" / "sheet.png") as sheet:
        assert sheet.width > 2 * sheet.height  # one row
    assert Report.load(tmp_path / "run") == report

    table = (data / "dpg_bench.csv").read_text()
    (data / "dpg_bench.csv").write_text(table.replace("dog?", "puppy?", 1))
    with pytest.raises(ValueError, match="propositions_sha256: .* there, .* now"):
        DPGBench(data, SaysYes(), limit=2)(pipe, tmp_path / "run")
    (data / "prompts" / "a.txt").write_text("another prompt")
    with pytest.raises(ValueError, match="prompts_sha256: .* there, .* now"):
        DPGBench(data, SaysYes(), limit=2)(pipe, tmp_path / "run")


@pytest.mark.slow
def test_two_ranks_are_one(data, tmp_path):
    """The small model draws and judges. It knows no such questions, but what it says is to be equal."""
    for processes in (1, 2):
        arguments = ["dpg", "--data", str(data), "--judge", str(DEFAULT_MODEL), "--batch-size", "3", "-o"]
        finish([*arguments, str(tmp_path / str(processes))], processes)
    one, two = (tmp_path / "1", tmp_path / "2")
    assert len(files(one, "*/samples/*.png")) == 12
    for pattern in ("*/samples/*.png", "grids/*.png", "sheet.png", "results.jsonl"):
        assert files(one, pattern) == files(two, pattern)
    reports = [Report.load(folder) for folder in (one, two)]
    assert reports[0].metrics == reports[1].metrics
    assert reports[1].settings["environments"][-1]["processes"] == 2
    shares = [len(path.read_text().splitlines()) for path in sorted(two.glob("answers-*/answers.rank*.jsonl"))]
    assert sorted(shares) == [1, 2]
