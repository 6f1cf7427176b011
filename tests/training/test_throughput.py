"""Operations are those that torch counts; the log states tokens per second, TFLOP/s and their share of the peak."""

from pathlib import Path

import pytest
import torch
import toy
from torch.utils.flop_counter import FlopCounterMode
from transformers import TrainerCallback

from janus_hf.training.recording import read_state
from janus_hf.training.reports import throughput
from janus_hf.training.reports.peaks import PEAKS, find_peak
from janus_hf.training.stages import STAGES, base_model


def count_with_torch(trainer, batch):
    """Return the operations that torch counts in a forward and a backward pass, by operator, and the outputs."""
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
    assert counted["bmm"] == trainer.throughput.flops.pair * rows * length**2


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


def test_a_resumed_run_has_the_operations_of_a_straight_one(tmp_path):
    """The checkpoint lies between two logs."""
    fields = {"logging_steps": 2, "max_steps": 4, "save_strategy": "steps", "save_steps": 3}
    straight = toy.trainer_for(toy.config_for(tmp_path / "run", **fields))
    straight.train()
    resumed = toy.trainer_for(toy.config_for(tmp_path / "run", **fields))
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-3"))
    saved = read_state(tmp_path / "run" / "checkpoint-3").total_flos
    assert 0 < saved < resumed.state.total_flos == pytest.approx(straight.state.total_flos, rel=1e-12)


def test_there_is_one_number_of_tokens_per_second(tmp_path):
    """transformers logs a second one, a mean since the start, beside the tokens seen."""
    trainer = toy.trainer_for(toy.config_for(tmp_path, max_steps=2, include_num_input_tokens_seen="all"))
    trainer.train()
    first, log, _ = trainer.state.log_history
    assert log["num_input_tokens_seen"] == first["tokens"] + log["tokens"]
    assert [name for name in log if "per_second" in name] == ["tokens_per_second"]
    assert "mfu" not in log  # the peak of a CPU is not known


def test_runs_without_logs_state_the_speed_at_the_end(tmp_path):
    trainer = toy.trainer_for(toy.config_for(tmp_path, max_steps=3, logging_strategy="no"))
    trainer.train()
    (log,) = trainer.state.log_history
    assert log["tokens_per_second"] > 0
    assert log["total_flos"] == trainer.state.total_flos > 0


# Names as `torch.cuda.get_device_name` returns them.
CARDS = {
    "NVIDIA A100-SXM4-80GB": 312,
    "NVIDIA A100 80GB PCIe": 312,
    "NVIDIA A100-PCIE-40GB": 312,
    "NVIDIA H100 80GB HBM3": 989,
    "NVIDIA H100 PCIe": 756,
    "NVIDIA H100 NVL": 835,
    "NVIDIA H200": 989,
    "NVIDIA H200 NVL": 835,
    "NVIDIA GH200 480GB": 989,
    "NVIDIA B200": 2250,
    "NVIDIA L4": 121,
    "NVIDIA L40S": 362,
    "NVIDIA A10": 125,
    "NVIDIA A30": 165,
    "NVIDIA A40": 149.7,
    "NVIDIA RTX A6000": 154.8,
    "NVIDIA GeForce RTX 3090": 71,
    "NVIDIA GeForce RTX 4090": 165.2,
    "NVIDIA GeForce RTX 5090": 209.5,
    "Tesla T4": 65,
    "Tesla V100-SXM2-32GB": 125,
    "Tesla V100-PCIE-16GB": 112,
    "Tesla V100S-PCIE-32GB": 130,
    "AMD Instinct MI300X": 1307.4,
    "AMD Instinct MI325X": 1307.4,
}


@pytest.mark.parametrize(("name", "peak"), CARDS.items())
def test_cards_have_their_peak(name, peak):
    assert find_peak(name) == peak


def test_every_peak_has_a_card():
    found = {pattern for pattern in PEAKS for name in CARDS if PEAKS[pattern] == find_peak(name)}
    assert found == set(PEAKS)


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA A100-SXM4-40GB MIG 1g.5gb",
        "NVIDIA A10G",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 4090 D",
        "NVIDIA GeForce RTX 3090 Ti",
        "NVIDIA L40",
        "NVIDIA H20",
        "NVIDIA A1000",
        "",
    ],
)
def test_other_cards_have_none(name):
    assert find_peak(name) is None


@pytest.mark.parametrize(
    ("name", "peak_tflops", "expected"),
    [("NVIDIA H100 PCIe", None, 756), ("Some card", None, None), ("Some card", 5, 5)],
)
def test_an_unknown_card_is_named_once(name, peak_tflops, expected, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    trainer = toy.trainer_for(toy.config_for(tmp_path, max_steps=1))
    measured = throughput.Throughput(trainer.model, torch.device("cuda"), peak_tflops=peak_tflops)
    assert measured.peak == expected
    throughput.logger.warning_once.cache_clear()
    for _ in range(2):
        measured.on_train_begin(trainer.args, trainer.state, trainer.control)
    said = [record.getMessage() for record in caplog.records if "mfu" in record.getMessage()]
    assert len(said) == (expected is None)
    assert all("peak of 'Some card' is not known: set `peak_tflops`" in message for message in said)


@pytest.mark.parametrize("peak", [0, -1, float("nan"), float("inf")])
def test_peaks_must_be_positive(peak, tmp_path):
    with pytest.raises(ValueError, match="`peak_tflops` must be above 0"):
        toy.config_for(tmp_path, peak_tflops=peak)


@pytest.mark.slow
def test_two_processes_have_the_tokens_of_both_and_the_operations_of_one(tmp_path):
    result = toy.launch(str(Path(__file__).with_name("two_ranks.py")), str(tmp_path), "2", "stage3", "false")
    assert result.returncode == 0, result.stderr[-3000:]
    both = read_state(tmp_path)
    args = toy.config_for(tmp_path / "one", per_device_train_batch_size=1, total_batch_size=6)
    trainer = toy.trainer_for(args, rows=36)
    trainer.train()
    assert both.total_flos == pytest.approx(trainer.state.total_flos, rel=1e-12)
    for one, two in zip(trainer.state.log_history[1:6], both.log_history[1:6], strict=True):
        assert two["tokens"] == one["tokens"]
        per_token = one["tflops"] / one["tokens_per_second"]
        assert 2 * two["tflops"] / two["tokens_per_second"] == pytest.approx(per_token)
