"""The report on the small world: a pipeline that draws the truth scores 1, one that draws something else does not."""

from types import SimpleNamespace

import pytest

from janus_hf.evaluation import shapes as evaluation
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
    assert oracle.settings == [{"top_k": 7}] * 2 * len(TAGS)
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
