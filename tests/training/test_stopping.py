"""SIGTERM ends a run as unfinished: a checkpoint is saved, and nothing is exported or uploaded."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import toy
import yaml
from transformers import TrainerCallback

from janus_hf.training import RunInterruptedError
from janus_hf.training.reports.forecast import HoursCallback
from janus_hf_cli import main
from janus_hf_cli.training_commands import UNFINISHED


class Terminate(TrainerCallback):
    """Send SIGTERM to this process at an event of the trainer, in the middle of a step or after it."""

    def __init__(self, event, step):
        setattr(self, event, self.terminate)
        self.step = step

    def terminate(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


def trainer_for(folder, *callbacks, **fields):
    fields = {"lora_dropout": 0.1, "save_strategy": "steps", "save_steps": 100} | fields
    return toy.trainer_for(toy.config_for(folder, "lora_both", **fields), callbacks=list(callbacks))


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """Return the trajectory of a run that nothing stopped."""
    trainer = trainer_for(tmp_path_factory.mktemp("straight"))
    trainer.train()
    return toy.trajectory(trainer)


@pytest.mark.parametrize(
    ("event", "step", "saved", "strategy"),
    [
        ("on_pre_optimizer_step", 2, 3, "steps"),
        pytest.param("on_train_begin", 0, 1, "steps", marks=pytest.mark.slow),
        pytest.param("on_step_begin", 2, 3, "steps", marks=pytest.mark.slow),
        pytest.param("on_step_end", 2, 2, "no", marks=pytest.mark.slow),
    ],
)
def test_sigterm_saves_after_the_step_and_the_run_goes_on_exactly(event, step, saved, strategy, straight, tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    stopped = trainer_for(tmp_path, Terminate(event, step), save_strategy=strategy)
    with pytest.raises(RunInterruptedError, match=f"SIGTERM stopped the run after step {saved} of 6") as stop:
        stopped.train()
    assert signal.getsignal(signal.SIGTERM) == before
    assert stop.value.checkpoint == str(tmp_path / f"checkpoint-{saved}")
    assert [path.name for path in tmp_path.iterdir()] == [f"checkpoint-{saved}"]
    resumed = trainer_for(tmp_path, resume_from_checkpoint="auto")
    resumed.train()
    assert toy.trajectory(resumed) == straight


@pytest.mark.slow
def test_sigterm_in_the_last_step_is_a_finished_run(straight, tmp_path):
    trainer = trainer_for(tmp_path, Terminate("on_step_begin", 5))
    assert trainer.train().global_step == 6
    stopped = trainer_for(tmp_path / "stopped", Terminate("on_step_begin", 2), stop_step=3)
    assert stopped.train().global_step == 3


def test_sigterm_keeps_its_meaning_where_it_is_not_asked_for(tmp_path):
    calls = []
    before = signal.signal(signal.SIGTERM, lambda *_: calls.append(1))
    try:
        off = trainer_for(tmp_path, Terminate("on_step_end", 2), enable_jit_checkpoint=False, max_steps=3)
        assert off.train().global_step == 3
        # Only the main thread may install a handler for a signal.
        results = []
        other = threading.Thread(target=lambda: results.append(trainer_for(tmp_path / "b", max_steps=1).train()))
        other.start()
        other.join()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert (calls, results[0].global_step) == ([1], 1)


def test_the_command_says_that_the_run_is_unfinished(raw_recipe, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(HoursCallback, "on_step_begin", Terminate("on_step_begin", 0).terminate)
    overrides = ["training.stage=lora_both", "training.sample_steps=100", "training.sample_prompts=[a fox]"]
    assert main(["train", str(raw_recipe), *overrides]) == UNFINISHED == 75
    assert "janus-hf train: SIGTERM stopped the run after step 1 of 4" in capsys.readouterr().err
    out = tmp_path / "out"
    assert sorted(path.name for path in out.iterdir()) == ["_prepared", "checkpoint-1"]
    monkeypatch.undo()
    assert main(["train", str(raw_recipe), *overrides, "training.resume_from_checkpoint=auto"]) == 0
    assert (out / "adapter_config.json").is_file()
    assert (out / "README.md").is_file()


def test_nothing_is_uploaded_after_sigterm(tmp_path, monkeypatch):
    uploads = []
    monkeypatch.setattr("janus_hf.training.trainers.uploading.prepare_repository", lambda *a, **k: "me/mine")
    monkeypatch.setattr(
        "janus_hf.training.trainers.uploading.UploadingTrainer._push_from_checkpoint",
        lambda self, folder: uploads.append(Path(folder).name),
    )
    trainer = trainer_for(tmp_path, Terminate("on_step_begin", 2), push_to_hub=True, save_steps=1)
    with pytest.raises(RunInterruptedError):
        trainer.train()
    assert uploads == ["checkpoint-1", "checkpoint-2"]
    assert (tmp_path / "checkpoint-3").is_dir()


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_processes_that_get_sigterm_agree_on_the_step(processes, raw_recipe, tmp_path):
    """One of the processes gets the signal; all of them end after the same step, and the run resumed is straight."""
    content = yaml.safe_load(raw_recipe.read_text())
    content["training"] |= {"max_steps": 40, "logging_steps": 1, "save_steps": 100, "stage": "lora_both"}
    content["training"] |= {"per_device_train_batch_size": 2 // processes, "lora_dropout": 0.1}

    def start(folder, *overrides):
        recipe = tmp_path / f"{folder}.yaml"
        training = {**content["training"], "output_dir": str(tmp_path / folder)}
        recipe.write_text(yaml.safe_dump({**content, "training": training}))
        command = [sys.executable, str(Path(__file__).with_name("interruptible.py")), str(tmp_path / f"{folder}.pids")]
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        if processes > 1:
            command[0:1] = launcher
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CI": "1", "HF_HUB_OFFLINE": "1"}
        return subprocess.Popen(
            [*command, str(recipe), *overrides], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )

    def finish(process, expected):
        _, errors = process.communicate(timeout=600)
        assert process.returncode in expected, errors.decode()[-3000:]

    def losses(folder):
        log = json.loads((tmp_path / folder / "trainer_state.json").read_text())["log_history"]
        return [entry["loss"] for entry in log if "loss" in entry]

    finish(start("straight"), {0})
    process = start("stopped")
    pids = tmp_path / "stopped.pids"
    deadline = time.monotonic() + 400
    while (not pids.is_file() or pids.read_text().count("step") < 10) and time.monotonic() < deadline:
        time.sleep(0.05)
    numbers = {line.split()[1] for line in pids.read_text().splitlines() if line.startswith("pid")}
    assert len(numbers) == processes
    os.kill(int(max(numbers, key=int)), signal.SIGTERM)
    finish(process, {UNFINISHED} if processes == 1 else {1})  # torchrun has a status of its own
    assert set(line for line in pids.read_text().splitlines() if line.startswith("rc")) == {"rc 75"}
    checkpoints = [path for path in (tmp_path / "stopped").iterdir() if path.name != "_prepared"]
    assert len(checkpoints) == 1
    assert 2 < int(checkpoints[0].name.removeprefix("checkpoint-")) < 40
    finish(start("stopped", "training.resume_from_checkpoint=auto"), {0})
    assert losses("stopped") == losses("straight")
    assert len(losses("stopped")) == 40
