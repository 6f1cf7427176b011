"""The shapes benchmark: a pipeline that generates the correct scenes scores 1, one that generates others does not."""

from types import SimpleNamespace

import pytest
from launch import files, finish

from janus_hf.evaluation.benchmarks import shapes_world
from janus_hf.evaluation.benchmarks.shapes_world import ShapesWorld, tables
from janus_hf.evaluation.report import Report
from janus_hf.shapes import QUESTION_KINDS, TAGS, make_drawing, picture


class Oracle:
    """A pipeline that generates the scene a prompt was made from, or that of the prompt `shift` positions later."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, shift: int = 0) -> None:
        self.made: list = []
        self.shift, self.settings = shift, []
        monkeypatch.setattr(shapes_world, "make_drawing", self.make)
        monkeypatch.setattr(shapes_world, "answer", self.answer)

    def make(self, *args, **kwargs):
        self.made.append(make_drawing(*args, **kwargs))
        return self.made[-1]

    def __call__(self, prompts, *, num_images_per_prompt, generator, batch_size, **settings):
        self.settings.append(settings)
        drawings = self.made[-len(prompts) :]
        assert [drawing.prompt for drawing in drawings] == prompts
        assert len({g.initial_seed() for g in generator}) == len(prompts) * num_images_per_prompt
        scenes = [drawings[(i + self.shift) % len(drawings)].scene for i in range(len(drawings))]
        return SimpleNamespace(images=[picture(scene) for scene in scenes for _ in range(num_images_per_prompt)])

    def answer(self, pipe, images, questions, *, batch_size):
        return ["yes" for _ in questions]


def test_correct_scenes_score_one_on_every_tag(monkeypatch):
    oracle = Oracle(monkeypatch)
    drawing = {"top_k": 7, "guidance_scale": None}
    report = ShapesWorld(prompts_per_tag=5, images_per_prompt=2, questions=60, drawing=drawing)(oracle)
    assert oracle.settings == [{"top_k": 7}]
    expected = {f"{part}{name}": 1.0 for part in ("", "held out: ") for name in ("overall", *TAGS)}
    answers = [
        f"{part}{name}" for part in ("answers: ", "answers, held out: ") for name in ("overall", *QUESTION_KINDS)
    ]
    assert list(report.metrics) == [*expected, *answers]
    assert {name: report.metrics[name] for name in expected} == expected
    assert 0 < report.metrics["answers: exists"] < 1
    assert report.metrics["answers: colour"] == 0
    overall = report.metrics["answers: exists"] / len(QUESTION_KINDS)
    assert report.metrics["answers: overall"] == pytest.approx(overall)
    assert (report.benchmark, report.primary, len(report.rows)) == ("shapes", "overall", 2 * (6 * 5 * 2 + 60))


def test_scenes_of_other_prompts_score_less(monkeypatch):
    evaluate = ShapesWorld(prompts_per_tag=30, images_per_prompt=1, questions=6, held_out=False)
    report = evaluate(Oracle(monkeypatch, shift=1))
    assert report.value < 0.5
    assert not [name for name in report.metrics if "held out" in name]
    table = tables(report)
    assert f"| **overall** | **{report.value:.3f}** |" in table
    assert all(f"| {tag} | {report.metrics[tag]:.3f} | nan |" in table for tag in TAGS)


SIZES = {"prompts_per_tag": 1, "images_per_prompt": 1, "questions": 7, "batch_size": 5}


def test_an_automatic_batch_size_changes_no_number(pipe, tmp_path):
    by_five = ShapesWorld(**SIZES)(pipe)
    assert ShapesWorld(**SIZES | {"batch_size": "auto"})(pipe, tmp_path / "run").metrics == by_five.metrics


def test_a_stopped_run_continues_and_equals_one_without_a_folder(pipe, tmp_path, monkeypatch):
    """The run is stopped while answering: the images and the first answers exist and are not made again."""
    folder, evaluate = tmp_path / "run", ShapesWorld(**SIZES)
    answer, batches = shapes_world.answer, []

    def stops(*arguments, **options):
        if len(batches) == 2:
            raise KeyboardInterrupt
        batches.append(answer(*arguments, **options))
        return batches[-1]

    monkeypatch.setattr(shapes_world, "answer", stops)
    with pytest.raises(KeyboardInterrupt):
        evaluate(pipe, folder)
    before = files(folder, "*/samples/*.png")
    assert len(before) == 2 * len(TAGS)
    monkeypatch.setattr(shapes_world, "answer", lambda *a, **k: batches.append(answer(*a, **k)) or batches[-1])
    monkeypatch.setattr(type(pipe), "__call__", None)  # no image is generated again
    kept = evaluate(pipe, folder)
    monkeypatch.undo()
    assert [len(batch) for batch in batches] == [5, 5, 4]  # fourteen questions, each asked once
    without_folder = evaluate(pipe)
    assert kept.metrics == without_folder.metrics
    assert [row | {"filename": None} for row in kept.rows] == [row | {"filename": None} for row in without_folder.rows]

    assert Report.load(folder) == kept
    held_out = [kept.metrics.get(f"answers, held out: {kind}") for kind in QUESTION_KINDS]
    shares = [share for share in held_out if share is not None]
    assert kept.metrics["answers, held out: overall"] == pytest.approx(sum(shares) / len(shares))
    drawn = [row for row in kept.rows if "filename" in row]
    assert [row["filename"] for row in drawn] == list(before)
    assert [row["held_out"] for row in drawn] == [False] * len(TAGS) + [True] * len(TAGS)
    assert len(kept.rows) == len(drawn) + 14
    assert (folder / "sheet.png").is_file()
    for other in ({"questions": 8}, {"seed": 1}):
        with pytest.raises(ValueError, match="other settings"):
            ShapesWorld(**SIZES | other)(pipe, folder)


def test_the_command_keeps_files_only_in_a_given_folder(run, tmp_path):
    arguments = ["eval", "shapes", "--prompts-per-tag", "1", "--images-per-prompt", "1", "--questions", "3"]
    status, table, err = run(*arguments)
    assert (status, "report.json" in err) == (0, False)
    assert not list(tmp_path.iterdir())
    status, kept, err = run(*arguments, "--output", "out")
    assert (status, kept) == (0, table)
    assert "out: report.json, report.md, results.jsonl, sheet.png" in err
    report = Report.load(tmp_path / "out")
    assert report.benchmark == "shapes"
    assert table == tables(report) + "\n"


@pytest.mark.slow
def test_two_ranks_are_one(tmp_path):
    for processes in (1, 2):
        arguments = ["shapes", "--prompts-per-tag", "1", "--images-per-prompt", "2", "--questions", "9"]
        finish([*arguments, "--batch-size", "2", "-o", str(tmp_path / str(processes))], processes)
    one, two = (tmp_path / "1", tmp_path / "2")
    for pattern in ("*/samples/*.png", "results.jsonl", "sheet.png"):
        assert files(one, pattern) == files(two, pattern) != {}
    assert len(list(two.glob("answers.rank*.jsonl"))) == 2
