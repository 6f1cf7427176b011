"""GenEval 2 and WISE: reading their files, their arithmetic by hand, and the files for their judges."""

import json
from pathlib import Path

import pytest
from launch import assert_same_images, files, finish
from PIL import Image

from janus_hf.evaluation.benchmarks.geneval2 import AtomicPrompt, read_geneval2, score_geneval2, soft_tifa
from janus_hf.evaluation.benchmarks.prompt_sets import save_verdicts
from janus_hf.evaluation.benchmarks.wise import read_wise, read_wise_marks, score_wise, wiscore
from janus_hf.evaluation.evaluators import make_evaluator
from janus_hf.evaluation.report import Report


TWO_DOGS = {
    "prompt": "two red dogs",
    "atom_count": 3,
    "vqa_list": [["How many dogs are there?", "two"], ["Are the dogs red?", "Yes"], ["Are there dogs?", "Yes"]],
    "skills": ["count", "attribute", "object"],
}
A_CAT = {"prompt": "a cat", "atom_count": 1, "vqa_list": [["Is there a cat?", "Yes"]], "skills": ["object"]}
LOST = {"prompt": "a cow", "atom_count": 1, "vqa_list": [["Is there a cow?", "Yes"]], "skills": ["object"]}


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_soft_tifa():
    assert soft_tifa([0.5, 0.5, 0.0]) == (pytest.approx(1 / 3), 0.0)
    assert soft_tifa([0.2, 0.9, 0.6]) == (pytest.approx(1.7 / 3), pytest.approx(0.108 ** (1 / 3)))
    for wrong in ([], [0.5, 1.2], [-0.1], [float("nan")]):
        with pytest.raises(ValueError, match="probabilities must be in"):
            soft_tifa(wrong)


def test_geneval2(tmp_path):
    prompts = read_geneval2(write_lines(tmp_path / "data.jsonl", [TWO_DOGS, A_CAT, LOST]))
    assert prompts[0] == AtomicPrompt(
        "two red dogs",
        3,
        (("How many dogs are there?", "two"), ("Are the dogs red?", "Yes"), ("Are there dogs?", "Yes")),
        ("count", "attribute", "object"),
    )
    report = score_geneval2(prompts, {"two red dogs": [0.1, 0.4, 0.2], "a cat": [0.6], "a cow": [0.1, 0.2]})
    # Geometric means: (0.008) ** (1/3) = 0.2 and 0.6; arithmetic: 0.7 / 3 and 0.6.
    assert report.metrics == pytest.approx(
        {
            "soft_tifa_gm": 40.0,
            "soft_tifa_am": 100 * (0.7 / 3 + 0.6) / 2,
            "attribute": 40.0,
            "count": 10.0,
            "object": 40.0,  # 0.2 and 0.6
            "1 atoms": 60.0,
            "3 atoms": 20.0,
        }
    )
    assert report.value == pytest.approx(40)
    assert report.failures == ["'a cow': there must be 1 probabilities, got 2"]
    assert len(report.rows) == 2


def test_geneval2_must_be_the_users_own_and_whole(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"GenEval2 \(CC-BY-NC-4.0"):
        read_geneval2(tmp_path / "none.jsonl")
    for broken in ({"prompt": "x"}, A_CAT | {"skills": []}, A_CAT | {"skills": [], "vqa_list": []}):
        with pytest.raises(ValueError, match="line 2 must"):
            read_geneval2(write_lines(tmp_path / "data.jsonl", [A_CAT, broken]))


def test_wiscore():
    assert wiscore(2, 2, 2) == pytest.approx(1)
    assert wiscore(2, 1, 0) == pytest.approx(0.8)
    assert wiscore(0, 1, 2) == pytest.approx(0.2)
    with pytest.raises(ValueError, match="marks must be in"):
        wiscore(3, 0, 0)


def knowledge(number, category="from the file"):
    return {
        "prompt_id": number,
        "Prompt": f"prompt {number}",
        "Explanation": "why",
        "Category": category,
        "Subcategory": "sub",
    }


# The first and the last number of each category, and the first one beyond.
EDGES = {1: "culture", 400: "culture", 401: "time", 567: "time", 568: "space", 700: "space", 701: "biology"}
EDGES |= {800: "biology", 801: "physics", 900: "physics", 901: "chemistry", 1000: "chemistry", 1001: "from the file"}


def test_wise_categories(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    numbers = list(EDGES)
    (folder / "a.json").write_text(json.dumps([knowledge(number) for number in numbers[:6]]))
    (folder / "b.json").write_text(json.dumps([knowledge(number) for number in numbers[6:]]))
    prompts = read_wise(folder)
    assert {prompt.prompt_id: prompt.category for prompt in prompts} == EDGES
    assert (prompts[0].prompt, prompts[0].explanation, prompts[0].subcategory) == ("prompt 1", "why", "sub")
    assert len(read_wise(folder / "a.json")) == 6
    (folder / "c.json").write_text(json.dumps([knowledge(1)]))
    with pytest.raises(ValueError, match="repeats 1"):
        read_wise(folder)


def test_wise_overall_is_weighted(tmp_path):
    path = tmp_path / "all.json"
    path.write_text(json.dumps([knowledge(number) for number in (1, 2, 450, 600, 750, 850, 950, 951)]))
    prompts = read_wise(path)
    marks = {
        1: (2, 2, 2),
        2: (0, 0, 0),
        450: (2, 2, 2),
        600: (0, 0, 0),
        750: (2, 1, 0),
        850: (0, 1, 2),
        950: (1, 1, 1),
    }
    rows = [
        dict(zip(("consistency", "realism", "aesthetic_quality"), mark, strict=True)) | {"prompt_id": n}
        for n, mark in marks.items()
    ]
    rows.append({"prompt_id": 951, "consistency": 999, "realism": 999, "aesthetic_quality": 999})
    report = score_wise(prompts, read_wise_marks(write_lines(tmp_path / "marks.jsonl", rows)))
    expected = {"culture": 0.5, "time": 1.0, "space": 0.0, "biology": 0.8, "physics": 0.2, "chemistry": 0.5}
    overall = 0.4 * 0.5 + 0.167 * 1.0 + 0.133 * 0 + 0.1 * (0.8 + 0.2 + 0.5)
    assert report.metrics == pytest.approx({"overall": overall} | expected)
    assert report.failures == ["951: the judge gave no marks"]
    assert "weighted" in report.protocol


def test_wise_of_a_part_is_a_plain_mean(tmp_path):
    path = tmp_path / "part.json"
    path.write_text(json.dumps([knowledge(number) for number in (1, 2, 450, 3)]))
    report = score_wise(read_wise(path), {1: (2, 2, 2), 2: (0, 0, 0), 450: (0, 0, 0)})
    assert report.value == pytest.approx(1 / 3)
    assert "mean over images" in report.protocol
    assert report.failures == ["3: no marks"]


def test_wise_files_that_are_not(tmp_path):
    with pytest.raises(FileNotFoundError, match="WISE"):
        read_wise(tmp_path / "none.json")
    with pytest.raises(FileNotFoundError, match="no"):
        read_wise(tmp_path)
    path = tmp_path / "x.json"
    path.write_text(json.dumps([{"prompt_id": 1}]))
    with pytest.raises(ValueError, match="entry 0 must be an object with 'prompt_id', 'Prompt', 'Explanation'"):
        read_wise(path)
    with pytest.raises(ValueError, match="line 1 must"):
        read_wise_marks(write_lines(tmp_path / "marks.jsonl", [{"prompt_id": 1}]))


def test_verdicts_are_saved_beside_the_images(pipe, tmp_path):
    data = write_lines(tmp_path / "data.jsonl", [TWO_DOGS, A_CAT, LOST])
    drawn = make_evaluator("geneval2", data)(pipe, tmp_path / "run")
    report = score_geneval2(read_geneval2(data), {"a cat": [0.9], "a cow": [0.2]})
    save_verdicts(report, tmp_path / "run")
    saved = Report.load(tmp_path / "run")
    assert saved.value == pytest.approx(55)
    assert saved.settings["weights_sha256"] == drawn.settings["weights_sha256"]
    assert saved.failures == ["'two red dogs': there must be 3 probabilities, got 0"]
    with Image.open(tmp_path / "run" / "sheet.png") as sheet:
        # Best first: the cat in green, then the cow in red; each frame's corner is on the sheet's upper edge.
        assert [sheet.getpixel((sheet.width * tile // 12 + 1, 1)) for tile in range(3)] == [
            (0, 128, 0),
            (255, 0, 0),
            (255, 255, 255),
        ]
    again = score_geneval2(read_geneval2(data), {"two red dogs": [0.5] * 3})  # the prompt that was not judged before
    save_verdicts(again, tmp_path / "run")
    assert Report.load(tmp_path / "run").value == pytest.approx(50)


def test_verdicts_about_other_images_are_refused(pipe, tmp_path):
    path = tmp_path / "wise.json"
    path.write_text(json.dumps([knowledge(7), knowledge(8)]))
    make_evaluator("wise", path, limit=1)(pipe, tmp_path / "run")
    report = score_wise(read_wise(path), {7: (2, 2, 2), 8: (0, 0, 0)})
    with pytest.raises(ValueError, match="1 of its prompts have none there, such as 8"):
        save_verdicts(report, tmp_path / "run")
    save_verdicts(score_wise(read_wise(path)[:1], {7: (2, 2, 2)}), tmp_path / "run")
    assert Report.load(tmp_path / "run").value == pytest.approx(1)
    with pytest.raises(FileNotFoundError, match="no benchmark has finished there"):
        save_verdicts(report, tmp_path)


def test_files_for_an_external_judge(pipe, tmp_path):
    """GenEval 2's judge reads a file of prompts and paths. A damaged image is generated again and reported."""
    line = {"prompt": "a photo of a red circle", "atom_count": 2, "vqa_list": [["a?", "yes"]], "skills": ["object"]}
    (tmp_path / "data.jsonl").write_text(json.dumps(line) + "\n")
    evaluate = make_evaluator("geneval2", tmp_path / "data.jsonl")
    report = evaluate(pipe, tmp_path / "run")
    assert report.value is None
    assert "Not judged here: 1." in report.to_markdown()
    paths = json.loads((tmp_path / "run" / "images.json").read_text())
    spoiled = Path(paths[line["prompt"]])
    spoiled.write_bytes(b"")
    again = evaluate(pipe, tmp_path / "run")
    assert again.settings["drawn_again"] == ["00000/samples/0000.png could not be read: drawn again"]
    with Image.open(spoiled) as image:
        assert image.size == (64, 64)


@pytest.mark.slow
def test_two_ranks_are_one(tmp_path):
    data = write_lines(tmp_path / "data.jsonl", [TWO_DOGS, A_CAT, LOST])
    for processes in (1, 2):
        arguments = ["geneval2", "--data", str(data), "--batch-size", "2", "-o", str(tmp_path / str(processes))]
        finish(arguments, processes)
    one, two = (tmp_path / "1", tmp_path / "2")
    assert len(files(one, "*/samples/*.png")) == 3
    assert_same_images(one, two, "*/samples/*.png")
    for pattern in ("*/metadata.jsonl", "results.jsonl"):
        assert files(one, pattern) == files(two, pattern)
    assert Report.load(two).settings["environments"][-1]["processes"] == 2
