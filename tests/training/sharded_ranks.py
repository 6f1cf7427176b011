"""`sharded_ranks.py STAGE WAY`, run by `test_sharding.py` on two ranks: exit with 0 if the gradients are correct.

Rank 0 generates images and has no text label, rank 1 answers and has no image label. With chunks of 4 labels, the
ranks call their heads a different number of times. WAY is `fsdp2` (accelerate's own sharding, with the settings of
`accelerate_configs/fsdp2.yaml` and the trainer's addition), `fsdp2-by-itself` (without the trainer's addition: the
ranks wait for each other until the timeout) or `zero3` (only the number of calls of the heads, at which DeepSpeed
would gather their weights).
"""

import copy
import sys
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import peft
import torch
import torch.distributed as dist
import toy
import yaml
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from torch.distributed.tensor import DTensor

from janus_hf.modeling import loss
from janus_hf.training import SampleCallback
from janus_hf.training.batches import with_dummy_picture
from janus_hf.training.stages import STAGES, apply_stage, base_model, lora_config
from janus_hf.training.trainers.guards import root_unit_text_head


CONFIG = Path(__file__).parents[2] / "accelerate_configs" / "fsdp2.yaml"


def build(stage):
    model = toy.load_model().train()
    if STAGES[stage].lora:
        torch.manual_seed(0)
        model = peft.get_peft_model(model, lora_config(model, stage))
        for name, parameter in model.named_parameters():
            if "lora_B" in name:  # zero at first, which would hide the gradients of lora_A
                torch.nn.init.normal_(parameter, std=0.1)
    else:
        apply_stage(model, stage)
    model.activation_checkpointing_enable({"use_reentrant": False})
    return model


def batches(config):
    drawing = toy.collate([[toy.document(toy.DRAWING, i, config) for i in range(2)]], with_tasks=False)
    reading = toy.collate([[toy.document(toy.UNDERSTANDING, i, config) for i in range(2)]], with_tasks=False)
    return [with_dummy_picture(drawing, config), reading]


def shard(model):
    """Shard the model as `Accelerator.prepare` does, without a device mesh and a whole accelerator."""
    settings = yaml.safe_load(CONFIG.read_text())["fsdp_config"]
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=settings["fsdp_version"],
        auto_wrap_policy=settings["fsdp_auto_wrap_policy"],
        transformer_cls_names_to_wrap=settings["fsdp_transformer_layer_cls_to_wrap"].split(","),
        ignored_modules=settings["fsdp_ignored_modules"],
        reshard_after_forward=settings["fsdp_reshard_after_forward"],
    )
    accelerator = SimpleNamespace(
        state=SimpleNamespace(fsdp_plugin=plugin),
        mixed_precision="no",
        is_main_process=dist.get_rank() == 0,
        device=torch.device("cpu"),
    )
    return fsdp2_prepare_model(accelerator, model)


def sample(model):
    samples = SampleCallback(
        toy.load_processor(), prompts=["a dog"], questions=[{"question": "Hello?"}], max_new_tokens=4
    )
    images, answers = samples.sample(model)
    return [image.tobytes() for image in images], answers


def main(stage, way):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=30))
    loss.chunked_cross_entropy.__kwdefaults__["chunk_size"] = 4
    model = build(stage)
    base = base_model(model)
    parts = batches(base.config)
    labels = sum(int((part["labels"][:, 1:] >= 0).sum()) for part in parts)

    whole = copy.deepcopy(model)
    for part in parts:
        whole(**part, num_items_in_batch=labels).loss.backward()
    expected = {name: p.grad for name, p in whole.named_parameters() if p.grad is not None}

    if way == "zero3":
        loss.is_deepspeed_zero3_enabled = lambda: True
    else:
        with root_unit_text_head(base) if way == "fsdp2" else nullcontext():
            model = shard(model)
    calls = []
    for head in (base.lm_head, base.model.generation_head):
        head.register_forward_hook(lambda module, args, output: calls.append(type(module).__name__))

    for _ in range(2):  # the second step begins where the first one left the shards
        model.zero_grad()
        calls.clear()
        (model(**parts[dist.get_rank()], num_items_in_batch=labels).loss * dist.get_world_size()).backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    if way == "zero3":
        everyone = [None] * dist.get_world_size()
        dist.all_gather_object(everyone, calls)
        assert everyone[0] == everyone[1], everyone
        for gradient in gradients.values():
            dist.all_reduce(gradient)
            gradient /= dist.get_world_size()
    assert set(gradients) == set(expected)
    for name, gradient in gradients.items():
        found = gradient.full_tensor() if isinstance(gradient, DTensor) else gradient
        torch.testing.assert_close(found, expected[name], atol=1e-6, rtol=1e-4, msg=name)
    assert sample(model) == sample(whole), "samples while training, which call parts of the model"
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
