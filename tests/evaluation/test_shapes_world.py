"""The report on the small world: a pipeline that draws the truth scores 1, one that draws something else does not."""

from types import SimpleNamespace

import pytest
from launch import files, finish

from janus_hf import JanusProPipeline
from janus_hf.assets import DEFAULT_MODEL
from janus_hf.evaluation.benchmarks import shapes_world as evaluation
from janus_hf.evaluation.report import Report
from janus_hf.shapes import QUESTION_KINDS, TAGS, make_drawing, picture


class Oracle:
    """Draws the scene that a prompt was made from, or another prompt's."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, shift: int = 0) -> None:
        self.made: list = []
        self.shift, self.settings = shift, []
        monkeypatch.setattr(evaluation, "make_drawing", self.make)
        monkeypatch.setattr(evaluation, "answer", self.answer)

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

    def answer(self, pipe, pictures, questions, *, batch_size):
        return ["yes" for _ in questions]


def test_truth_scores_one_on_every_tag(monkeypatch):
    oracle = Oracle(monkeypatch)
    report = evaluation.evaluate_shapes(oracle, prompts_per_tag=5, images_per_prompt=2, questions=60, top_k=7)
    assert set(report.drawing) == set(report.drawing_held_out) == set(TAGS)
    assert report.drawing == dict.fromkeys(TAGS, 1.0)
    assert oracle.settings == [{"top_k": 7}]
    assert 0 < report.answers["exists"] < 1
    assert report.answers["colour"] == 0
    assert set(report.answers) == set(QUESTION_KINDS)
    assert report.answers_overall == pytest.approx(report.answers["exists"] / len(QUESTION_KINDS))


def test_other_prompts_pictures_score_less(monkeypatch):
    report = evaluation.evaluate_shapes(Oracle(monkeypatch, shift=1), prompts_per_tag=30, questions=6, held_out=False)
    assert report.overall < 0.5
    assert not report.drawing_held_out
    table = report.to_markdown()
    assert f"**{report.overall:.3f}**" in table
    assert all(f"| {tag} |" in table for tag in TAGS)


SIZES = {"prompts_per_tag": 1, "images_per_prompt": 1, "questions": 7, "batch_size": 5}


@pytest.fixture(scope="module")
def pipe():
    pipe = JanusProPipeline.from_pretrained(DEFAULT_MODEL, dtype="float32")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_kept_in_a_folder_is_kept_nowhere_and_goes_on(pipe, tmp_path, monkeypatch):
    """Stopped while answering: pictures and the first answers are there and not made again."""
    folder = tmp_path / "run"
    answer, batches = evaluation.answer, []

    def stops(*arguments, **options):
        if len(batches) == 2:
            raise KeyboardInterrupt
        batches.append(answer(*arguments, **options))
        return batches[-1]

    monkeypatch.setattr(evaluation, "answer", stops)
    with pytest.raises(KeyboardInterrupt):
        evaluation.evaluate_shapes(pipe, **SIZES, folder=folder)
    before = files(folder, "*/samples/*.png")
    assert len(before) == 2 * len(TAGS)
    monkeypatch.setattr(evaluation, "answer", lambda *a, **k: batches.append(answer(*a, **k)) or batches[-1])
    monkeypatch.setattr(type(pipe), "__call__", None)  # nothing is drawn any more
    kept = evaluation.evaluate_shapes(pipe, **SIZES, folder=folder)
    monkeypatch.undo()
    assert [len(batch) for batch in batches] == [5, 5, 4]  # fourteen questions, each asked once
    assert kept == evaluation.evaluate_shapes(pipe, **SIZES)

    saved = Report.load(folder)
    assert (saved.benchmark, saved.value) == ("shapes", kept.overall)
    held_out = kept.answers_held_out
    assert saved.metrics["answers, held out: overall"] == pytest.approx(sum(held_out.values()) / len(held_out))
    drawn = [row for row in saved.rows if "filename" in row]
    assert [row["filename"] for row in drawn] == list(before)
    assert [row["held_out"] for row in drawn] == [False] * len(TAGS) + [True] * len(TAGS)
    assert len(saved.rows) == len(drawn) + 14
    assert (folder / "sheet.png").is_file()
    for other in ({"questions": 8}, {"seed": 1}):
        with pytest.raises(ValueError, match="other settings"):
            evaluation.evaluate_shapes(pipe, **SIZES | other, folder=folder)


def test_the_command_keeps_a_folder_if_asked(run, tmp_path):
    arguments = ["eval", "shapes", "--prompts-per-tag", "1", "--images-per-prompt", "1", "--questions", "3"]
    status, table, _ = run(*arguments)
    assert status == 0
    assert not list(tmp_path.iterdir())
    status, kept, err = run(*arguments, "--output", "out")
    assert (status, kept) == (0, table)
    assert "out: report.json, report.md, results.jsonl, sheet.png" in err
    assert Report.load(tmp_path / "out").benchmark == "shapes"


@pytest.mark.slow
def test_two_ranks_are_one(tmp_path):
    for processes in (1, 2):
        arguments = ["shapes", "--prompts-per-tag", "1", "--images-per-prompt", "2", "--questions", "9"]
        finish([*arguments, "--batch-size", "2", "-o", str(tmp_path / str(processes))], processes)
    one, two = (tmp_path / "1", tmp_path / "2")
    for pattern in ("*/samples/*.png", "results.jsonl", "sheet.png"):
        assert files(one, pattern) == files(two, pattern) != {}
    assert len(list(two.glob("answers.rank*.jsonl"))) == 2
