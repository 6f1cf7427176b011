"""`train` trains, resumes, saves and uploads a recipe, on one process and on two."""

import json
import shutil

import pytest
import toy

from janus_hf import JanusProForConditionalGeneration, JanusProProcessor
from janus_hf.training import JanusProSFTConfig, train
from janus_hf.training.recording import newest_checkpoint
from janus_hf.training.run import load_processor


def test_incomplete_checkpoints_are_skipped(tmp_path):
    for step, complete in ((2, True), (10, True), (12, False)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "model.safetensors").touch()
        if complete:
            (folder / "trainer_state.json").touch()
    assert newest_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")
    assert newest_checkpoint(tmp_path / "nowhere") is None


def test_train_goes_end_to_end_and_on(recipe_file, tmp_path):
    lines = []
    out = train(recipe_file, ["training.stage=stage1"], load_data=toy.load_data, report=lines.append)
    assert lines[0].startswith("| part | parameters | trained |")
    assert lines[-1].endswith("stage1, 2 steps")
    JanusProForConditionalGeneration.from_pretrained(out)
    JanusProProcessor.from_pretrained(out)
    record = json.loads((out / "janus_training.json").read_text())
    assert record.pop("settings")["learning_rate"] == 1e-3
    assert record == {
        "stage": "stage1",
        "ratios": {"mine": 1.0},
        "recipe": "mine",
        "plan_hash": "abc",
    }
    card = (out / "README.md").read_text()
    for stated in ("stage1", "mine: 1.0", "abc", "adam_beta2 | 0.95", "pipeline_tag: any-to-any"):
        assert stated in card
    overrides = ["training.stage=stage1", "training.max_steps=3", "training.resume_from_checkpoint=auto"]
    train(recipe_file, overrides, load_data=toy.load_data, report=lines.append)
    assert lines[-1].endswith("stage1, 3 steps")
    assert (out / "checkpoint-3").is_dir()
    before = (out / "model.safetensors").read_bytes()
    train(recipe_file, overrides, load_data=toy.load_data, report=lines.append)  # finished: nothing happens
    assert lines[-1].endswith("stage1, 3 steps")
    assert (out / "model.safetensors").read_bytes() == before


def test_a_finished_sharded_run_is_left_alone(recipe_file, tmp_path, monkeypatch):
    """A sharded model is only loaded by training, so nothing is saved again: the last checkpoint is the model."""
    overrides = ["training.stage=stage1", "training.resume_from_checkpoint=auto"]
    monkeypatch.setattr(JanusProSFTConfig, "sharded", True)
    out = train(recipe_file, overrides, load_data=toy.load_data)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    lines = []
    train(recipe_file, overrides, load_data=toy.load_data, report=lines.append)
    assert "nothing is left to do" in lines[-1]
    assert "checkpoint-2" in lines[-1]
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    with pytest.raises(ValueError, match="stage 'stage1'.*this run has 'full'"):
        train(recipe_file, ["training.stage=full", "training.resume_from_checkpoint=true"], load_data=toy.load_data)


def test_the_processor_is_loaded_at_the_models_revision(monkeypatch):
    asked = []
    monkeypatch.setattr(
        "janus_hf.training.run.JanusProProcessor.from_pretrained",
        lambda path, **kwargs: asked.append((path, kwargs)),
    )
    load_processor({"path": "a/model", "revision": "v2"})
    load_processor({"path": "a/model", "revision": "v2", "processor": "another"})
    load_processor({"path": "a/model"})
    assert asked == [("a/model", {"revision": "v2"}), ("another", {}), ("a/model", {})]


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["full", "lora_both"])
def test_two_processes_prepare_train_save_and_resume(raw_recipe, stage, tmp_path):
    """The second of two launched runs resumes the first, and its model can be loaded."""

    def launch(*overrides):
        recipe = [str(raw_recipe), f"training.stage={stage}", "training.num_processes=2"]
        return toy.launch("-m", "janus_hf_cli", "train", *recipe, *overrides, cwd=tmp_path)

    overrides = [
        "training.per_device_train_batch_size=1",
        "training.sample_steps=4",
        "training.sample_prompts=[a dog]",
    ]
    first = launch(*overrides)
    assert first.returncode == 0, first.stderr[-3000:]
    assert first.stderr.count("| part | parameters | trained |") == 1
    assert (tmp_path / "out" / "samples" / "step-4.png").is_file()
    shutil.rmtree(tmp_path / "out" / "checkpoint-4")
    second = launch(*overrides, "training.resume_from_checkpoint=auto")
    assert second.returncode == 0, second.stderr[-3000:]
    assert (tmp_path / "out" / "checkpoint-4").is_dir()
    JanusProForConditionalGeneration.from_pretrained(tmp_path / "out")
    wrong = launch("training.total_batch_size=3")
    assert wrong.returncode != 0
    assert "must be a multiple" in wrong.stderr
