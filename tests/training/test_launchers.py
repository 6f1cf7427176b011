"""Every configuration of `accelerate_configs/` starts, trains like one process, resumes exactly and saves a model.

Processes run on the CPU and talk over gloo. Each test changes only those keys of a configuration that need GPUs. For
FSDP, `fsdp_on_cpu.py` stands in for the command, because accelerate leaves FSDP out without GPUs.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import toy
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from PIL import Image
from safetensors.torch import load_file

from janus_hf import JanusProForConditionalGeneration, JanusProPipeline
from janus_hf.training.recording import read_state


CONFIGS = Path(__file__).parents[2] / "accelerate_configs"
FSDP = str(Path(__file__).with_name("fsdp_on_cpu.py"))
COMMAND = ("-m", "janus_hf_cli")
# Name of the configuration -> number of processes per machine, number of machines, what the launcher starts.
LAUNCHERS = {
    "single_gpu": (1, 1, COMMAND),
    "ddp": (2, 1, COMMAND),
    "deepspeed_zero2": (2, 1, COMMAND),
    "deepspeed_zero3": (2, 1, COMMAND),
    "fsdp2": (2, 1, (FSDP,)),
    "multi_node": (2, 2, (FSDP,)),
}
SHARDED = ("deepspeed_zero3", "fsdp2", "multi_node")
SAMPLES = [
    "training.sample_steps=2",
    "training.sample_prompts=[a dog]",
    "training.sample_questions=[{question: Hello}]",
    "training.sample_max_new_tokens=4",
]


def require(package):
    """Skip a test without an optional package, or fail if `make test-slow` should have installed it."""
    if find_spec(package) is None:
        message = f"{package} is not installed: run `make test-slow`, which installs it"
        pytest.fail(message) if os.environ.get("JANUS_HF_REQUIRE_LAUNCHERS") else pytest.skip(message)


def require_for(name):
    if name.startswith("deepspeed"):
        require("deepspeed")


def test_every_configuration_is_in_the_table():
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == LAUNCHERS.keys()


@pytest.mark.parametrize("name", LAUNCHERS)
def test_accelerate_reads_every_key(name):
    config = load_config_from_file(str(CONFIGS / f"{name}.yaml"))
    assert config.mixed_precision == "bf16"
    if sizes := config.parallelism_config:
        product = sizes["parallelism_config_dp_replicate_size"] * sizes["parallelism_config_dp_shard_size"]
        assert product == config.num_processes
    if config.fsdp_config:
        assert config.fsdp_config["fsdp_state_dict_type"] == "SHARDED_STATE_DICT"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """Write a model with random weights, raw data and a recipe of ten steps. Return the recipe's path."""
    folder = tmp_path_factory.mktemp("launched")
    for part in (toy.load_model(), toy.load_processor()):
        part.save_pretrained(folder / "base")
    for i, colour in enumerate(["red", "green", "blue"]):
        Image.new("RGB", (70, 64), colour).save(folder / f"{i}.png")
    drawing = [{"prompt": f"picture {i}", "image": f"{i}.png"} for i in range(3)]
    talk = [{"role": "user", "content": "<image>What is it?"}, {"role": "assistant", "content": "A colour."}]
    understanding = [{"messages": talk, "images": [f"{i}.png"]} for i in range(3)]
    sources = []
    for name, rows in (("drawing", drawing), ("understanding", understanding)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        sources.append({"name": name, "path": str(folder / f"{name}.jsonl"), "ratio": 1})
    training = {
        "stage": "full",
        "max_steps": 10,
        "save_steps": 5,
        "logging_steps": 1,
        "learning_rate": 1e-4,
        "per_device_train_batch_size": 1,
        "total_batch_size": 8,
        "max_length": 256,
        "bf16": True,
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "resume_from_checkpoint": "auto",
    }
    content = {"model": {"path": str(folder / "base")}, "data": {"sources": sources}, "training": training}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(content | {"training": {**training, "output_dir": "unset"}}))
    return folder / "recipe.yaml"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(name, recipe, output, *overrides, **options):
    """Start a training by a configuration with CPU processes, on each of its "machines", and return the launchers."""
    processes, machines, command = LAUNCHERS[name]
    total, port = processes * machines, free_port()
    config = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    config |= {"use_cpu": True, "num_processes": total, "num_machines": machines, **options}
    if "parallelism_config" in config:
        config["parallelism_config"] = {
            "parallelism_config_dp_replicate_size": machines,
            "parallelism_config_dp_shard_size": processes,
        }
    path = output.with_name(f"{output.name}.{name}.yaml")
    path.write_text(yaml.safe_dump(config))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "DS_ACCELERATOR": "cpu"}
    environment |= {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": os.pathsep.join(sys.path)}
    launchers = []
    for rank in range(machines):
        launch = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--config_file", str(path)]
        launch += ["--machine_rank", str(rank), "--main_process_ip", "127.0.0.1", "--main_process_port", str(port)]
        settings = [f"training.output_dir={output}", f"training.num_processes={total}", *overrides]
        with output.with_name(f"{output.name}.{rank}.log").open("w") as log:
            launchers.append(
                subprocess.Popen(
                    [*launch, *command, "train", str(recipe), *settings], env=environment, stdout=log, stderr=log
                )
            )
    return launchers


def run(name, recipe, output, *overrides, **options):
    """Train by a configuration to the end."""
    launchers = start(name, recipe, output, *overrides, **options)
    try:
        statuses = [launcher.wait(timeout=900) for launcher in launchers]
    finally:
        for launcher in launchers:
            launcher.kill()
    log = output.with_name(f"{output.name}.0.log").read_text()
    assert statuses == [0] * len(launchers), log[-4000:]
    return log


def losses(output):
    """Return `{step: (loss, norm of the gradients)}` of a finished run."""
    log = read_state(output).log_history
    return {entry["step"]: (entry["loss"], entry["grad_norm"]) for entry in log if "loss" in entry}


def assert_close(found, expected):
    """Compare losses to three digits; norms of bfloat16's gradients agree to two."""
    assert found.keys() == expected.keys()
    for step in expected:
        assert found[step][0] == pytest.approx(expected[step][0], rel=1e-3)
        assert found[step][1] == pytest.approx(expected[step][1], rel=2e-2)


@pytest.fixture(scope="module")
def alone(recipe, tmp_path_factory):
    """Return a function: overrides -> losses of one process without a launcher, computed once for each."""
    results = {}

    def train(*overrides):
        if overrides not in results:
            output = tmp_path_factory.mktemp("alone") / "run"
            run("single_gpu", recipe, output, *overrides)
            results[overrides] = losses(output)
        return results[overrides]

    return train


def forget_the_second_half(output):
    """Bring a run into the state in which it was killed after the checkpoint of step 5."""
    shutil.rmtree(output / "checkpoint-10")
    forget_the_export(output)


def forget_the_export(output):
    """Bring a run into the state in which it was killed before it saved anything but checkpoints."""
    for path in output.iterdir():
        if path.is_file():
            path.unlink()


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in LAUNCHERS if name != "single_gpu"])
def test_a_launcher_trains_like_one_process_and_resumes_exactly(name, recipe, alone, tmp_path):
    require_for(name)
    output = tmp_path / "run"
    run(name, recipe, output)
    straight, weights = losses(output), load_file(output / "model.safetensors")
    assert list(straight) == list(range(1, 11))
    assert_close(straight, alone())
    # Checkpoints of sharded runs hold shards, and one whole model is saved, at the end.
    found = {path.parent.name for path in output.glob("**/model.safetensors")}
    assert found == {"run"} if name in SHARDED else found == {"run", "checkpoint-5", "checkpoint-10"}
    assert {weight.dtype for weight in weights.values()} == {torch.float32}
    JanusProForConditionalGeneration.from_pretrained(output)

    forget_the_second_half(output)
    run(name, recipe, output)
    assert losses(output) == straight
    resumed = load_file(output / "model.safetensors")
    assert resumed.keys() == weights.keys()
    assert all(torch.equal(resumed[key], weights[key]) for key in weights)

    if name != "fsdp2":
        return
    # A run that was killed between its last checkpoint and the export is exported, not trained further.
    forget_the_export(output)
    assert "nothing is left to do" in run(name, recipe, output)
    again = load_file(output / "model.safetensors")
    assert all(torch.equal(again[key], weights[key]) for key in weights)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ddp", "deepspeed_zero2", "deepspeed_zero3", "fsdp2"])
def test_adapters_train_and_samples_are_made_during_training(name, recipe, alone, tmp_path):
    require_for(name)
    settings = ["training.stage=lora_both", "training.max_steps=4", "training.save_steps=2"]
    wide = ["model.dtype=float32"]  # DeepSpeed holds the frozen weights in float32
    output = tmp_path / "run"
    run(name, recipe, output, *settings, *wide, *SAMPLES)
    assert_close(losses(output), alone(*settings, *wide))
    assert (output / "samples" / "step-4.png").is_file()
    sample = json.loads((output / "samples" / "step-4.json").read_text())
    assert isinstance(sample["answers"][0]["answer"], str)
    pipe = JanusProPipeline.from_pretrained(recipe.parent / "base", dtype="float32")
    pipe.load_lora_weights(output)
    adapters = load_file(output / "adapter_model.safetensors")
    assert {weight.dtype for weight in adapters.values()} == {torch.float32}
    assert any(weight.abs().max() > 0 for key, weight in adapters.items() if "lora_B" in key)


@pytest.mark.slow
def test_four_bit_weights_train_and_resume(recipe, tmp_path):
    require("bitsandbytes")
    settings = ["training.stage=lora_both", "model.quantization=4bit"]
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    run("single_gpu", recipe, straight, *settings)
    assert losses(straight)[10][0] < losses(straight)[1][0]
    shutil.copytree(straight, killed)
    forget_the_second_half(killed)
    run("single_gpu", recipe, killed, *settings)
    assert losses(killed) == losses(straight)


@pytest.mark.slow
def test_quantised_weights_are_refused_with_deepspeed(recipe, tmp_path):
    require("deepspeed")
    require("bitsandbytes")
    settings = ["training.stage=lora_both", "model.quantization=4bit"]
    (launcher,) = start("deepspeed_zero2", recipe, tmp_path / "run", *settings)
    assert launcher.wait(timeout=600) != 0
    assert "must not be quantised with DeepSpeed" in (tmp_path / "run.0.log").read_text()


@pytest.mark.slow
def test_a_killed_process_ends_the_run_which_resumes(recipe, tmp_path):
    """One process of two is killed by SIGKILL; the launcher ends the other."""
    straight, output = tmp_path / "straight", tmp_path / "killed"
    run("ddp", recipe, straight)
    (launcher,) = start("ddp", recipe, output)
    deadline = time.monotonic() + 600
    while not (output / "checkpoint-5" / "trainer_state.json").is_file() and time.monotonic() < deadline:
        time.sleep(0.02)
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)
    assert launcher.wait(timeout=600) != 0
    run("ddp", recipe, output)
    assert losses(output) == losses(straight)


@pytest.mark.slow
def test_all_processes_give_the_reason_of_the_one_that_fails(recipe, tmp_path):
    """Only process 0 opens the repository on the Hub, which is offline."""
    (launcher,) = start("ddp", recipe, tmp_path / "run", "training.push_to_hub=true", "training.hub_model_id=me/mine")
    assert launcher.wait(timeout=600) != 0
    lines = re.findall("janus-hf train: .*", (tmp_path / "run.0.log").read_text())
    assert len(lines) == 2
    first, second = sorted(lines, key=lambda line: "Process 0 of 2 stopped" in line)
    assert first.startswith("janus-hf train: `hub_model_id` must be a repository that the Hub token may write to")
    assert second == f"janus-hf train: Process 0 of 2 stopped: {first.removeprefix('janus-hf train: ')}"


# The script for SLURM, with stand-ins for SLURM's commands


STAND_INS = {
    "scontrol": 'if [ "$1" = show ]; then echo localhost; else echo "scontrol $*" >> "$LOG"; fi',
    "scancel": 'echo "scancel $*" >> "$LOG"; kill -USR1 $(cat "$LOG.node")',
    # srun with one node: it runs the command after its own options.
    "srun": 'while [[ $1 == --* ]]; do shift; done; SLURM_PROCID=0 "$@" & echo $! > "$LOG.node"; wait $!; wait $!',
    # The launcher starts a process that ends with 75 after SIGTERM, as `janus-hf train` does, and itself ends with 1.
    "accelerate": """
echo "accelerate $*" >> "$LOG"
python3 -c '
import os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (open(os.environ["LOG"], "a").write("SIGTERM\\n"), os._exit(75)))
open(os.environ["LOG"] + ".ready", "w").close()
time.sleep(float(os.environ["SECONDS_LEFT"]))
'
[ $? = 0 ] || exit 1
""",
}


@pytest.mark.parametrize("warned", [True, False])
def test_a_slurm_job_is_warned_and_requeued(warned, tmp_path):
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, body in STAND_INS.items():
        (tools / name).write_text(f"#!/bin/bash\n{body}\n")
        (tools / name).chmod(0o755)
    log = tmp_path / "log"
    environment = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "LOG": str(log)}
    environment |= {"SLURM_NNODES": "1", "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n", "SLURM_CPUS_PER_TASK": "1"}
    environment |= {"SLURM_GPUS_ON_NODE": "2", "SECONDS_LEFT": "60" if warned else "0"}
    script = [shutil.which("bash"), str(CONFIGS / "slurm.sh"), "recipe.yaml", "training.seed=3"]
    job = subprocess.Popen(script, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if warned:
        deadline = time.monotonic() + 60
        while not Path(f"{log}.ready").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        job.send_signal(signal.SIGUSR1)
    output, _ = job.communicate(timeout=60)
    launched, *events = log.read_text().splitlines()
    assert "--num_machines 1 --num_processes 2" in launched
    assert "--parallelism_config_dp_replicate_size 1 --parallelism_config_dp_shard_size 2" in launched
    assert launched.endswith("-m janus_hf_cli train recipe.yaml training.seed=3 training.num_processes=2")
    if warned:
        assert job.returncode == 1, output
        assert events == ["scancel --signal=USR1 7", "SIGTERM", "scontrol requeue 7"]
    else:
        assert job.returncode == 0, output
        assert events == []
