"""TRL's own trainers take the model as they take others."""

import math

import pytest
import torch
from datasets import Dataset
from trl import DPOConfig, DPOTrainer

from janus_hf import JanusProForConditionalGeneration, JanusProProcessor
from tiny import TINY_MODEL


@pytest.mark.parametrize("with_reference", [False, True], ids=["found by TRL", "given"])
def test_dpo_starts_from_equal_policy_and_reference(tmp_path, with_reference):
    """At the first step policy and reference are equal, so the loss is ln 2. TRL loads the reference by the config."""
    row = {
        "prompt": [{"role": "user", "content": "what colour?"}],
        "chosen": [{"role": "assistant", "content": "red"}],
        "rejected": [{"role": "assistant", "content": "blue"}],
    }
    arguments = DPOConfig(
        output_dir=tmp_path,
        max_steps=1,
        per_device_train_batch_size=2,
        report_to=[],
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
        save_strategy="no",
        logging_steps=1,
        max_length=None,
    )
    models = [JanusProForConditionalGeneration.from_pretrained(TINY_MODEL, dtype=torch.float32) for _ in range(2)]
    trainer = DPOTrainer(
        model=models[0],
        ref_model=models[1] if with_reference else None,
        args=arguments,
        train_dataset=Dataset.from_list([row] * 2),
        processing_class=JanusProProcessor.from_pretrained(TINY_MODEL),
    )
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)
