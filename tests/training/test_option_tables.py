"""Every option of TRL's and transformers' configurations, and every argument of their trainers, is sorted.

The names come from the installed versions, so that an option of a new version fails here until it is sorted.
"""

import inspect
from dataclasses import fields

import numpy as np
import pytest
import torch
import toy
from datasets import Dataset
from test_codec import make_codec
from transformers import Trainer, TrainerCallback, TrainingArguments
from trl import SFTConfig, SFTTrainer

from janus_hf.data import JanusProCollator
from janus_hf.training import JanusProSFTConfig
from janus_hf.training.recipes import Recipe, load_recipe
from janus_hf.training.run import build_trainer
from janus_hf.training.trainers.codec import CodecTrainer, CodecTrainingArguments
from janus_hf.training.trainers.option_tables import (
    CODEC_FIXED,
    CODEC_KEYWORDS,
    CODEC_PASSED_ON,
    CODEC_REFUSED,
    SFT_FIXED,
    SFT_KEYWORDS,
    SFT_PASSED_ON,
    SFT_REFUSED,
)


def names(config):
    return {entry.name for entry in fields(config) if entry.init}


def test_every_option_of_the_fine_tuning_is_sorted():
    assert names(SFTConfig) - SFT_PASSED_ON - SFT_FIXED.keys() == set()
    assert SFT_PASSED_ON & SFT_FIXED.keys() == set()


def test_every_option_of_the_codec_is_sorted():
    assert names(TrainingArguments) - CODEC_PASSED_ON - CODEC_FIXED.keys() == set()
    assert CODEC_PASSED_ON & CODEC_FIXED.keys() == set()


def test_every_argument_of_the_trainers_is_sorted():
    own = {"self", "model", "args", "data_collator", "train_dataset", "processing_class"}
    bases = {*inspect.signature(SFTTrainer.__init__).parameters, *inspect.signature(Trainer.__init__).parameters}
    assert bases - own - SFT_KEYWORDS - SFT_REFUSED.keys() == set()
    assert {*inspect.signature(Trainer.__init__).parameters} - {
        "self",
        "model",
    } == CODEC_KEYWORDS | CODEC_REFUSED.keys()


def another(value):
    """A value of the same kind that is not this one."""
    if isinstance(value, bool):
        return not value
    return {str: "another", float: 0.5, list: ["another"]}.get(type(value), "another")


def sft(tmp_path, **options):
    return JanusProSFTConfig(**{"output_dir": str(tmp_path), "stage": "stage1", "use_cpu": True, **options})


def codec_arguments(tmp_path, **options):
    return CodecTrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none", **options)


@pytest.mark.parametrize("name", SFT_FIXED)
def test_a_fixed_option_of_the_fine_tuning_is_refused_by_name(tmp_path, name):
    with pytest.raises((ValueError, TypeError), match=rf"`{name}` must be .*, got .*: \w+"):
        sft(tmp_path, **{name: another(SFT_FIXED[name][0][-1])})
    for value in SFT_FIXED[name][0]:
        assert getattr(sft(tmp_path, **{name: value}), name) in SFT_FIXED[name][0]


@pytest.mark.parametrize("name", CODEC_FIXED)
def test_a_fixed_option_of_the_codec_is_refused_by_name(tmp_path, name):
    with pytest.raises((ValueError, TypeError), match=rf"`{name}` must be .*, got .*: \w+"):
        codec_arguments(tmp_path, **{name: another(CODEC_FIXED[name][0][-1])})
    for value in CODEC_FIXED[name][0]:
        codec_arguments(tmp_path, **{name: value})


def test_a_configuration_can_be_made_again_from_its_own_values(tmp_path):
    args = sft(tmp_path, stage="lora_both", lora_r=4)
    again = JanusProSFTConfig(**{entry.name: getattr(args, entry.name) for entry in fields(args) if entry.init})
    assert again.lora_r == 4


@pytest.mark.parametrize("name", sorted(SFT_REFUSED))
def test_an_argument_of_the_trainer_without_an_effect_is_refused_by_name(tmp_path, name):
    with pytest.raises(TypeError, match=rf"`{name}` must be left out of this trainer, got .*: \w+"):
        toy.trainer_for(toy.config_for(tmp_path), **{name: print})


@pytest.mark.parametrize("name", sorted(CODEC_REFUSED))
def test_an_argument_of_the_codec_trainer_without_an_effect_is_refused_by_name(tmp_path, name):
    with pytest.raises(TypeError, match=rf"`{name}` must be left out of this trainer, got .*: \w+"):
        CodecTrainer(make_codec(), args=codec_arguments(tmp_path), **{name: print})


def test_unknown_arguments_of_the_trainers(tmp_path):
    for make in (
        lambda: CodecTrainer(make_codec(), args=codec_arguments(tmp_path), colour=1),
        lambda: toy.trainer_for(toy.config_for(tmp_path), colour=1),
    ):
        with pytest.raises(TypeError, match="`colour` must be an argument of this trainer"):
            make()


@pytest.mark.parametrize(
    "wrong", [None, "a/processor", toy.load_processor().tokenizer], ids=["none", "name", "tokenizer"]
)
def test_a_wrong_processor_is_refused(tmp_path, wrong):
    model = toy.load_model()
    with pytest.raises(TypeError, match="`processing_class` must be the model's JanusProProcessor, got"):
        toy.JanusProSFTTrainer(
            model, toy.config_for(tmp_path), train_dataset=[], data_collator=toy.collate, processing_class=wrong
        )
    with pytest.raises(TypeError, match="`args` must be a CodecTrainingArguments"):
        CodecTrainer(make_codec(), args=TrainingArguments(output_dir=str(tmp_path), use_cpu=True))


def test_arguments_of_the_model_card(tmp_path):
    trainer = toy.trainer_for(toy.config_for(tmp_path))
    trainer.create_model_card(model_name="mine", tags=None)
    with pytest.raises(TypeError, match="`tags` must be left out of the model card, got .*edit README.md"):
        trainer.create_model_card(tags=["mine"])


class Counter(TrainerCallback):
    """A callback that counts steps."""

    steps = 0

    def on_step_end(self, *arguments, **kwargs):
        self.steps += 1


def test_arguments_of_the_trainer_that_are_passed_on_have_an_effect(tmp_path):
    model, counter = toy.load_model(), Counter()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    trainer = toy.trainer_for(
        toy.config_for(tmp_path, max_steps=2),
        model=model,
        callbacks=[counter],
        optimizers=(optimizer, None),
        eval_dataset=toy.Packs(model.config, rows=3, kinds=(0,)),
        peft_config=None,
    )
    trainer.train()
    assert counter.steps == 2
    assert trainer.optimizer.optimizer is optimizer
    assert trainer.evaluate()["eval_loss"] > 0
    # Predictions would be features of images, not text, and take much memory.
    assert trainer.predict(trainer.eval_dataset).predictions is None
    adam = toy.trainer_for(
        toy.config_for(tmp_path, max_steps=1), optimizer_cls_and_kwargs=(torch.optim.SGD, {"lr": 0.1})
    )
    adam.create_optimizer()
    assert isinstance(adam.optimizer, torch.optim.SGD)


def test_the_codec_is_evaluated_on_its_images(tmp_path):
    rows = [{"pixel_values": image} for image in torch.rand(4, 3, 64, 64) * 2 - 1]
    shapes = []
    trainer = CodecTrainer(
        make_codec(),
        args=codec_arguments(tmp_path, per_device_eval_batch_size=2),
        eval_dataset=rows,
        compute_metrics=lambda found: shapes.append((found.predictions[0].shape, found.label_ids.shape)) or {"x": 1.0},
    )
    metrics = trainer.evaluate()
    assert metrics["eval_loss"] > 0
    assert metrics["eval_x"] == 1
    assert shapes == [((4, 3, 64, 64), (4, 3, 64, 64))]


# Options of this package


def test_every_option_of_ours_is_exercised():
    ours = names(JanusProSFTConfig) - names(SFTConfig)
    assert ours == {
        *("stage", "train_generation_embeddings", "caption_drop", "ratios", "lora_r", "lora_alpha", "lora_dropout"),
        *("lora_vision_tower", "lora_targets", "total_batch_size", "num_processes", "save_layout", "sample_steps"),
        "peak_tflops",
        *("sample_prompts", "sample_questions", "sample_guidance_scale", "sample_max_new_tokens"),
        *("stop_step", "resume_changes", "allow_unreached"),  # test_resuming.py
    }, "a new option needs a row below that shows its effect"


def test_options_of_adapters_have_an_effect(tmp_path):
    def adapters(**options):
        trainer = toy.trainer_for(toy.config_for(tmp_path, "lora_understanding", **options))
        config = trainer.model.peft_config["default"]
        tower = any("vision" in name and "lora_" in name for name, _ in trainer.model.named_parameters())
        embeddings = any("generation_embeddings" in name for name in config.modules_to_save or [])
        return {
            "lora_r": config.r,
            "lora_alpha": config.lora_alpha,
            "lora_dropout": config.lora_dropout,
            "lora_vision_tower": tower,
            "lora_targets": config.target_modules,
            "train_generation_embeddings": embeddings,
        }

    plain = adapters()
    for name, value in {
        "lora_r": 3,
        "lora_alpha": 5.0,
        "lora_dropout": 0.5,
        "lora_vision_tower": True,
        "lora_targets": r".*language_model.*q_proj",
        "train_generation_embeddings": True,
    }.items():
        assert adapters(**{name: value})[name] != plain[name], name


def test_options_of_the_run_have_an_effect(tmp_path):
    assert sft(tmp_path, total_batch_size=8, per_device_train_batch_size=2).gradient_accumulation_steps == 4
    assert toy.trainer_for(toy.config_for(tmp_path, ratios={"a": 2.0})).facts["ratios"] == {"a": 2.0}
    for layout, key in (("original", "language_config"), ("transformers", "text_config")):
        trainer = toy.trainer_for(toy.config_for(tmp_path / layout, save_layout=layout))
        trainer.save_model()
        assert key in (tmp_path / layout / "config.json").read_text()


def test_options_of_samples_have_an_effect(tmp_path, monkeypatch):
    samples = {"sample_steps": 3, "sample_prompts": ["a fox"], "sample_questions": [{"question": "what?"}]}
    samples |= {"sample_guidance_scale": 2.5, "sample_max_new_tokens": 7}
    made = []
    monkeypatch.setattr(
        "janus_hf.training.trainers.base.SampleCallback",
        type("Recorder", (TrainerCallback,), {"__init__": lambda self, *args, **kwargs: made.append(kwargs)}),
    )
    toy.trainer_for(toy.config_for(tmp_path, **samples))
    assert made[0] | {"seed": 0} == {
        "prompts": ["a fox"],
        "questions": [{"question": "what?"}],
        "every": 3,
        "guidance_scale": 2.5,
        "max_new_tokens": 7,
        "seed": 0,
    }


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"lora_r": 8}, "lora_r"),
        ({"lora_alpha": 8}, "lora_alpha"),
        ({"lora_dropout": 0.1}, "lora_dropout"),
        ({"lora_vision_tower": True}, "lora_vision_tower"),
        ({"lora_targets": "x"}, "lora_targets"),
        ({"stage": "lora_both", "save_layout": "transformers"}, "save_layout"),
        ({"sample_guidance_scale": 2.0}, "sample_guidance_scale"),
        ({"sample_max_new_tokens": 5}, "sample_max_new_tokens"),
        ({"do_eval": True}, "do_eval"),
        ({"data_seed": 3}, "data_seed"),
        ({"auto_find_batch_size": True, "total_batch_size": 8}, "auto_find_batch_size"),
    ],
)
def test_an_option_without_an_effect_is_refused_by_name(tmp_path, options, name):
    with pytest.raises(ValueError, match=f"`{name}` must "):
        sft(tmp_path, **options)


@pytest.mark.parametrize(
    ("options", "hooks", "name"),
    [
        ({"perceptual_weight": 0.5}, {}, "perceptual_weight"),
        ({"adversarial_weight": 0.1}, {}, "adversarial_weight"),
        ({"adversarial_start": 5}, {}, "adversarial_start"),
        ({"codebook_weight": 0.5}, {"teacher": print}, "codebook_weight"),
        ({"restart_every": 5}, {"teacher": print}, "restart_every"),
        ({"restart_until": 0.5}, {"teacher": print}, "restart_until"),
        ({}, {"temperature": 0.1}, "temperature"),
    ],
)
def test_an_option_of_the_codec_without_an_effect_is_refused_by_name(tmp_path, options, hooks, name):
    with pytest.raises(ValueError, match=f"`{name}` must "):
        CodecTrainer(make_codec(), args=codec_arguments(tmp_path, **options), **hooks)


def test_captions_are_dropped_by_the_collator(tmp_path):
    def collator(share):
        return JanusProCollator(toy.load_processor(), caption_drop=share)

    for share in (0.1, 0.5):  # the first is the default of both
        toy.trainer_for(toy.config_for(tmp_path, caption_drop=share), data_collator=collator(share))
    toy.trainer_for(toy.config_for(tmp_path), data_collator=collator(0.5))
    with pytest.raises(ValueError, match="`caption_drop` must be that of the collator, 0.5, got 0.2"):
        toy.trainer_for(toy.config_for(tmp_path, caption_drop=0.2), data_collator=collator(0.5))


def test_columns_that_a_trainer_has_dropped_are_named(tmp_path):
    row = {"input_ids": [1, 2], "labels": [-100, 2], "task": "text", "images": [], "prompt_end": -1}
    rows = Dataset.from_list([row, row])
    collator = JanusProCollator(toy.load_processor(), always_picture=False)
    for removes in (True, False):
        args = TrainingArguments(
            str(tmp_path),
            use_cpu=True,
            max_steps=1,
            save_strategy="no",
            disable_tqdm=True,
            remove_unused_columns=removes,
        )
        trainer = Trainer(toy.load_model(), args, train_dataset=rows, data_collator=collator)
        if removes:
            with pytest.raises(ValueError, match="got one without .*remove_unused_columns=False"):
                trainer.train()
        else:
            trainer.train()


# Kinds of values


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("bf16", "no"),
        ("caption_drop", "0.1"),
        ("max_steps", 10.5),
        ("lora_r", True),
        ("activation_checkpointing", "false"),
        ("total_batch_size", "8"),
        ("learning_rate", "1e-4"),
        ("save_layout", 3),
        ("warmup_steps", "ten"),
        ("push_to_hub", 1),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused_by_name(tmp_path, name, value):
    with pytest.raises(TypeError, match=f"`{name}` must be .*, got .*{value!r}.*: convert it"):
        sft(tmp_path, **{name: value})


def test_numbers_of_other_kinds_are_numbers(tmp_path):
    args = sft(tmp_path, learning_rate=np.float64(0.5), max_steps=np.int64(3), weight_decay=0, logging_steps=5)
    assert (args.learning_rate, args.max_steps) == (0.5, 3)


@pytest.mark.parametrize("config", [sft, codec_arguments])
@pytest.mark.parametrize("name", ["tensorboard", "wandb", "tensorbord"])
def test_a_logging_package_that_is_missing_is_named(tmp_path, monkeypatch, config, name):
    monkeypatch.setattr(
        "janus_hf.training.trainers.option_tables.get_available_reporting_integrations", lambda: ["mlflow"]
    )
    with pytest.raises(ValueError, match=rf"`report_to` must name logging .*\(mlflow\), got '{name}': install it"):
        JanusProSFTConfig(output_dir=str(tmp_path), stage="stage1", use_cpu=True, report_to=name)


# Recipes


@pytest.mark.parametrize(
    "name", ["save_strategy", "logging_strategy", "eval_strategy", "include_num_input_tokens_seen"]
)
@pytest.mark.parametrize("word", ["no", "'no'", "No", "off"])
def test_no_in_yaml_is_the_word_no(recipe_file, name, word):
    recipe = load_recipe(recipe_file, [f"training.{name}={word}"])
    assert recipe.training[name] == ("no" if word != "off" else recipe.training[name])
    assert getattr(JanusProSFTConfig(**recipe.training), name) in ("no", False)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.train_sampling_strategy=random", "the plan of the data is shuffled already"),
        ("training.data_seed=1", "training.data_seed must be left out"),
        ("training.ratios={a: 1}", "training.ratios must be left out .*follows from data.sources"),
        ("data.seed=one", "data.seed must be of type int, got 'one'"),
        ("data.streaming='no'", "data.streaming must be of type bool, got 'no'"),
        ("data.sources.0.ratio=much", "The ratio of the source 'mine' must be a number"),
        ("data.sources.0.ratio=-1", "The ratio of the source 'mine' must be a number"),
    ],
)
def test_keys_of_a_recipe_without_an_effect(recipe_file, override, message):
    with pytest.raises(ValueError, match=message):
        load_recipe(recipe_file, [override])


def test_a_recipe_with_its_defaults_written_out(recipe_file):
    recipe = load_recipe(recipe_file, ["training.train_sampling_strategy=sequential", "training.eval_strategy=no"])
    assert isinstance(recipe, Recipe)
    trainer = build_trainer(recipe, load_data=toy.load_data)
    assert trainer.args.eval_strategy == "no"


def test_resuming_stands_in_the_configuration_too(tmp_path):
    options = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    whole = toy.trainer_for(toy.config_for(tmp_path, resume_from_checkpoint="auto", **options))
    whole.train()
    resumed = toy.trainer_for(
        toy.config_for(tmp_path, resume_from_checkpoint=str(tmp_path / "checkpoint-1"), **options)
    )
    steps = Counter()
    resumed.add_callback(steps)
    resumed.train()
    assert steps.steps == 1
