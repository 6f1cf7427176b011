"""Cells of a notebook run again: after the last step, after an interrupt, and in processes that a launcher starts."""

import os
import socket
import subprocess
import sys

import pytest
import torch
import toy
from transformers import TrainerCallback

import janus_hf.training
from janus_hf.modeling import JanusProVQModel
from janus_hf.training import CodecTrainer, CodecTrainingArguments, JanusProSFTConfig, TrainingData, train
from janus_hf.training.recording import read_state


class Interrupt(TrainerCallback):
    """Press Ctrl-C once, at an event of the trainer."""

    def __init__(self, event):
        setattr(self, event, self.interrupt)
        self.armed = True

    def interrupt(self, *args, **kwargs):
        if self.armed:
            self.armed = False
            raise KeyboardInterrupt


def sft_trainer(folder, **fields):
    fields = {"max_steps": 2, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 3} | fields
    model = toy.load_model()
    model.model.aligner.eval()
    return toy.trainer_for(toy.config_for(folder, "lora_both", **fields), model=model)


def codec_trainer(folder, **fields):
    fields = {"max_steps": 2, "per_device_train_batch_size": 2, "use_cpu": True, "report_to": "none"} | fields
    args = CodecTrainingArguments(output_dir=str(folder), disable_tqdm=True, save_strategy="no", **fields)
    config = toy.load_model().config.vq_config
    rows = [{"pixel_values": torch.rand(3, config.image_size, config.image_size)} for _ in range(8)]
    return CodecTrainer(JanusProVQModel(config), args=args, train_dataset=rows)


MAKERS = pytest.mark.parametrize("make", [sft_trainer, codec_trainer])


@MAKERS
def test_a_finished_trainer_trains_no_further(make, tmp_path, caplog):
    trainer = make(tmp_path)
    first = trainer.train()
    weights = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    assert trainer.train() == first
    assert "All 2 steps are done, so nothing is trained" in caplog.text
    assert all(torch.equal(value, weights[name]) for name, value in trainer.model.state_dict().items())


@MAKERS
@pytest.mark.parametrize("event", ["on_train_begin", "on_pre_optimizer_step", "on_step_end", "on_log"])
def test_an_interrupted_trainer_trains_again(make, event, tmp_path):
    trainer = make(tmp_path, logging_steps=1)
    trainer.add_callback(Interrupt(event))
    modes = [module.training for module in trainer.model.modules()]
    callbacks = list(trainer.callback_handler.callbacks)

    def hooks():
        kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
        return [len(getattr(module, kind)) for module in trainer.model.modules() for kind in kinds]

    before = hooks()
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert [module.training for module in trainer.model.modules()] == modes
    assert all(parameter.grad is None for parameter in trainer.model.parameters())
    assert hooks() == before
    assert trainer.callback_handler.callbacks == callbacks
    assert not trainer.is_in_train
    assert trainer.train().global_step == 2
    assert [log["step"] for log in trainer.state.log_history if "loss" in log] == [1, 2]


class InterruptedPacks(toy.Packs):
    """Rows of which the tenth is interrupted by Ctrl-C."""

    def __getitem__(self, row):
        if row == 9:
            raise KeyboardInterrupt
        return super().__getitem__(row)


def test_an_interrupted_cell_runs_again(recipe_file, tmp_path):
    """The second run of the cell has the losses of a run that was never interrupted, and says what it replaces."""

    def interrupted(section, args, model, processor):
        data = toy.load_data(section, args, model, processor)
        packs = InterruptedPacks(model.config, rows=24, kinds=(toy.DRAWING, toy.TEXT))
        return TrainingData(packs, data.collator, data.facts)

    def losses(folder):
        return [log["loss"] for log in read_state(folder).log_history if "loss" in log]

    settings = ["training.stage=stage1", "training.logging_steps=1", "training.per_device_train_batch_size=4"]
    settings.append("training.max_steps=3")
    straight = train(recipe_file, [*settings, f"training.output_dir={tmp_path / 'straight'}"], load_data=toy.load_data)
    with pytest.raises(KeyboardInterrupt):
        train(recipe_file, settings, load_data=interrupted)
    lines = []
    again = train(recipe_file, settings, load_data=toy.load_data, report=lines.append)
    assert losses(again) == losses(straight)
    assert "checkpoint-1 is of an earlier run, which is not resumed" in lines[1]
    train(recipe_file, settings, load_data=toy.load_data, report=lines.append)
    assert "nothing is left to do" in lines[-2]


def test_a_model_with_adapters_is_refused(tmp_path):
    """A cell that makes a trainer for the model of another trainer would add adapters to its adapters."""
    trainer = sft_trainer(tmp_path)
    with pytest.raises(ValueError, match="load the model again"):
        toy.trainer_for(trainer.args, model=trainer.base_model)


SCRIPT = """
import sys
from accelerate import notebook_launcher


def run(*overrides):
    import toy
    from janus_hf.training import train

    train(sys.argv[1], overrides, load_data=toy.load_data)


notebook_launcher(run, args=sys.argv[3:], num_processes=2, use_port=sys.argv[2])
"""


@pytest.mark.slow
@pytest.mark.parametrize("use_cpu", [False, True])
def test_two_processes_of_a_notebook(use_cpu, recipe_file, tmp_path):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path]), "CI": "1", "CUDA_VISIBLE_DEVICES": ""}
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    command = [
        sys.executable,
        "-c",
        SCRIPT,
        str(recipe_file),
        port,
        "training.stage=stage1",
        f"training.use_cpu={use_cpu}",
    ]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    if use_cpu:
        assert run.returncode == 0, run.stderr[-3000:]
        assert run.stdout.count("stage1, 2 steps") == 1
    else:
        assert "started 2 processes but this one works with 1: set `use_cpu=True`" in run.stderr


def test_a_process_of_a_launcher_that_would_train_alone_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="The launcher started 2 processes but this one works with 1"):
        JanusProSFTConfig(output_dir=str(tmp_path), stage="stage1", report_to="none")
    with pytest.raises(ValueError, match="The launcher started 2 processes but this one works with 1"):
        CodecTrainingArguments(output_dir=str(tmp_path), report_to="none")


def test_public_names_are_complete():
    assert dir(janus_hf.training) == sorted(janus_hf.training.__all__)
    for name in janus_hf.training.__all__:
        assert getattr(janus_hf.training, name) is not None
    needed = {"JanusProSFTTrainer", "CodecTrainer", "JanusProCollator", "build_trainer", "load_mixture", "Recipe"}
    assert needed <= {*dir(janus_hf.training)}
    with pytest.raises(AttributeError, match="no attribute 'JanusTrainer'"):
        janus_hf.training.JanusTrainer  # noqa: B018
