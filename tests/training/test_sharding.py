"""Sharded ranks with different labels do not wait for each other, and get the gradients of an unsharded model.

Two ranks run on the CPU, through accelerate's own sharding. `test_launchers.py` runs whole trainings.
"""

import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import toy
import yaml
from accelerate.utils import FullyShardedDataParallelPlugin

from janus_hf.training.distributed.zero import keep_float32
from janus_hf.training.stages import base_model
from janus_hf.training.trainers.guards import sum_gradients_in_float32


def launch(stage, way):
    """Run `sharded_ranks.py` on two ranks and return the finished process."""
    script = Path(__file__).with_name("sharded_ranks.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script)]
    return subprocess.run([*command, stage, way], capture_output=True, text=True, timeout=180)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "way"), [("stage1", "fsdp2"), ("stage3", "fsdp2"), ("lora_both", "fsdp2"), ("stage3", "zero3")]
)
def test_ranks_with_other_labels_agree_on_the_gradients(stage, way):
    result = launch(stage, way)
    assert result.returncode == 0, result.stderr[-3000:]


@pytest.mark.slow
def test_the_text_head_must_not_be_a_unit():
    """A text head in an FSDP2 unit of its own deadlocks. If this fails, `root_unit_text_head` is no longer needed."""
    assert launch("stage3", "fsdp2-by-itself").returncode != 0


@pytest.mark.parametrize("stage", ["stage3", "lora_both"])
def test_the_trainer_hides_the_text_head_while_sharding(stage, tmp_path, monkeypatch):
    trainer = toy.trainer_for(toy.config_for(tmp_path, stage, max_steps=1))
    prepare, seen = trainer.accelerator.prepare, []

    def spy(*objects, **kwargs):
        seen.extend(part.get_output_embeddings() for part in objects if isinstance(part, torch.nn.Module))
        return prepare(*objects, **kwargs)

    monkeypatch.setattr(trainer.accelerator, "prepare", spy)
    trainer.train()
    assert seen == [None]
    assert trainer.model.get_output_embeddings() is not None


def test_fsdp_sums_gradients_in_float32():
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2)
    plugin.set_mixed_precision("bf16")
    assert plugin.mixed_precision_policy.reduce_dtype == torch.bfloat16, "accelerate now sums in float32 itself"
    sum_gradients_in_float32(plugin)
    policy = plugin.mixed_precision_policy
    # No output dtype: layers hand on bfloat16, the loss stays in float32.
    assert (policy.param_dtype, policy.reduce_dtype, policy.output_dtype) == (torch.bfloat16, torch.float32, None)
    sum_gradients_in_float32(SimpleNamespace(mixed_precision_policy=None))


@pytest.mark.parametrize("bf16", [False, True])
def test_deepspeed_sums_gradients_in_float32(bf16):
    """Without a section `bf16`, DeepSpeed keeps the weights, and transformers has nothing to compare with."""
    config = {"bf16": {"enabled": True}, "fp16": {"enabled": False}, "zero_optimization": {"stage": 2}}
    keep_float32(SimpleNamespace(deepspeed_config=config), bf16=bf16)
    assert config == {
        "zero_optimization": {"stage": 2},
        "torch_autocast": {"enabled": bf16, "dtype": "bfloat16", "lower_precision_safe_modules": []},
        "communication_data_type": "fp32",
        "data_types": {"grad_accum_dtype": "fp32"},
    }
    own = {"torch_autocast": {"enabled": False}, "communication_data_type": "bf16", "data_types": {}}
    kept = dict(own)
    keep_float32(SimpleNamespace(deepspeed_config=kept), bf16=bf16)
    assert kept == own


def test_ddp_holds_gradients_once(tmp_path):
    assert toy.trainer_for(toy.config_for(tmp_path)).accelerator.ddp_handler.gradient_as_bucket_view


@pytest.mark.parametrize("variable", ["ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"])
def test_launchers_that_shard_are_recognised(variable, tmp_path, monkeypatch):
    args = toy.config_for(tmp_path)
    assert not args.sharded
    monkeypatch.setenv(variable, "true")
    assert args.sharded
    assert args.wants_fsdp == (variable == "ACCELERATE_USE_FSDP")


def test_fsdp_shards_gradients_of_every_micro_batch(tmp_path, monkeypatch):
    assert toy.config_for(tmp_path).accelerator_config.gradient_accumulation_kwargs is None
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert toy.config_for(tmp_path).accelerator_config.gradient_accumulation_kwargs == {"sync_each_batch": True}


CONFIGS = Path(__file__).parents[2] / "accelerate_configs"


@pytest.mark.parametrize("name", ["fsdp2", "multi_node"])
@pytest.mark.parametrize("stage", ["full", "lora_both"])
def test_names_in_the_configurations_are_the_models(name, stage, tmp_path):
    """accelerate matches the ignored modules as a regular expression against whole names."""
    settings = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())["fsdp_config"]
    model = toy.trainer_for(toy.config_for(tmp_path, stage)).model
    base = base_model(model)
    classes = {type(module).__name__ for module in model.modules()}
    wrapped = settings["fsdp_transformer_layer_cls_to_wrap"].split(",")
    assert set(wrapped) <= classes
    inside = [module for module in base.model.vqmodel.modules() if type(module).__name__ in wrapped]
    assert not inside, "the codec is called outside of forward"
    ignored = [
        module for name, module in model.named_modules() if re.fullmatch(settings["fsdp_ignored_modules"], name)
    ]
    assert ignored == [base.model.vqmodel]


def test_slurm_script_is_valid_bash():
    subprocess.run(["bash", "-n", str(CONFIGS / "slurm.sh")], check=True)
