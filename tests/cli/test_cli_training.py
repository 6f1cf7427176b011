"""The training and evaluation commands of `janus-hf`, end to end on eight images."""

import json

import numpy as np
import pytest

from janus_hf import shapes
from tiny import TINY_MODEL


FAST = ("--dtype", "float32")  # bfloat16, the stored dtype, takes a CPU several times as long


@pytest.fixture
def drawings(tmp_path):
    """The folder of eight images of the shapes world, with their prompts in metadata.jsonl."""
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    rows = []
    for i in range(8):
        drawing = shapes.make_drawing(shapes.TAGS[i % 6], rng)
        shapes.picture(drawing.scene).save(folder / f"{i}.png")
        rows.append({"file_name": f"{i}.png", "prompt": drawing.prompt})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def test_prepare_train_and_merge_follow_each_other(run, drawings, tmp_path):
    status, out, _ = run("prepare", f"mine={drawings}", "-o", tmp_path / "prepared", "-m", TINY_MODEL, *FAST)
    assert status == 0
    assert f"{tmp_path / 'prepared' / 'mine'}: 8 rows, skipped: none" in out

    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"""
model: {{path: {TINY_MODEL}, dtype: float32}}
data:
  sources: [{{name: mine, path: {tmp_path / "prepared" / "mine"}, ratio: 1}}]
training:
  stage: lora_drawing
  output_dir: {tmp_path / "run"}
  max_steps: 2
  total_batch_size: 2
  per_device_train_batch_size: 1
  max_length: 256
  bf16: false
  use_cpu: true
"""
    )
    status, _, said = run("train", recipe, "training.max_steps=3", "training.learning_rate=1e-2")
    assert status == 0, said
    assert "| generation_aligner |" in said  # what trains is shown before it does
    assert f"{tmp_path / 'run'}: lora_drawing, 3 steps" in said
    assert (tmp_path / "run" / "adapter_model.safetensors").exists()

    status, out, error = run("merge", tmp_path / "run", tmp_path / "merged")
    assert status == 0, error
    assert "original layout, reloaded and equal" in out
    for name, model in (("a.png", tmp_path / "merged"), ("b.png", TINY_MODEL)):
        status, _, error = run("draw", "a photo of a circle", "-m", model, "-o", tmp_path / name, *FAST)
        assert status == 0, error
    assert (tmp_path / "a.png").read_bytes() != (tmp_path / "b.png").read_bytes()  # it did learn something


def test_two_sources_of_one_name_are_refused(run, drawings, tmp_path):
    status, _, error = run("prepare", drawings, drawings, "-o", tmp_path / "out")
    assert status == 1
    assert "would share an output folder" in error


def test_a_recipe_that_does_not_exist(run):
    status, _, error = run("train", "nowhere.yaml")
    assert status == 1
    assert "nowhere.yaml" in error


def test_eval_shapes_prints_both_tables(run):
    few = ("--prompts-per-tag", 1, "--images-per-prompt", 1, "--questions", 12)
    status, printed, error = run("eval", "shapes", *few, *FAST)
    assert status == 0, error
    for row in ("| drawing | score | never seen together |", "| color_attr |", "| describe |", "**overall**"):
        assert row in printed
