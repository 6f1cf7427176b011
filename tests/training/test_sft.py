"""`JanusProSFTTrainer`: it learns, logs and saves models, adapters and cards, and stops at faults."""

import copy
import json
import os
import re
import stat

import peft
import pytest
import torch
import toy
from transformers import AutoModelForMultimodalLM

from janus_hf import JanusProForConditionalGeneration, JanusProPipeline
from janus_hf.errors import CheckpointError
from janus_hf.training import merge_adapter
from janus_hf.training.batches import with_dummy_picture
from janus_hf.training.mixture import TrainingData
from janus_hf.training.run import train
from janus_hf.training.stages import base_model


def overfit(tmp_path, count, steps):
    """Train on `count` images and `count` answers; return how many of each are then generated exactly, greedily."""
    model = toy.load_model()
    trainer = toy.trainer_for(
        toy.config_for(
            tmp_path,
            "full",
            max_steps=steps,
            per_device_train_batch_size=2 * count,
            learning_rate=3e-3,
            lr_scheduler_type="cosine",
            logging_steps=steps,
        ),
        model=model,
        kinds=(toy.DRAWING, toy.UNDERSTANDING),
        rows=1,
        per_row=1,
    )
    rows = [[toy.document(kind, i, model.config)] for i in range(count) for kind in (toy.DRAWING, toy.UNDERSTANDING)]
    trainer.train_dataset = rows
    trainer.train()
    model = trainer.model.eval()
    num_text = model.config.text_config.vocab_size
    generated = answered = 0
    for row in rows:
        part = row[0]
        start = next(i for i, label in enumerate(part["labels"]) if label != -100)
        prompt, target = torch.tensor([part["input_ids"][:start]]), torch.tensor(part["input_ids"][start:])
        if part["kind"] == toy.DRAWING:
            codes = model.generate_images(prompt, guidance_scale=1.0, do_sample=False)
            generated += torch.equal(codes[0], target - num_text)
        else:
            # Toy answers have no end of sentence, so as many tokens as they have are compared.
            found = model.generate(
                prompt,
                pixel_values=part["pixel_values"],
                max_new_tokens=len(target),
                min_new_tokens=len(target),
                do_sample=False,
            )
            answered += torch.equal(found[0, start:], target)
    return generated, answered


def test_four_images_and_answers_are_learned_by_heart(tmp_path):
    assert overfit(tmp_path, 4, steps=100) == (4, 4)


@pytest.mark.slow
def test_sixteen_images_and_answers_are_learned_by_heart(tmp_path):
    assert overfit(tmp_path, 16, steps=400) == (16, 16)


def test_losses_per_task_add_up_to_the_losses_per_head(tmp_path):
    """Two tasks train text here, and two steps of two micro-batches lie between the logs."""
    args = toy.config_for(
        tmp_path, max_steps=2, logging_steps=2, per_device_train_batch_size=3, gradient_accumulation_steps=2
    )
    trainer = toy.trainer_for(args)
    trainer.train()
    log = trainer.state.log_history[0]
    assert log["loss_drawing"] == pytest.approx(log["image_loss"], rel=1e-6)
    assert min(log["loss_text"], log["loss_understanding"]) < log["text_loss"]
    assert max(log["loss_text"], log["loss_understanding"]) > log["text_loss"]
    assert (log["text_labels"], log["image_labels"]) == (44, 256)
    whole = (log["text_loss"] * 44 + log["image_loss"] * 256) / 300  # both steps have as many labels
    assert log["loss"] == pytest.approx(whole, rel=1e-5)


def test_batches_need_no_task_ids(tmp_path):
    trainer = toy.trainer_for(
        toy.config_for(tmp_path, max_steps=1), data_collator=lambda rows: toy.collate(rows, with_tasks=False)
    )
    trainer.train()
    assert "text_loss" in trainer.state.log_history[0]
    assert "loss_text" not in trainer.state.log_history[0]


def test_evaluation_logs_its_own_losses(tmp_path):
    model = toy.load_model()
    trainer = toy.trainer_for(
        toy.config_for(tmp_path, max_steps=1, per_device_eval_batch_size=3),
        model=model,
        eval_dataset=toy.Packs(model.config, rows=6, kinds=(0, 1, 2)),
    )
    metrics = trainer.evaluate()
    logged = trainer.state.log_history[-1]
    assert logged["eval_loss_drawing"] == pytest.approx(logged["eval_image_loss"])
    assert metrics["eval_loss"] > 0


# Faults that stop a run


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_infinite_losses_and_gradients_stop_before_the_optimizer_moves(where, tmp_path):
    model = toy.load_model()
    trainer = toy.trainer_for(toy.config_for(tmp_path), model=model)
    if where == "loss":
        model.model.generation_head.register_forward_hook(lambda module, args, output: output * float("inf"))
    else:
        model.lm_head.weight.register_hook(lambda gradient: gradient * float("nan"))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(FloatingPointError, match="step 1"):
        trainer.train()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_rows_without_a_trained_label_stop(tmp_path):
    def unlabelled(rows):
        batch = toy.collate(rows)
        return {**batch, "labels": torch.full_like(batch["labels"], -100)}

    with pytest.raises(ValueError, match="no trained label"):
        toy.trainer_for(toy.config_for(tmp_path), data_collator=unlabelled).train()


def test_processes_and_fsdp_are_asserted(tmp_path, monkeypatch):
    args = toy.config_for(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="started 2 processes but this one works with 1"):
        toy.trainer_for(args)
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match="FSDP was asked for but is not active"):
        toy.trainer_for(args)


@pytest.mark.parametrize("stage", ["stage1", "lora_both"])
def test_trained_weights_stay_in_float32(stage, tmp_path):
    """Trained weights are float32 under bfloat16 autocast, frozen weights stay bfloat16."""
    with pytest.raises(ValueError, match="must be float32, got torch.bfloat16.*bf16=True"):
        toy.trainer_for(toy.config_for(tmp_path, "stage1"), model=toy.load_model().bfloat16())
    args = toy.config_for(tmp_path, stage, bf16=True, max_steps=2, save_strategy="steps", save_steps=2)
    trainer = toy.trainer_for(args, model=toy.load_model().bfloat16())
    trainer.train()
    for parameter in trainer.model.parameters():
        assert parameter.dtype == (torch.float32 if parameter.requires_grad else torch.bfloat16)
    trained = {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}
    resumed = toy.trainer_for(args, model=toy.load_model().bfloat16())
    resumed.restore(str(tmp_path / "checkpoint-2"))
    assert all(torch.equal(p, trained[name]) for name, p in resumed.model.named_parameters() if p.requires_grad)


def test_wrong_kinds_of_arguments_are_refused(tmp_path):
    args = toy.config_for(tmp_path)
    with pytest.raises(TypeError, match="data_collator"):
        toy.trainer_for(args, data_collator=None)
    with pytest.raises(TypeError, match="loaded JanusPro"):
        toy.JanusProSFTTrainer("a/model", args, train_dataset=[], data_collator=toy.collate, processing_class=None)


def test_dummy_picture_checks_the_contract():
    config = toy.load_model().config
    batch = toy.collate([[toy.document(toy.DRAWING, 0, config)]])
    with pytest.raises(ValueError, match="no attention_mask"):
        with_dummy_picture({**batch, "attention_mask": torch.ones_like(batch["labels"])}, config)
    long = {name: value.repeat(1, 8)[:, :500] for name, value in batch.items()}
    with pytest.raises(ValueError, match="Set max_length to 448"):
        with_dummy_picture(long, config)


# Memory


@pytest.mark.parametrize("stage", ["full", "lora_both"])
def test_full_logits_are_never_held(stage, tmp_path, monkeypatch):
    """Neither head receives more than one chunk of positions at a time, in the forward or the backward pass."""
    from janus_hf.modeling import loss

    monkeypatch.setattr(loss.chunked_cross_entropy, "__kwdefaults__", {"chunk_size": 16})
    model = toy.load_model()
    seen = {"lm_head": [], "generation_head": []}
    trainer = toy.trainer_for(toy.config_for(tmp_path, stage, max_steps=2), model=model, per_row=2)
    model.lm_head.register_forward_hook(lambda m, a, output: seen["lm_head"].append(len(output)))
    model.model.generation_head.register_forward_hook(lambda m, a, out: seen["generation_head"].append(len(out)))
    trainer.train()
    assert max(seen["lm_head"]) <= 16
    assert max(seen["generation_head"]) == 16
    assert len(seen["generation_head"]) >= 2 * 2 * 256 // 16  # forward and again in the backward pass


# Saving


def test_saved_model_loads_everywhere(tmp_path):
    trainer = toy.trainer_for(toy.config_for(tmp_path, "stage2", max_steps=2))
    trainer.train()
    trainer.save_model()
    expected = trainer.model.state_dict()
    trainer._save(str(tmp_path / "gathered"), state_dict=dict(expected))  # FSDP's way: `save_model` gathers first
    for loaded in (
        JanusProForConditionalGeneration.from_pretrained(tmp_path / "gathered"),
        JanusProForConditionalGeneration.from_pretrained(tmp_path),
        AutoModelForMultimodalLM.from_pretrained(tmp_path),
        JanusProPipeline.from_pretrained(tmp_path).model,
    ):
        found = loaded.state_dict()
        assert all(torch.equal(value, found[name]) for name, value in expected.items())


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    """Save a base model and an adapter trained on it; return their folder and the trained model's logits."""
    root = tmp_path_factory.mktemp("adapter")
    toy.load_model().save_pretrained(root / "base")
    toy.load_processor().save_pretrained(root / "base")
    model = JanusProForConditionalGeneration.from_pretrained(root / "base")
    trainer = toy.trainer_for(
        toy.config_for(root / "adapter", "lora_both", max_steps=4, learning_rate=1e-2), model=model
    )
    trainer.train()
    trainer.save_model()
    trainer.create_model_card()
    return root, outputs(trainer.model)


def outputs(model):
    """Return the logits of both heads, of one question about an image and one image to generate."""
    model = model.eval()
    config = model.config
    part = toy.document(toy.UNDERSTANDING, 1, config)
    base = base_model(model)
    with torch.no_grad():
        ids = torch.tensor([part["input_ids"]])
        text = model(input_ids=ids, pixel_values=part["pixel_values"]).logits
        codes = torch.tensor([toy.document(toy.DRAWING, 0, config)["input_ids"]])
        image = base.model.generation_head(base.model(input_ids=codes).last_hidden_state)
    return torch.cat([text.flatten(), image.flatten()])


def test_adapter_is_the_same_in_peft_pipeline_and_merged(adapter, tmp_path):
    root, expected = adapter
    base = JanusProForConditionalGeneration.from_pretrained(root / "base")
    assert not torch.allclose(outputs(base), expected, atol=1e-2)

    plain = peft.PeftModel.from_pretrained(base, root / "adapter")
    assert torch.equal(outputs(plain), expected)

    pipe = JanusProPipeline.from_pretrained(root / "base")
    pipe.load_lora_weights(str(root / "adapter"))
    assert torch.equal(outputs(pipe.model), expected)

    for layout in ("original", "transformers"):
        folder = merge_adapter(root / "adapter", tmp_path / layout, layout=layout)
        assert re.search(r"\|\n\nIts weights are those of .* merged into them\.\n", (folder / "README.md").read_text())
        merged = JanusProPipeline.from_pretrained(folder).model
        torch.testing.assert_close(outputs(merged), expected, atol=1e-4, rtol=1e-4)


def test_adapter_states_its_base_and_its_training(adapter):
    root, _ = adapter
    config = json.loads((root / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(root / "base")
    card = (root / "adapter" / "README.md").read_text()
    for stated in ("library_name: peft", "lora_both", "lora_r | 16", "| language_model |"):
        assert stated in card


def test_bad_merges_are_refused(adapter, tmp_path):
    root, _ = adapter
    with pytest.raises(ValueError, match="not empty"):
        merge_adapter(root / "adapter", root / "base")
    other = toy.load_model().config
    other.text_config.hidden_size = other.vision_config.projection_dim = other.vq_config.projection_dim = 32
    other.text_config.head_dim = 8
    JanusProForConditionalGeneration(other).save_pretrained(tmp_path / "other")
    with pytest.raises(CheckpointError, match="cannot be merged"):
        merge_adapter(root / "adapter", tmp_path / "out", base=tmp_path / "other")


def test_adapter_training_from_a_recipe_merges(adapter, tmp_path):
    """An adapter that was trained from a recipe is merged without naming its base model again."""
    root, _ = adapter
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        f"model: {{path: {root / 'base'}}}\n"
        "data: {sources: [{name: a, path: b, ratio: 1}]}\n"
        f"training: {{stage: lora_drawing, output_dir: {tmp_path / 'run'}, max_steps: 1, use_cpu: true,\n"
        "  save_strategy: 'no', report_to: none, max_length: 256, disable_tqdm: true}\n"
    )
    model = toy.load_model()
    data = TrainingData(toy.Packs(model.config, rows=4, kinds=(2,)), toy.collate)
    out = train(recipe, load_data=lambda *parts: data)
    JanusProPipeline.from_pretrained(merge_adapter(out, tmp_path / "merged"))


@pytest.mark.skipif(os.name != "posix", reason="permissions of other systems differ")
@pytest.mark.parametrize("stage", ["stage3", "lora_both"])
def test_checkpoints_have_the_permissions_of_the_umask(tmp_path, stage):
    before = os.umask(0o027)
    try:
        trainer = toy.trainer_for(toy.config_for(tmp_path, stage))
        trainer.save_model(str(tmp_path / "saved"))
    finally:
        os.umask(before)
    weights = list((tmp_path / "saved").rglob("*.safetensors"))
    assert weights
    assert {stat.S_IMODE(path.stat().st_mode) for path in weights} == {0o640}
