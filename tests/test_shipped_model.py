"""The model that ships inside the package is small, generates and answers well, and passes the demo and tutorial."""

import sys
from pathlib import Path

import pytest

from janus_hf import JanusProPipeline
from janus_hf.assets import DEFAULT_MODEL
from janus_hf.evaluation.benchmarks.shapes_world import ShapesWorld, tables


ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def scripts():
    """Make the scripts importable."""
    sys.path.insert(0, str(ROOT / "scripts"))
    yield
    sys.path.remove(str(ROOT / "scripts"))


def test_it_is_at_most_15_mb():
    assert sum(file.stat().st_size for file in Path(DEFAULT_MODEL).iterdir()) <= 15e6


def test_it_generates_and_answers():
    """The README's table has the scores of a larger sample; these bounds leave room for the smaller one."""
    pipe = JanusProPipeline.from_pretrained(DEFAULT_MODEL, dtype="float32")
    pipe.set_progress_bar_config(disable=True)
    evaluate = ShapesWorld(prompts_per_tag=12, images_per_prompt=2, questions=120, held_out=False, seed=5)
    report = evaluate(pipe)
    assert report.metrics["overall"] >= 0.95, tables(report)
    assert report.metrics["answers: overall"] >= 0.85, tables(report)


def test_demo(scripts, tmp_path, monkeypatch, capsys):
    import demo

    monkeypatch.chdir(tmp_path)
    assert demo.main() == 0
    out = capsys.readouterr().out
    assert out.count("  yes  ") >= 15  # of 12 images and 6 answers
    assert (tmp_path / "janus_hf_demo" / "drawn.png").is_file()
    assert "janus_hf_demo/drawn.png" in out


@pytest.mark.slow
def test_it_learns_a_word_from_200_images(scripts, tmp_path):
    import teach_house

    assert teach_house.HOUSES + teach_house.OTHERS <= 200
    result = teach_house.teach(tmp_path, prompts_per_tag=50, questions=300)
    assert result["houses_before"] == 0
    assert result["houses_after"] >= 0.75
    before, after = (result[time].metrics for time in ("before", "after"))
    assert after["overall"] > before["overall"] - 0.03
    assert after["answers: overall"] > before["answers: overall"] - 0.03
    assert result["equal"]
