"""Operations are those that torch counts; the log states tokens per second, TFLOP/s and their share of the peak."""

import logging
import time

import pytest
import toy
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import TrainerCallback

from janus_hf.training.recording import read_state
from janus_hf.training.reports.flops import count_flops
from janus_hf.training.reports.peaks import PEAKS, find_peak
from janus_hf.training.reports.throughput import Throughput
from janus_hf.training.stages import STAGES, base_model


MATMULS = ("mm", "addmm", "bmm", "baddbmm", "convolution", "convolution_backward")


@pytest.mark.parametrize(
    ("stage", "fields"),
    [*((stage, {}) for stage in STAGES), ("lora_understanding", {"lora_vision_tower": True, "lora_targets": "x"})],
)
def test_operations_are_those_that_torch_counts(stage, fields, tmp_path):
    """torch counts no attention on the CPU, so that the weights are compared alone; attention is compared below."""
    if "lora_targets" in fields:
        fields = {**fields, "lora_targets": r"model\.language_model\.layers\.\d+\.self_attn\.q_proj"}
    model = toy.load_model()
    trainer = toy.trainer_for(toy.config_for(tmp_path, stage, **fields), model=model)
    batch = toy.collate([[toy.document(kind, i, model.config) for kind in range(3)] for i in range(4)])
    batch.pop("task_ids")
    trainer.model.train()
    with FlopCounterMode(display=False) as counter:
        outputs = trainer.model(**batch)
        outputs["loss"].backward()
    counted = {op.__name__.split(".")[0]: n for op, n in counter.get_flop_counts()["Global"].items()}
    flops, config = trainer.throughput.flops, model.config
    text, image = int(outputs["num_text_labels"]), int(outputs["num_image_labels"])
    expected = flops.total(batch["labels"].numel(), 0, text, image, len(batch["pixel_values"]))
    tower = config.vision_config.num_image_tokens**2 * 4 * config.vision_config.hidden_size
    tower *= config.vision_config.num_hidden_layers * len(batch["pixel_values"])
    expected -= tower * (3 if any(p.requires_grad for p in base_model(trainer.model).model.vision_model.parameters()) else 1)
    # The heads compute their logits a second time in the backward pass, which is not counted here.
    heads = [base_model(trainer.model).lm_head, base_model(trainer.model).model.generation_head]
    for head, labels in zip(heads, (text, image), strict=True):
        expected += 2 * labels * sum(p.numel() for n, p in head.named_parameters() if "original_module" not in n)
    print(stage, sum(counted.values()) / expected, counted)
    assert sum(counted.values()) == pytest.approx(expected, rel=0.05)
