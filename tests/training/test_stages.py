"""Every stage changes exactly the parameters that it is documented to train, and all of them."""

import pytest
import torch
import toy

from janus_hf.training.stages import (
    PARTS,
    STAGES,
    apply_stage,
    base_model,
    lora_config,
    trainable_table,
    trained_parts,
)


EXPECTED = {
    "stage1": {"aligner", "generation_embeddings", "generation_aligner", "generation_head"},
    "stage2": set(PARTS) - {"vision_tower", "codec"},
    "stage3": set(PARTS) - {"codec"},
    "full": set(PARTS) - {"codec"},
}
EXPECTED_WHOLE = {
    "lora_understanding": {"aligner"},
    "lora_drawing": {"generation_aligner", "generation_head"},
    "lora_both": {"aligner", "generation_aligner", "generation_head"},
}


def part_of(name):
    return next(part for part, path in PARTS.items() if name.startswith(f"{path}."))


def moved(before, after):
    return {name for name, value in after.items() if not torch.equal(value, before[name])}


def snapshot(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def test_every_stage_is_tested():
    assert set(EXPECTED) | set(EXPECTED_WHOLE) == set(STAGES)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
@pytest.mark.parametrize("stage", EXPECTED)
def test_whole_parts_move_and_nothing_else(stage, checkpointing, tmp_path):
    # The rows draw every text id and code too rarely to reach all rows of the tables: tensors are compared as a whole.
    trainer = toy.trainer_for(
        toy.config_for(tmp_path, stage, max_steps=2, learning_rate=1e-3, activation_checkpointing=checkpointing)
    )
    before = snapshot(trainer.model)
    trainer.train()
    expected = {name for name in before if part_of(name) in EXPECTED[stage]}
    found = moved(before, snapshot(trainer.model))
    # A softmax does not change when every key gets the same bias, so this gradient is zero up to rounding.
    assert {name for name in expected ^ found if not name.endswith("k_proj.bias")} == set()
    assert all(not parameter.requires_grad for parameter in trainer.model.model.vqmodel.parameters())


@pytest.mark.parametrize("vision_tower", [False, True], ids=["language", "tower"])
@pytest.mark.parametrize("stage", EXPECTED_WHOLE)
def test_adapters_and_whole_modules_move_and_nothing_else(stage, vision_tower, tmp_path):
    args = toy.config_for(tmp_path, stage, max_steps=3, lora_vision_tower=vision_tower, activation_checkpointing=True)
    trainer = toy.trainer_for(args)
    before = snapshot(trainer.model)
    trainer.train()
    found = moved(before, snapshot(trainer.model))
    adapters = {name for name in before if "lora_" in name}
    whole = {name for name in before if ".modules_to_save." in name}
    assert found == adapters | whole
    base = "base_model.model."
    paths = {name.removeprefix(base).split(".modules_to_save.")[0] for name in whole}
    assert paths == {PARTS[part] for part in EXPECTED_WHOLE[stage]}
    sites = {part_of(name.removeprefix(base)) for name in adapters}
    assert sites == ({"language_model", "vision_tower"} if vision_tower else {"language_model"})
    linear = {name.split(".lora_")[0].rpartition(".")[2] for name in adapters if "language_model" in name}
    assert linear == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def test_code_embeddings_are_a_choice():
    assert "generation_embeddings" not in trained_parts("stage1", train_generation_embeddings=False)
    assert "generation_embeddings" in trained_parts("lora_drawing", train_generation_embeddings=True)


def test_table_counts_every_parameter_once():
    model = toy.load_model()
    apply_stage(model, "stage2")
    rows = [line.split("|") for line in trainable_table(model).splitlines()[2:]]
    total, trained = (int(cell.replace(",", "")) for cell in rows[-1][2:4])
    assert total == sum(parameter.numel() for parameter in model.parameters())
    assert trained == sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def test_bad_names_and_targets_are_refused():
    model = toy.load_model()
    with pytest.raises(ValueError, match="stage1, stage2.*stage4"):
        apply_stage(model, "stage4")
    with pytest.raises(ValueError, match="get_peft_model"):
        apply_stage(model, "lora_both")
    with pytest.raises(ValueError, match="apply_stage"):
        lora_config(model, "stage1")
    with pytest.raises(ValueError, match="which match no module"):
        lora_config(model, "lora_both", targets=r".*\.query")
    with pytest.raises(ValueError, match="never trained.*vqmodel"):
        lora_config(model, "lora_both", targets=r".*conv.*")
    with pytest.raises(ValueError, match="as a whole"):
        lora_config(model, "lora_both", targets=r"model\.aligner\.fc1")


# Checkpointing


@pytest.mark.parametrize("stage", ["stage1", "stage2", "lora_understanding"])
def test_a_frozen_language_model_is_checkpointed_too(stage, tmp_path):
    """The layers keep only their inputs, so everything inside them runs again in the backward pass."""
    trainer = toy.trainer_for(toy.config_for(tmp_path, stage, max_steps=1, activation_checkpointing=True))
    base = base_model(trainer.model)
    calls = []
    for layer in base.model.language_model.layers:
        layer.mlp.register_forward_pre_hook(lambda *args: calls.append(0))
    trainer.train()
    assert len(calls) == 2 * len(base.model.language_model.layers)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
def test_frozen_parts_have_no_dropout(checkpointing, tmp_path):
    losses = []
    for dropout in (0.0, 0.5):
        model = toy.load_model()
        for layer in model.model.language_model.layers:
            layer.self_attn.attention_dropout = dropout
        args = toy.config_for(tmp_path, "stage1", max_steps=2, activation_checkpointing=checkpointing)
        trainer = toy.trainer_for(args, model=model)
        trainer.train()
        losses.append(toy.trajectory(trainer))
    assert losses[0] == losses[1]


@pytest.mark.parametrize(
    ("stage", "fields", "learns"),
    [
        ("stage1", {}, False),
        ("stage2", {}, False),
        ("lora_understanding", {}, False),
        ("lora_understanding", {"lora_vision_tower": True}, True),
        ("stage3", {}, True),
    ],
)
@pytest.mark.parametrize("reentrant", [False, True], ids=["", "reentrant"])
def test_a_frozen_tower_is_not_back_propagated(stage, fields, learns, reentrant, tmp_path):
    """Reentrant checkpointing (TRL's choice under ZeRO-3 with adapters) makes inputs require gradients elsewhere."""
    args = toy.config_for(
        tmp_path,
        stage,
        max_steps=1,
        activation_checkpointing=True,
        activation_checkpointing_kwargs={"use_reentrant": reentrant},
        **fields,
    )
    trainer = toy.trainer_for(args)
    base = base_model(trainer.model)
    seen, before = [], snapshot(trainer.model)
    base.model.vision_model.register_forward_hook(
        lambda module, args, output: seen.append(output.last_hidden_state.requires_grad)
    )
    trainer.train()
    assert seen == [learns]
    after = snapshot(trainer.model)
    assert any("vision_model" in name for name in moved(before, after)) == learns
    assert any("aligner" in name and "generation" not in name for name in moved(before, after))
