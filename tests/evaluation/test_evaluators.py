"""The table of benchmarks, on the command line and in Python, and what its evaluators refuse."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from understanding_data import IMAGE, Answerer, write_tsv

from janus_hf.evaluation.benchmarks.answers import primary_metric
from janus_hf.evaluation.benchmarks.image_metrics import PICTURE_METRICS
from janus_hf.evaluation.evaluators import (
    DRAWN_ONLY,
    KNOWN,
    TABLE,
    UNDERSTANDING,
    DPGBench,
    Understanding,
    better_if_greater,
    make_evaluator,
)
from janus_hf.evaluation.paper import BENCHMARKS
from janus_hf.evaluation.run_folder import every_process_alone, processes
from janus_hf.shapes import picture, place
from janus_hf_cli.benchmark_commands import COMMANDS


NEED_DATA = [name for name in KNOWN if name != "shapes"]


def test_every_benchmark_has_its_rows():
    assert set(COMMANDS) == set(TABLE) == set(KNOWN)
    assert {*KNOWN, *PICTURE_METRICS} == set(BENCHMARKS)
    assert {*UNDERSTANDING, *DRAWN_ONLY} < set(KNOWN)
    assert DRAWN_ONLY == ("geneval2", "wise")


def test_an_unknown_benchmark_names_the_known(run, capsys):
    with pytest.raises(ValueError, match="Known: geneval, dpg, pope"):
        make_evaluator("imagenet")
    with pytest.raises(ValueError, match="measures images that exist already.*janus-hf eval fid"):
        make_evaluator("fid")
    with pytest.raises(SystemExit):
        run("eval", "imagenet")
    stated = capsys.readouterr().err
    assert all(name in stated for name in KNOWN)


def test_limits_are_checked():
    with pytest.raises(ValueError, match="`limit` must be at least 1, got 0"):
        make_evaluator("geneval", detector="shapes", limit=0)


def test_failures_are_counted_and_end_the_command_with_one(run, tmp_path):
    """GQA's questions, one of them about an image that cannot be read."""
    picture(place([("red", "circle")], np.random.default_rng(0))).save(tmp_path / "1.jpg")
    (tmp_path / "2.jpg").write_bytes(b"no image")
    questions = {
        str(n): {"imageId": str(n), "question": "What colour is the circle?", "answer": "red"} for n in (1, 2)
    }
    (tmp_path / "testdev_balanced_questions.json").write_text(json.dumps(questions))
    data = tmp_path / "testdev_balanced_questions.json"
    status, out, err = run("eval", "gqa", "--data", data, "--images", tmp_path, "--max-new-tokens", "8", "-o", "out")
    assert status == 1
    assert "Judged: 1. Failed: 1 (50.00 % of all)" in out
    assert "1 could not be judged (50.00 % of all)." in err


@pytest.mark.parametrize("name", NEED_DATA)
def test_a_missing_file_says_where_to_get_it(name, tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no .*none.*The data of"):
        make_evaluator(name, tmp_path / "none")


@pytest.mark.parametrize("name", ["geneval2", "wise"])
def test_data_that_may_not_be_distributed_are_not_downloaded(name):
    with pytest.raises(FileNotFoundError, match="name it with --data"):
        make_evaluator(name)


def test_declared_primary_metrics_are_the_papers():
    declared = {name: Understanding(name, "x").primary_metric for name in ("pope", "mme", "gqa")}
    assert declared == {"pope": "random F1", "mme": "perception", "gqa": "overall"}
    assert declared == {name: primary_metric(name) for name in declared}
    assert primary_metric("pope", ["adversarial", "overall"]) == "adversarial"  # a file without the papers' split


def test_the_shapes_world_makes_its_own_data(tmp_path):
    assert make_evaluator("shapes", questions=3).questions == 3
    with pytest.raises(ValueError, match="`data` must be None for 'shapes'"):
        make_evaluator("shapes", tmp_path)


def test_images_are_judged_in_a_folder(pipe):
    with pytest.raises(TypeError, match="`folder` must be a path, got None"):
        make_evaluator("geneval", detector="shapes", prompts_per_tag=1)(pipe, None)


def test_an_option_without_effect_is_refused(tmp_path):
    (tmp_path / "prompts.jsonl").write_text('{"tag": "colors", "prompt": "x", "include": []}')
    with pytest.raises(TypeError, match="`prompts_per_tag` must be None"):
        make_evaluator("geneval", tmp_path / "prompts.jsonl", detector="shapes", prompts_per_tag=1)


def multiple_choice(**more):
    return [
        {"index": str(i), "question": "What?", "A": "a", "B": "b", "answer": "A", "category": kind, "image": IMAGE}
        | more
        for i, kind in enumerate(("art", "maths"))
    ]


# Rows of each understanding benchmark in VLMEvalKit's layout, two categories each.
ROWS = {
    "pope": [
        {"index": str(i), "question": "What?", "answer": "Yes", "category": split, "image": IMAGE}
        for i, split in enumerate(("random", "popular"))
    ],
    "mme": [
        {"index": f"{kind}{i}", "question": "What?", "answer": "Yes", "category": kind, "image_path": f"{kind}.jpg"}
        | {"image": IMAGE}
        for kind in ("count", "OCR")
        for i in (0, 1)
    ],
    "mmbench": multiple_choice(),
    "seed": multiple_choice(),
    "mmmu": multiple_choice(split="validation"),
    "gqa": [{"index": "0", "question": "What?", "answer": "red", "image": IMAGE}],
    "mmvet": [{"index": "0", "question": "What?", "image": IMAGE}],
}


@pytest.mark.parametrize("name", UNDERSTANDING)
def test_metrics_are_named_before_questions_are_asked(name, tmp_path, monkeypatch):
    evaluator = make_evaluator(name, write_tsv(tmp_path / "data.tsv", ROWS[name]))
    names = evaluator.metric_names()
    report = evaluator(Answerer(monkeypatch, {"What?": "yes"}), tmp_path / "run")
    assert names == list(report.metrics)
    assert bool(names) is (name != "mmvet")
    assert names == [] or evaluator.primary_metric in names
    assert {metric for metric in names if not better_if_greater(metric)} <= {"unparsed", "random yes", "popular yes"}
    assert better_if_greater("unparsed") is False
    assert better_if_greater("random yes") is None
    (tmp_path / "data.tsv").write_text("index\tquestion\n0\tWhat?\n")
    with pytest.raises(ValueError, match="data.tsv must have"):
        evaluator.metric_names()


@pytest.mark.parametrize(
    "options",
    [
        {"prompts_per_tag": 0, "questions": 2},
        {"prompts_per_tag": 1, "images_per_prompt": 1, "questions": 0, "held_out": False},
    ],
)
def test_metrics_are_named_before_images_are_generated(options, pipe, tmp_path):
    evaluator = make_evaluator("shapes", **options)
    report = evaluator(pipe, tmp_path / "run")
    assert evaluator.metric_names() == list(report.metrics)
    assert report.primary == evaluator.primary_metric


def test_metrics_of_other_benchmarks_that_generate_images(dpg_data, tmp_path):
    items = make_evaluator("geneval", detector="shapes", prompts_per_tag=1)
    assert items.metric_names()[-3:] == ["overall", "pictures", "prompts"]
    judge = SimpleNamespace(name="mplug")
    assert DPGBench(dpg_data, judge).metric_names()[0] == DPGBench(dpg_data, judge).primary_metric == "overall"
    assert DPGBench(dpg_data, SimpleNamespace(name="x")).metric_names()[0] == "dpg[x]"


def test_every_process_can_be_alone(monkeypatch):
    """Inside the block a process works on everything and waits for nobody, whatever the launch is."""
    launch = SimpleNamespace(num_processes=8, process_index=3, device="cpu", is_main_process=False)
    monkeypatch.setattr("janus_hf.evaluation.run_folder.PartialState", lambda cpu: launch)
    assert processes() is launch
    with every_process_alone():
        assert (processes().num_processes, processes().process_index) == (1, 0)
        assert processes().is_main_process
        processes().wait_for_everyone()
    assert processes() is launch


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompts_per_tag": -1}, "`prompts_per_tag` and `questions` must be 0 or more"),
        ({"prompts_per_tag": 0, "questions": 0}, "not both 0, got 0 and 0"),
        ({"images_per_prompt": 0}, "`images_per_prompt` must be at least 1, got 0"),
        ({"batch_size": 0}, "`batch_size` must be at least 1, got 0"),
    ],
)
def test_numbers_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        make_evaluator("shapes", **options)


@pytest.mark.parametrize("name", [name for name in KNOWN if name not in ("shapes", "dpg", *DRAWN_ONLY)])
def test_a_random_part_of_the_data(name, tmp_path, monkeypatch):
    """The first items of a file may all be of one kind. MME's two questions about an image stay together."""
    if name == "geneval":
        lines = [json.dumps({"tag": "colors", "prompt": str(n), "include": []}) for n in range(40)]
        (tmp_path / "data.tsv").write_text("\n".join(lines))
    elif name == "mme":
        row = ROWS["mme"][0]
        rows = [row | {"index": f"{n}-{i}", "image_path": f"{n}.jpg"} for n in range(20) for i in (0, 1)]
        write_tsv(tmp_path / "data.tsv", rows)
    else:
        write_tsv(tmp_path / "data.tsv", [ROWS[name][0] | {"index": str(n)} for n in range(40)])

    def chosen(**options):
        evaluator = make_evaluator(name, tmp_path / "data.tsv", **options)
        if name == "geneval":
            return [int(item["prompt"]) for item in evaluator.items]
        report = evaluator(Answerer(monkeypatch, {"What?": "yes"}), tmp_path / f"run{sorted(options.items())}")
        return [float(row["index"].replace("-", ".")) for row in report.rows]

    every, first = chosen(), chosen(limit=8)
    assert len(every) == 40
    assert first == every[:8]
    part = chosen(limit=8, sample_seed=0)
    assert len(part) == 8
    assert part == chosen(limit=8, sample_seed=0) == sorted(part) != first
    assert part != chosen(limit=8, sample_seed=1)
    if name == "mme":
        assert [int(index) for index in part[::2]] == [int(index) for index in part[1::2]]
    with pytest.raises(ValueError, match="`sample_seed` must come together with `limit`, got 0 alone"):
        chosen(sample_seed=0)
