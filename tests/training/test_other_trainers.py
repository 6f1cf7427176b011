"""TRL's own trainers take the model as they take others."""

import math

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image
from transformers import Trainer, TrainingArguments
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer, SFTConfig, SFTTrainer
from trl.experimental.utils import create_reference_model
from trl.trainer.utils import create_model_from_path

from janus_hf import JanusProForConditionalGeneration, JanusProProcessor
from tiny import TINY_MODEL


ONE_STEP = {
    "max_steps": 1,
    "per_device_train_batch_size": 2,
    "report_to": [],
    "use_cpu": True,
    "bf16": False,
    "disable_tqdm": True,
    "save_strategy": "no",
    "logging_steps": 1,
    "max_length": None,
}


@pytest.mark.parametrize("with_reference", [False, True], ids=["found by TRL", "given"])
def test_dpo_starts_from_equal_policy_and_reference(tmp_path, with_reference):
    """At the first step policy and reference are equal, so the loss is ln 2. TRL loads the reference by the config."""
    row = {
        "prompt": [{"role": "user", "content": "what colour?"}],
        "chosen": [{"role": "assistant", "content": "red"}],
        "rejected": [{"role": "assistant", "content": "blue"}],
    }
    arguments = DPOConfig(output_dir=tmp_path, **ONE_STEP)
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


def test_kto_starts_from_equal_policy_and_reference(tmp_path):
    """With equal models every row's reward is 0, so the loss is 1 - sigmoid(0). TRL loads the reference itself."""
    row = {
        "prompt": [{"role": "user", "content": "what colour?"}],
        "completion": [{"role": "assistant", "content": "red"}],
    }
    trainer = KTOTrainer(
        model=JanusProForConditionalGeneration.from_pretrained(TINY_MODEL, dtype=torch.float32),
        args=KTOConfig(output_dir=tmp_path, **ONE_STEP),
        train_dataset=Dataset.from_list([row | {"label": True}, row | {"label": False}]),
        processing_class=JanusProProcessor.from_pretrained(TINY_MODEL),
    )
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(0.5, abs=1e-4)


@pytest.mark.parametrize(
    ("trainer_class", "config_class"), [(Trainer, TrainingArguments), (SFTTrainer, SFTConfig)], ids=["hf", "trl"]
)
def test_other_trainers_resume_and_load_the_best_model(trainer_class, config_class, tmp_path):
    """Checkpoints have the original layout. The resumed model starts from other weights, so all must come from it."""
    ids = torch.arange(10, 26).view(4, 4)
    rows = Dataset.from_dict({"input_ids": ids.tolist(), "labels": ids.tolist()})

    def collate(rows):
        ids = torch.tensor([row["input_ids"] for row in rows])
        return {"input_ids": ids, "labels": ids, "attention_mask": torch.ones_like(ids)}

    settings = ONE_STEP | {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "learning_rate": 1e-2}
    if trainer_class is Trainer:
        del settings["max_length"]

    def make(shift, **more):
        model = JanusProForConditionalGeneration.from_pretrained(TINY_MODEL, dtype=torch.float32)
        with torch.no_grad():
            for weight in model.parameters():
                weight += shift
        return trainer_class(
            model=model,
            args=config_class(output_dir=tmp_path, **settings, **more),
            train_dataset=rows,
            eval_dataset=rows,
            processing_class=JanusProProcessor.from_pretrained(TINY_MODEL),
            data_collator=collate,
        )

    straight = make(0)
    straight.train()
    resumed = make(1)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    expected = straight.model.state_dict()
    assert all(torch.equal(weight, expected[name]) for name, weight in resumed.model.state_dict().items())

    # A learning rate that spoils the model: the best checkpoint is the first.
    settings["learning_rate"] = 10.0
    best = make(0, load_best_model_at_end=True, eval_strategy="steps", eval_steps=2, metric_for_best_model="loss")
    best.train()
    assert best.evaluate()["eval_loss"] == pytest.approx(best.state.best_metric, rel=1e-5)


def test_metrics_of_transformers_trainer_are_computed_of_text_logits(tmp_path):
    """Nothing else of the output, such as the features of the images, is taken for a prediction."""
    model = JanusProForConditionalGeneration.from_pretrained(TINY_MODEL, dtype=torch.float32)
    processor = JanusProProcessor.from_pretrained(TINY_MODEL)
    rows = [
        dict(processor(f"<image_placeholder>a {name} circle", images=Image.new("RGB", (20, 10), name)))
        for name in ("red", "tan")
    ]
    for row in rows:
        row["labels"] = row["input_ids"].masked_fill(row["input_ids"] == model.config.image_token_id, -100)
    seen = []
    trainer = Trainer(
        model=model,
        args=TrainingArguments(output_dir=tmp_path, report_to=[], use_cpu=True, disable_tqdm=True),
        eval_dataset=rows,
        data_collator=lambda rows: {name: torch.cat([row[name] for row in rows]) for name in rows[0]},
        compute_metrics=lambda result: seen.append(result) or {"count": len(result.predictions)},
    )
    assert trainer.evaluate()["eval_count"] == 2
    (result,) = seen
    batch = {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
    with torch.no_grad():
        expected = model(**batch)
    assert isinstance(result.predictions, np.ndarray)
    np.testing.assert_allclose(result.predictions, expected.logits.numpy(), atol=1e-4)
    assert np.array_equal(result.label_ids, batch["labels"].numpy())


@pytest.mark.parametrize("layout", ["original", "transformers"])
@pytest.mark.parametrize("max_shard_size", ["5GB", "1500KB"], ids=["one file", "shards"])
def test_references_are_loaded_whole(tmp_path, layout, max_shard_size):
    """TRL's trainers make references and teachers with these two functions."""
    model = JanusProForConditionalGeneration.from_pretrained(TINY_MODEL, dtype=torch.float32)
    model.save_pretrained(tmp_path, layout=layout, max_shard_size=max_shard_size)
    ids = torch.tensor([[1, 2, 3]])
    for reference in (create_model_from_path(str(tmp_path)), create_reference_model(model)):
        weights = reference.state_dict()
        assert all(torch.equal(weights[name], weight) for name, weight in model.state_dict().items())
        torch.testing.assert_close(reference(ids).logits, model(ids).logits)
