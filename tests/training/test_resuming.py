"""A run is resumed exactly or refused: every setting is applied, applied on request, or cannot change."""

import itertools
import json
import math
import shutil
from dataclasses import fields

import numpy as np
import pytest
import torch
import toy
from transformers import TrainerCallback

from janus_hf.data import JanusProCollator, PackedDataset, make_plan, prepare_rows
from janus_hf.training import STAGES, JanusProSFTConfig, train
from janus_hf.training.recipes import _DATA_KEYS, _MODEL_KEYS
from janus_hf.training.reports.forecast import forecast
from janus_hf.training.resuming.resume_fields import APPLIED, BATCH, CONSTANT, FIXED, ON_REQUEST
from janus_hf.training.resuming.run_record import check_same_run
from janus_hf.training.stages import REACHED_BY, check_reached


KINDS = (APPLIED, BATCH, CONSTANT, FIXED, ON_REQUEST)
SAVED = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}


def test_every_setting_is_of_one_kind():
    names = {entry.name for entry in fields(JanusProSFTConfig) if entry.init}
    names |= {f"model.{key}" for key in _MODEL_KEYS} | {f"data.{key}" for key in _DATA_KEYS}
    assert names - frozenset().union(*KINDS) == set(), "a new option must be sorted in resume_fields.py"
    assert {name for name in frozenset().union(*KINDS) - names if "." not in name} == set()
    assert all(not a & b for a, b in itertools.combinations(KINDS, 2))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Train four steps with adapters and dropout, and return the trainer, which has saved checkpoints 2 and 4."""
    folder = tmp_path_factory.mktemp("run")
    trainer = toy.trainer_for(toy.config_for(folder, "lora_both", lora_dropout=0.1, **SAVED))
    trainer.train()
    return trainer


def resume(run, tmp_path, **options):
    """Return a trainer like that of `run`, with other options, after it was resumed from checkpoint 2."""
    settings = {"lora_dropout": 0.1, **SAVED, **options}
    trainer = toy.trainer_for(toy.config_for(tmp_path, "lora_both", **settings))
    trainer.train(resume_from_checkpoint=f"{run.args.output_dir}/checkpoint-2")
    return trainer


def other(value):
    """Return another value that JSON can hold."""
    return {bool: lambda: not value, int: lambda: value + 1, float: lambda: value + 0.5}.get(
        type(value), lambda: "x"
    )()


@pytest.mark.parametrize("name", sorted(ON_REQUEST))
def test_a_setting_that_changes_what_is_learned_is_changed_only_on_request(run, name):
    checkpoint = f"{run.args.output_dir}/checkpoint-2"
    was = run.settings[name]
    changed = {**run.settings, name: other(was)}
    with pytest.raises(ValueError, match="`resume_changes`|resume_changes") as refusal:
        check_same_run(checkpoint, run.facts, changed, changes=[])
    for part in (f"`{name}` must be", repr(was), repr(other(was)), f"resume_changes=[{name}]"):
        assert part in str(refusal.value)
    assert check_same_run(checkpoint, run.facts, changed, changes=[name]) == [name]
    assert check_same_run(checkpoint, run.facts, run.settings, changes=[name]) == []
    if "." not in name:
        JanusProSFTConfig(output_dir="x", stage="stage1", use_cpu=True, report_to="none", resume_changes=[name])


@pytest.mark.parametrize("name", [*sorted(FIXED), "packs_per_step", "sharding", "plan_hash"])
def test_a_setting_that_cannot_change_is_refused(run, name):
    checkpoint = f"{run.args.output_dir}/checkpoint-2"
    facts, settings = dict(run.facts), dict(run.settings)
    for entries in (facts, settings):
        if name in entries:
            entries[name] = other(entries[name])
    if not name.startswith("data."):  # those are part of the plan's hash
        with pytest.raises(ValueError, match=f"was trained with {name} .*, this run has .*new run"):
            check_same_run(checkpoint, facts, settings, changes=[name])
    with pytest.raises(ValueError, match=f"`resume_changes` must name settings .*, got {name!r}"):
        JanusProSFTConfig(output_dir="x", stage="stage1", use_cpu=True, report_to="none", resume_changes=[name])


@pytest.mark.parametrize("name", [*sorted(BATCH), *sorted(CONSTANT), "colour"])
def test_requests_without_a_meaning_are_refused(name):
    with pytest.raises(ValueError, match=f"`resume_changes` must name settings .*, got {name!r}"):
        JanusProSFTConfig(output_dir="x", stage="stage1", use_cpu=True, report_to="none", resume_changes=[name])


def test_all_changes_are_told_at_once(run, tmp_path):
    with pytest.raises(ValueError, match=r"`adam_beta2` must be 0\.95.*`learning_rate` must be 0\.001") as refusal:
        resume(run, tmp_path, learning_rate=0.5, adam_beta2=0.9)
    assert "training.resume_changes=[adam_beta2, learning_rate]" in str(refusal.value)


def test_nothing_changed_is_exact_and_the_same_trainer_goes_on(run, tmp_path):
    assert toy.trajectory(resume(run, tmp_path)) == toy.trajectory(run)


def test_requested_changes_reach_the_optimizer_and_the_schedule(run, tmp_path):
    options = {"learning_rate": 0.002, "adam_beta1": 0.8, "adam_epsilon": 1e-6, "weight_decay": 0.1}
    trainer = resume(run, tmp_path, **options, resume_changes=[*options])
    for group in trainer.optimizer.param_groups:
        assert (group["lr"], group["initial_lr"], group["betas"]) == (0.002, 0.002, (0.8, 0.95))
        assert group["eps"] == 1e-6
    assert {group["weight_decay"] for group in trainer.optimizer.param_groups} == {0.1, 0.0}
    rates = [log["learning_rate"] for log in trainer.state.log_history if "loss" in log]
    assert rates == [0.001, 0.001, 0.002, 0.002]
    record = json.loads((tmp_path / "checkpoint-4" / "janus_training.json").read_text())
    assert record["settings"]["learning_rate"] == 0.002  # what the next resume is compared with


@pytest.mark.slow
def test_a_requested_schedule_is_followed_from_there_on(run, tmp_path):
    options = {"lr_scheduler_type": "cosine", "warmup_steps": 1, "max_steps": 8}
    with pytest.raises(ValueError, match="`max_steps` must be that of the checkpoint, 4, got 8, because the schedule"):
        resume(run, tmp_path, **options, resume_changes=["lr_scheduler_type", "warmup_steps"])
    trainer = resume(run, tmp_path, **options, resume_changes=[*options])
    rates = [log["learning_rate"] for log in trainer.state.log_history if "loss" in log]
    cosine = [0.001 * (1 + math.cos(math.pi * (step - 1) / 7)) / 2 for step in range(2, 8)]
    assert rates == pytest.approx([0.001, 0.001, *cosine])


@pytest.mark.slow
def test_dropout_and_alpha_change_on_request(run, tmp_path):
    trainer = resume(run, tmp_path, lora_alpha=8.0, lora_dropout=0.0, resume_changes=["lora_alpha", "lora_dropout"])
    layers = [module for module in trainer.model.modules() if hasattr(module, "lora_A") and hasattr(module, "scaling")]
    assert layers
    assert {layer.scaling["default"] for layer in layers} == {8 / 16}
    assert toy.trajectory(trainer)[:2] == toy.trajectory(run)[:2]
    assert toy.trajectory(trainer)[2:] != toy.trajectory(run)[2:]


def test_a_schedule_with_a_state_cannot_be_taken_over(run):
    checkpoint = f"{run.args.output_dir}/checkpoint-2"
    settings = {**run.settings, "lr_scheduler_type": "reduce_lr_on_plateau"}
    with pytest.raises(ValueError, match="lr_scheduler_type 'constant_with_warmup', this run has 'reduce"):
        check_same_run(checkpoint, run.facts, settings, changes=["lr_scheduler_type"])


@pytest.mark.slow
def test_an_optimizer_of_the_caller_is_compared_too(tmp_path):
    def trainer(rate, **options):
        model = toy.load_model()
        args = toy.config_for(tmp_path, **SAVED, **options)
        made = toy.trainer_for(args, model=model)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        made.optimizer = torch.optim.SGD(trained, lr=rate)
        return made

    trainer(0.1).train()
    with pytest.raises(ValueError, match=r"learning rate must be that of the checkpoint, 0\.1, got 0\.2"):
        trainer(0.2).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    changed = trainer(0.2, resume_changes=["learning_rate"])
    changed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert changed.optimizer.param_groups[0]["lr"] == 0.2


def test_intervals_are_those_of_the_new_run(run, tmp_path):
    trainer = resume(run, tmp_path, max_steps=6, logging_steps=2, save_steps=3, save_total_limit=1)
    assert [log["step"] for log in trainer.state.log_history if "loss" in log] == [1, 2, 4, 6]
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-6"]
    assert trainer.state.save_steps == 3


@pytest.mark.slow
def test_the_split_of_the_batch_may_change_and_its_size_may_not(run, tmp_path):
    trainer = resume(run, tmp_path, per_device_train_batch_size=3, gradient_accumulation_steps=2)
    losses = [entry[0] for entry in toy.trajectory(trainer)]
    assert losses == pytest.approx([entry[0] for entry in toy.trajectory(run)], rel=0.05)  # dropout differs
    with pytest.raises(ValueError, match="was trained with packs_per_step 6, this run has 3"):
        resume(run, tmp_path, per_device_train_batch_size=3)


def test_a_checkpoint_without_settings_is_refused(run, tmp_path):
    (tmp_path / "janus_training.json").write_text(json.dumps({"stage": "lora_both", "plan_hash": "a"}))
    (tmp_path / "trainer_state.json").write_text("{}")
    with pytest.raises(ValueError, match="must be a checkpoint that records its settings"):
        check_same_run(tmp_path, run.facts, run.settings, changes=[])


@pytest.mark.parametrize("missing", ["janus_training.json", "trainer_state.json", "checkpoint-9"])
def test_what_is_no_complete_checkpoint_is_refused(run, tmp_path, missing):
    folder = tmp_path / "checkpoint-2"
    shutil.copytree(f"{run.args.output_dir}/checkpoint-2", folder)
    if missing == "checkpoint-9":
        folder = tmp_path / missing
    else:
        (folder / missing).unlink()
    trainer = toy.trainer_for(toy.config_for(tmp_path, "lora_both", lora_dropout=0.1, **SAVED))
    with pytest.raises(ValueError, match="`resume_from_checkpoint` must be a "):
        trainer.train(resume_from_checkpoint=str(folder))


@pytest.mark.slow
def test_the_share_of_dropped_captions_is_that_of_the_collator(packed, tmp_path):
    def trainer(share):
        made = packed_trainer(packed, tmp_path, **SAVED)
        made.data_collator.caption_drop = share
        return made

    trainer(0.1).train()
    with pytest.raises(ValueError, match=r"`caption_drop` must be 0\.1 as in .*checkpoint-2, got 0\.3"):
        trainer(0.3).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def test_the_last_checkpoint_is_loaded_and_not_trained_on(run, tmp_path, caplog):
    trainer = toy.trainer_for(toy.config_for(tmp_path, "lora_both", lora_dropout=0.1, **SAVED))
    output = trainer.train(resume_from_checkpoint=f"{run.args.output_dir}/checkpoint-4")
    assert output.global_step == 4
    expected = run.model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in trainer.model.state_dict().items())


# Longer and shorter runs


@pytest.fixture(scope="module")
def packed():
    """Return 24 prepared texts of a few tokens; an epoch of them fills seven packs of 80."""
    model, processor = toy.load_model(), toy.load_processor()
    texts = [{"text": f"{number} " * (5 + number % 7)} for number in range(24)]
    return {"texts": prepare_rows(texts, model, processor)}


def losses(trainer):
    """Return the loss and the norm of the gradients of every logged step."""
    return [(log["loss"], log["grad_norm"]) for log in trainer.state.log_history if "loss" in log]


def packed_trainer(packed, folder, *, plan=None, **options):
    processor = toy.load_processor()
    args = toy.config_for(
        folder, "lora_both", per_device_train_batch_size=2, allow_unreached=True, max_length=80, **options
    )
    lengths = {name: rows.lengths for name, rows in packed.items()}
    plan = make_plan(lengths, max_length=80, **(plan or {"num_packs": 2 * args.max_steps}))
    return toy.JanusProSFTTrainer(
        toy.load_model(),
        args,
        train_dataset=PackedDataset(packed, plan),
        data_collator=JanusProCollator(processor, return_task_ids=True, always_picture=False),
        processing_class=processor,
    )


def test_a_finished_run_is_made_longer(packed, tmp_path):
    straight = packed_trainer(packed, tmp_path / "straight", max_steps=7)
    straight.train()
    folder = tmp_path / "longer"
    packed_trainer(packed, folder, **SAVED).train()
    longer = packed_trainer(packed, folder, **SAVED | {"max_steps": 7})
    longer.train(resume_from_checkpoint=True)
    assert longer.state.global_step == 7
    assert losses(longer) == losses(straight)


@pytest.mark.slow
def test_another_plan_is_refused(packed, tmp_path):
    trainer = packed_trainer(packed, tmp_path, **SAVED)
    trainer.train()
    for plan in ({"num_packs": 8, "seed": 1}, {"epochs": 2}, {"epochs": 1.5}):
        with pytest.raises(ValueError, match=f"was trained with plan_hash '{trainer.facts['plan_hash']}', this run"):
            packed_trainer(packed, tmp_path, plan=plan, **SAVED).train(resume_from_checkpoint=True)


@pytest.mark.slow
def test_epochs_are_made_more_where_steps_and_packs_agree(packed, tmp_path):
    def trainer(folder, epochs, **options):
        options = {"max_steps": -1, "num_train_epochs": 1, "save_strategy": "steps", "save_steps": 1} | options
        return packed_trainer(packed, tmp_path / folder, plan={"epochs": epochs}, **options)

    one = trainer("one", 1)
    one.train()
    steps, packs = one.state.global_step, one.facts["packs"]
    assert packs == 2 * steps - 1, "the last step is a smaller one"
    with pytest.raises(ValueError, match=f"at the end of its data, {packs} packs"):
        trainer("one", 2).train(resume_from_checkpoint=True)
    straight = trainer("straight", 2)
    straight.train()
    longer = trainer("one", 2)
    longer.train(resume_from_checkpoint=str(tmp_path / "one" / f"checkpoint-{steps - 1}"))
    assert losses(longer)[: steps - 1] == losses(one)[: steps - 1]
    assert losses(longer) == losses(straight)


def test_a_run_ends_at_its_stop_step_and_goes_on_later(tmp_path):
    options = {"lr_scheduler_type": "cosine", "save_strategy": "steps", "save_steps": 100}

    def trainer(folder, **more):
        return toy.trainer_for(toy.config_for(tmp_path / folder, "lora_both", **options, **more))

    straight = trainer("straight")
    straight.train()
    stopped = trainer("run", stop_step=3, resume_from_checkpoint="auto")
    assert stopped.train().global_step == 3
    assert stopped.train().global_step == 3
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-3"]
    assert trainer("run", stop_step=3, resume_from_checkpoint="auto").train().global_step == 3
    on = trainer("run", resume_from_checkpoint="auto")
    on.train()
    assert toy.trajectory(on) == toy.trajectory(straight)


@pytest.mark.parametrize("stop_step", [0, -1])
def test_a_stop_step_below_one_is_refused(stop_step, tmp_path):
    with pytest.raises(ValueError, match="`stop_step` must be at least 1"):
        toy.config_for(tmp_path, stop_step=stop_step)


def test_an_explicit_accumulation_is_not_overwritten(tmp_path):
    options = {"total_batch_size": 8, "per_device_train_batch_size": 2}
    assert toy.config_for(tmp_path, **options).gradient_accumulation_steps == 4
    assert toy.config_for(tmp_path, **options, gradient_accumulation_steps=4).gradient_accumulation_steps == 4
    assert toy.config_for(tmp_path).gradient_accumulation_steps == 1
    with pytest.raises(ValueError, match="`gradient_accumulation_steps` must be 4 with total_batch_size=8.*got 1"):
        toy.config_for(tmp_path, **options, gradient_accumulation_steps=1)


# Recipes


def test_a_recipe_in_epochs_is_told_and_made_longer(raw_recipe, tmp_path):
    """Three rows each at 1:2: in an epoch every drawing comes once and every question twice."""
    lines = []
    epochs = ["training.max_steps=-1", "training.num_train_epochs=4", "training.logging_steps=1"]
    out = train(raw_recipe, epochs, report=lines.append)
    facts = json.loads((out / "janus_training.json").read_text())
    assert facts["documents"] == {"drawing": 12, "understanding": 24}
    assert facts["visits"] == {"drawing": 4.0, "understanding": 8.0}
    assert "  drawing: 3 rows, 12 documents, each row visited 4.0 times" in lines
    assert any(": 36 documents, " in line and line.endswith(" tokens") for line in lines)
    assert any("s per step: " in line and line.endswith(" steps left") for line in lines)
    with pytest.raises(ValueError, match="num_train_epochs must be left out with training.max_steps=4"):
        train(raw_recipe, ["training.num_train_epochs=4"])


@pytest.mark.slow
def test_a_changed_learning_rate_starts_a_finished_run_anew(raw_recipe):
    steps = ["training.max_steps=1"]
    train(raw_recipe, steps)
    lines = []
    train(raw_recipe, steps, report=lines.append)
    assert any("nothing is left to do" in line for line in lines)
    resumed = [*steps, "training.learning_rate=1e-3", "training.resume_from_checkpoint=auto"]
    with pytest.raises(ValueError, match=r"`learning_rate` must be 4e-05 as in .*, got 0\.001"):
        train(raw_recipe, resumed)
    train(
        raw_recipe, [*resumed, "training.max_steps=2", "training.resume_changes=[learning_rate]"], report=lines.append
    )
    assert lines[-1].endswith("full, 2 steps")


def test_long_plans_and_streams_are_estimated(tmp_path):
    args = toy.config_for(tmp_path, max_steps=1000, per_device_train_batch_size=4, max_length=100, stop_step=500)
    lines = forecast(args, {"a": np.array([10] * 30), "b": np.array([40] * 10)}, {"a": 2, "b": 1})
    assert lines[0] == "500 steps of 4 packs: about 10,000 documents, about 199,990 tokens"
    assert lines[2] == "  b: 10 rows, about 3,333 documents, each row visited about 333.3 times"


# Parts that no row reaches

TASKS = ("text", "understanding", "drawing")


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("present", [c for n in range(1, 4) for c in itertools.combinations(TASKS, n)], ids="+".join)
def test_a_trained_part_that_no_row_reaches_is_named(stage, present):
    unreached = [part for part in STAGES[stage].parts if not REACHED_BY[part] & {*present}]
    sources = {f"source_{task}": {task} for task in present}
    if not unreached:
        check_reached(stage, STAGES[stage].parts, sources)
        return
    with pytest.raises(ValueError, match=f"The stage {stage!r} trains .*, got sources without such rows") as refusal:
        check_reached(stage, STAGES[stage].parts, sources)
    for name in (*unreached, *sources):
        assert name in str(refusal.value)


@pytest.mark.slow
def test_a_recipe_whose_part_is_not_reached_is_refused(raw_recipe):
    alone = "data.sources=[{name: talk, path: " + str(raw_recipe.parent / "understanding.jsonl") + ", ratio: 1}]"
    with pytest.raises(ValueError, match=r"'lora_drawing' trains generation_aligner, generation_head.*\(talk: und"):
        train(raw_recipe, [alone, "training.stage=lora_drawing"])
    allowed = [alone, "training.stage=lora_drawing", "training.allow_unreached=true", "training.max_steps=1"]
    assert (train(raw_recipe, allowed) / "adapter_config.json").is_file()


def test_a_trainer_whose_part_is_not_reached_is_refused(packed, tmp_path):
    lengths = {name: rows.lengths for name, rows in packed.items()}
    dataset = PackedDataset(packed, make_plan(lengths, max_length=80))
    for stage, option in (("full", {}), ("lora_understanding", {}), ("lora_drawing", {"lora_vision_tower": True})):
        with pytest.raises(ValueError, match=rf"The stage '{stage}' trains .*\(texts: text\)"):
            toy.JanusProSFTTrainer(
                toy.load_model(),
                toy.config_for(tmp_path, stage, **option),
                train_dataset=dataset,
                data_collator=toy.collate,
                processing_class=toy.load_processor(),
            )


class StopEarly(TrainerCallback):
    """A callback of the user that ends the training after two steps."""

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == 2


def test_a_callback_that_stops_early_is_a_finished_run(tmp_path):
    trainer = toy.trainer_for(toy.config_for(tmp_path), callbacks=[StopEarly()])
    assert trainer.train().global_step == 2
