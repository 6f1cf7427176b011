"""The benchmarks of a recipe: its options are those of the commands, and what is wrong is said before training."""

import json
import re
from types import SimpleNamespace

import pytest

from janus_hf.shapes import QUESTION_KINDS, TAGS
from janus_hf_cli.benchmark_commands import COMMANDS
from janus_hf_cli.benchmarks_in_training import make_benchmarks


def test_options_and_metrics_of_the_shapes_world():
    benchmark = make_benchmarks(
        {"shapes": {"prompts_per_tag": 2, "guidance_scale": 1.5, "seed": 3, "batch_size": "auto"}}
    )["shapes"]
    evaluator = benchmark.evaluator
    assert (evaluator.prompts_per_tag, evaluator.questions, evaluator.seed) == (2, 600, 3)
    assert (evaluator.drawing, evaluator.batch_size) == ({"guidance_scale": 1.5}, "auto")
    groups = {"": TAGS, "held_out_": TAGS, "answers_": QUESTION_KINDS, "answers_held_out_": QUESTION_KINDS}
    keys = {f"{prefix}{name}" for prefix, names in groups.items() for name in ("overall", *names)}
    assert benchmark.metrics == dict.fromkeys(keys, True)


def test_flags_and_files(tmp_path, monkeypatch):
    """Without quirks, the first proposition of DPG-Bench's file counts as well."""
    monkeypatch.setattr("janus_hf.rewards.vqa.TransformersVqaJudge", lambda name, device: SimpleNamespace(name=name))
    data = tmp_path / "with a space=.csv"
    columns = "item_id,text,keywords,proposition_id,dependency,category_broad,category_detailed,tuple,question_natural"
    rows = [f"a,p,,{i},0,,,{kind} - whole (x),x?" for i, kind in ((1, "global"), (2, "entity"))]
    data.write_text("\n".join([f"{columns}_language", *rows]))
    for quirks in (True, False):
        options = {"data": str(data), "without_quirks": not quirks, "limit": None, "judge": "mine"}
        metrics = make_benchmarks({"dpg": options})["dpg"].metrics
        assert "dpg_mine" in metrics
        assert ("global_mine" in metrics) is not quirks


@pytest.mark.parametrize("name", ["imagenet", "fid", "clipscore", 3])
def test_an_unknown_benchmark_names_the_known(name):
    with pytest.raises(ValueError, match=f"must name benchmarks of this package, got {name!r}: choose from shapes, g"):
        make_benchmarks({name: None})


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("shapes", {"prompts": 3}, "evaluate.benchmarks.shapes has no option 'prompts': remove it, or choose one of"),
        ("shapes", {"output": "x"}, "has no option 'output'"),
        ("shapes", {"data": "x"}, "has no option 'data'"),
        ("shapes", {"questions": "many"}, "evaluate.benchmarks.shapes: questions: invalid int value: 'many'"),
        ("shapes", {"questions": 1.5}, "questions: invalid int value: '1.5'"),
        ("shapes", {"questions": [1]}, "evaluate.benchmarks.shapes.questions must be a number or a word"),
        ("shapes", {"questions": True}, "evaluate.benchmarks.shapes.questions must be a number or a word"),
        (
            "shapes",
            {"questions": -1},
            "evaluate.benchmarks.shapes: `prompts_per_tag` and `questions` must",
        ),
        ("shapes", {"images_per_prompt": 0}, "evaluate.benchmarks.shapes: `images_per_prompt` must be at least 1"),
        ("dpg", {"without_quirks": 1}, "evaluate.benchmarks.dpg.without_quirks must be true or false, got 1"),
        (
            "geneval",
            {"prompts_per_tag": 3},
            "evaluate.benchmarks.geneval: `--prompts-per-tag` must come together",
        ),
        ("geneval", {"detector": "shapes", "limit": 0}, "evaluate.benchmarks.geneval: `limit` must be at least 1"),
    ],
)
def test_wrong_options(name, options, message):
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        make_benchmarks({name: options})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "shapes"])
def test_missing_data(name, tmp_path):
    with pytest.raises(
        FileNotFoundError, match=f"evaluate.benchmarks.{name} must have its data and its judge at hand.*There is no"
    ):
        make_benchmarks({name: {"data": str(tmp_path / "none")}})


@pytest.mark.parametrize("name", ["geneval2", "wise", "mmvet"])
def test_benchmarks_with_an_external_judge(name, tmp_path):
    data = tmp_path / ("data.tsv" if name == "mmvet" else "data.jsonl" if name == "geneval2" else "data.json")
    data.write_text("index\tquestion\timage_path\n0\tWhat?\ta.png\n" if name == "mmvet" else json.dumps([]))
    with pytest.raises(ValueError, match=f"must score a benchmark .* got '{name}', whose judge is external"):
        make_benchmarks({name: {"data": str(data)}})


def test_a_missing_judge(monkeypatch, tmp_path):
    """The detector is loaded before training, and not at its first use."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    data = tmp_path / "prompts.jsonl"
    data.write_text(json.dumps({"tag": "colors", "prompt": "x", "include": [{"class": "dog", "count": 1}]}))
    with pytest.raises(FileNotFoundError, match="must have its data and its judge at hand.*no-such-detector"):
        make_benchmarks({"geneval": {"data": str(data), "detector": str(tmp_path / "no-such-detector")}})


def test_a_folder_of_an_earlier_run_is_replaced(tmp_path, monkeypatch, pipe):
    options = {"detector": "shapes", "prompts_per_tag": 1, "images_per_prompt": 1}
    benchmark = make_benchmarks({"geneval": options})["geneval"]
    folder = tmp_path / "step-2" / "geneval"
    folder.mkdir(parents=True)
    (folder / "settings.json").write_text("{}")
    first = benchmark(pipe.model, pipe.processor, folder, shared=True)
    assert first.keys() == benchmark.metrics.keys()
    assert (folder / "report.json").is_file()
    assert benchmark(pipe.model, pipe.processor, folder, shared=False) == first
