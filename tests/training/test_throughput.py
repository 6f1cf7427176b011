"""Operations are those that torch counts; the log states tokens per second, TFLOP/s and their share of the peak."""

import pytest
import toy
from torch.utils.flop_counter import FlopCounterMode
from transformers import TrainerCallback

from janus_hf.training.reports import throughput
from janus_hf.training.stages import STAGES, base_model


def count_with_torch(trainer, batch):
    """Return the operations of a forward and a backward pass as torch counts them, by the operator, and the outputs."""
    trainer.model.train()
    with FlopCounterMode(display=False) as counter:
        outputs = trainer.model(**batch)
        outputs["loss"].backward()
    return {op.__name__: n for op, n in counter.get_flop_counts()["Global"].items()}, outputs


def batch_for(model):
    """Return a batch of 4 rows, each with a text, a question about an image, and an image to generate."""
    batch = toy.collate([[toy.document(kind, i, model.config) for kind in range(3)] for i in range(4)])
    del batch["task_ids"]
    return batch


TOWER = {"lora_vision_tower": True, "lora_targets": r"model\.language_model\.layers\.\d+\.self_attn\.q_proj"}


@pytest.mark.parametrize(("stage", "fields"), [*((stage, {}) for stage in STAGES), ("lora_understanding", TOWER)])
def test_operations_of_weights_are_those_that_torch_counts(stage, fields, tmp_path):
    """torch does not count fused attention on the CPU."""
    model = toy.load_model()
    trainer = toy.trainer_for(toy.config_for(tmp_path, stage, **fields), model=model)
    batch = batch_for(model)
    counted, outputs = count_with_torch(trainer, batch)
    text, image = int(outputs["num_text_labels"]), int(outputs["num_image_labels"])
    pictures = len(batch["pixel_values"])
    expected = trainer.throughput.flops.total(batch["labels"].numel(), 0, text, image, pictures)
    base, tower = base_model(trainer.model), model.config.vision_config
    is_trained = any(parameter.requires_grad for parameter in base.model.vision_model.parameters())
    pairs = pictures * tower.num_image_tokens**2
    expected -= (3 if is_trained else 1) * 4 * tower.hidden_size * tower.num_hidden_layers * pairs
    # The heads compute their logits a second time in the backward pass.
    for head, labels in ((base.lm_head, text), (base.model.generation_head, image)):
        weights = (weight for name, weight in head.named_parameters() if "original_module" not in name)
        expected += 2 * labels * sum(weight.numel() for weight in weights)
    assert sum(counted.values()) == pytest.approx(expected, rel=0.04)


def test_operations_of_attention_are_those_that_torch_counts(tmp_path):
    """Eager attention computes all pairs of a row, which makes the number of pairs known."""
    model = toy.load_model()
    model.model.language_model.set_attn_implementation("eager")
    trainer = toy.trainer_for(toy.config_for(tmp_path, "stage2"), model=model)
    batch = batch_for(model)
    counted, _ = count_with_torch(trainer, batch)
    rows, length = batch["labels"].shape
    assert (
        counted["bmm.default" if "bmm.default" in counted else "bmm"]
        == trainer.throughput.flops.pair * rows * length**2
    )


class Clock(TrainerCallback):
    """A clock in place of the real one: a micro-batch takes one second, an odd job 1000."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(throughput.time, "perf_counter", lambda: self.now)

    def odd_job(self, *args, **kwargs):
        self.now += 1000

    on_step_end = on_log = on_save = on_evaluate = on_train_begin = odd_job


def timed_trainer(tmp_path, monkeypatch, **fields):
    """Return a trainer whose micro-batches take a second each by the clock that `Throughput` reads."""
    clock = Clock(monkeypatch)
    model = toy.load_model()
    options = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 3, "peak_tflops": 1e-3}
    evaluation = toy.Packs(model.config, rows=3, kinds=(0,))
    trainer = toy.trainer_for(
        toy.config_for(tmp_path, **{**options, **fields}), model=model, callbacks=[clock], eval_dataset=evaluation
    )
    step = type(trainer).training_step

    def training_step(*args, **kwargs):
        clock.now += 1
        return step(trainer, *args, **kwargs)

    monkeypatch.setattr(trainer, "training_step", training_step)
    return trainer


def test_the_log_states_the_speed_of_training_alone(tmp_path, monkeypatch):
    """The first step, evaluations, saves, logs and other callbacks are left out."""
    fields = {"logging_steps": 2, "max_steps": 6, "eval_strategy": "steps", "eval_steps": 1}
    trainer = timed_trainer(tmp_path, monkeypatch, save_strategy="steps", save_steps=3, **fields)
    trainer.train()
    logs = [log for log in trainer.state.log_history if "loss" in log]
    assert [log["step"] for log in logs] == [2, 4, 6]
    length = toy.collate([trainer.train_dataset[i] for i in range(3)])["labels"].numel()
    assert logs[0]["tokens"] > 3 * length
    for log in logs[1:]:  # two steps of two micro-batches in four seconds
        assert log["tokens_per_second"] == pytest.approx(log["tokens"] / 4)
    assert logs[0]["tokens_per_second"] < logs[0]["tokens"] / 2  # the second step alone
    for log in logs:
        assert log["mfu"] == pytest.approx(log["tflops"] / 1e-3)
    done = 1e12 * sum(log["tflops"] * seconds for log, seconds in zip(logs, (2, 4, 4), strict=True))
    # The first of the six steps is in the total, but in no log.
    assert done < trainer.state.total_flos < done * 1.4
    assert not any(
        "per_second" in key
        for log in trainer.state.log_history
        for key in log
        if "loss" in log and key not in ("tokens_per_second",) and not key.startswith("eval_")
    )
