"""The table of benchmarks, on the command line and in Python, and what its evaluators refuse."""

import json

import numpy as np
import pytest

from janus_hf.evaluation.benchmarks.answers import primary_metric
from janus_hf.evaluation.benchmarks.image_metrics import PICTURE_METRICS
from janus_hf.evaluation.evaluators import DRAWN_ONLY, KNOWN, TABLE, UNDERSTANDING, Understanding, make_evaluator
from janus_hf.evaluation.paper import BENCHMARKS
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
