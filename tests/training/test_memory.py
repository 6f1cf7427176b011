"""The memory estimates: parameter counts are the trainer's, and the documented table is the computed one."""

import copy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import toy
from peft import get_peft_model

from janus_hf import JanusProConfig, JanusProForConditionalGeneration
from janus_hf.training.memory import (
    GIB,
    Memory,
    estimate_memory,
    memory_table,
    recipe_memory,
    recipes_table,
    released_config,
)
from janus_hf.training.recipes import load_recipe
from janus_hf.training.reports import memory_report
from janus_hf.training.reports.memory_report import estimate_run
from janus_hf.training.stages import STAGES, apply_stage, base_model, lora_config
from janus_hf.training.trainers.guards import keep_trained_in_float32


@pytest.mark.parametrize("stage", STAGES)
def test_counts_are_the_trainers_own(stage, tmp_path):
    model = toy.load_model()
    memory = estimate_memory(model.config, stage, lora_r=16)
    trainer = toy.trainer_for(toy.config_for(tmp_path, stage), model=model)
    trained = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    everything = sum(p.numel() for p in trainer.model.parameters())
    assert memory.gradients * GIB / 4 == pytest.approx(trained)
    assert memory.optimizer == pytest.approx(2 * memory.gradients)
    assert memory.weights * GIB / 4 == pytest.approx(everything)


def test_sharding_checkpointing_and_chunks_save_memory():
    config = toy.load_model().config
    whole = estimate_memory(config, "full")
    zero2 = estimate_memory(config, "full", sharding="zero2", num_processes=4)
    fsdp2 = estimate_memory(config, "full", sharding="fsdp2", num_processes=4)
    assert (zero2.weights, zero2.optimizer) == (whole.weights, whole.optimizer / 4)
    assert (fsdp2.weights, fsdp2.gradients) == (whole.weights / 4, whole.gradients / 4)
    assert estimate_memory(config, "full", checkpointing=False).activations > whole.activations
    assert estimate_memory(config, "full", chunk_size=4096).logits == pytest.approx(4 * whole.logits)


def narrow_config(layers):
    """Return the configuration of a model whose sizes differ from each other, so that no two terms can be confused."""
    config = copy.deepcopy(toy.load_model().config)
    text = config.text_config
    text.hidden_size, text.intermediate_size, text.num_hidden_layers = 64, 176, layers
    text.num_attention_heads = text.num_key_value_heads = 4
    text.head_dim = 16
    config.vision_config.projection_dim = config.vq_config.projection_dim = 64
    config.vq_config.image_token_embed_dim = 64
    return config


def kept_bytes(config, stage, dtype, tokens, checkpointing):
    """Return the bytes that the language model keeps for the backward pass under autocast, parameters aside."""
    model = JanusProForConditionalGeneration(config).to(dtype)
    if STAGES[stage].lora:
        model = get_peft_model(model, lora_config(model, stage, rank=4))
        keep_trained_in_float32(model, autocast=True)
    else:
        apply_stage(model, stage)
    base = base_model(model)
    if checkpointing:
        base.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # the tensor, so that its address stays its own
        return tensor

    ids = torch.randint(5, 300, (1, tokens))
    embeds = base.get_input_embeddings()(ids).detach().requires_grad_()  # below, an aligner is trained
    positions = torch.arange(tokens)[None] % 50  # packed documents, so that the attention has a mask
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16):
        base.model.language_model(inputs_embeds=embeds, position_ids=positions, use_cache=False)
    return sum(size for size, _ in kept.values())


# FSDP2 gives the layers bfloat16 weights, which are trained.
KINDS = [
    ("full", torch.float32, "ddp"),
    ("stage1", torch.float32, "ddp"),
    ("full", torch.bfloat16, "fsdp2"),
    ("stage1", torch.bfloat16, "fsdp2"),
    ("lora_both", torch.bfloat16, "ddp"),
    ("lora_both", torch.float32, "ddp"),
]


@pytest.mark.parametrize("checkpointing", [True, False])
@pytest.mark.parametrize(("stage", "dtype", "sharding"), KINDS)
def test_activations_are_those_that_autograd_keeps(stage, dtype, sharding, checkpointing):
    """Models of two and of four layers are compared, so that what is outside the layers does not count."""
    tokens = 96
    measured, estimated = [], []
    for layers in (2, 4):
        config = narrow_config(layers)
        options = {"tokens": tokens, "length": tokens, "checkpointing": checkpointing, "lora_r": 4}
        memory = estimate_memory(config, stage, dtype=str(dtype).removeprefix("torch."), sharding=sharding, **options)
        # Without checkpointing, the graph holds the copies of weights that autocast makes.
        copies = memory.copies if not checkpointing and sharding == "ddp" else 0
        estimated.append((memory.activations + copies) * GIB)
        measured.append(kept_bytes(config, stage, dtype, tokens, checkpointing))
    assert measured[1] - measured[0] == pytest.approx(estimated[1] - estimated[0], rel=0 if checkpointing else 0.03)


def test_ddp_has_no_second_copy_of_the_gradients(tmp_path):
    trainer = toy.trainer_for(toy.config_for(tmp_path))
    assert trainer.accelerator.ddp_handler.gradient_as_bucket_view


RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("size", ["1b", "7b"])
def test_sizes_are_those_of_the_released_models(size, released):
    released, ours = JanusProConfig.from_dict(released[size]), released_config(size)
    for stage in ("full", "lora_both"):
        assert estimate_memory(ours, stage) == estimate_memory(released, stage)
    for name in ("text_config", "vision_config", "vq_config"):
        one, other = (getattr(config, name).to_dict() for config in (ours, released))
        sizes = {key for key, value in one.items() if isinstance(value, int) and not key.endswith("_id")}
        assert {key: one[key] for key in sizes} == {key: other[key] for key in sizes}


@pytest.fixture(scope="module")
def table():
    """Return the table of all shipped recipes, which takes seconds to compute."""
    return recipes_table(RECIPES)


def test_every_recipe_has_its_rows(table):
    lines = table.splitlines()
    names = {line.split("|")[1].strip() for line in lines[2:]}
    assert len(names) == len(lines) - 2
    for path in RECIPES:
        assert any(name.startswith(f"{path.stem}, ") for name in names)
    assert {"lora_drawing, 7B", "stage2_7b, 7B", "stage2_7b, 7B, FSDP2 over 8"} <= names
    assert {"stage2_1b, 1B, HSDP over 8", "stage2_1b, 1B, FSDP2 over 8"} <= names
    assert "| qlora, 7B | 6.1 |" in "\n".join(lines)


def test_a_model_of_unknown_size_is_refused(tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(RECIPES[0].read_text().replace("Janus-Pro-1B", "mine"))
    with pytest.raises(ValueError, match="must end with 1B or 7B, got .*mine"):
        recipes_table([recipe])


def test_the_7b_fits_a_24_gb_card_in_four_bits(released):
    config = JanusProConfig.from_dict(released["7b"])
    recipe = load_recipe(Path(__file__).parents[2] / "recipes" / "qlora.yaml")
    memory = recipe_memory(recipe, config)
    assert memory == estimate_memory(config, "lora_both", dtype="bfloat16", quantization="4bit")
    assert 8 < memory.total < 15
    assert memory_table({"qlora": memory}).splitlines()[-1].startswith("| qlora | 6.1 | 0.6 | 1.2 | ")


def test_the_table_in_the_docs_is_the_one_computed(table):
    page = Path(__file__).parents[2] / "docs" / "training.md"
    assert table in page.read_text(encoding="utf-8")


# What a run says before its first step


RUNS = [
    ("full", {}),
    ("stage1", {"train_generation_embeddings": False, "activation_checkpointing": True}),
    ("lora_both", {"lora_vision_tower": True, "lora_r": 4}),
    ("lora_drawing", {"lora_targets": r".*language_model.*q_proj", "train_generation_embeddings": True}),
]


@pytest.mark.parametrize(("stage", "fields"), RUNS)
def test_a_run_is_estimated_with_its_own_settings(stage, fields, tmp_path):
    trainer = toy.trainer_for(toy.config_for(tmp_path, stage, per_device_train_batch_size=2, **fields))
    memory = estimate_run(trainer.args, trainer.model, trainer.accelerator)
    trained = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    assert memory.gradients * GIB / 4 == pytest.approx(trained)
    options = {"tokens": 2 * 256, "length": 256, "checkpointing": fields.get("activation_checkpointing", False)}
    options |= {name: value for name, value in fields.items() if not name.startswith("activation")}
    assert memory == estimate_memory(trainer.model.config, stage, **options)


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ({}, ("ddp", 1)),
        ({"deepspeed_plugin": SimpleNamespace(zero_stage=1)}, ("ddp", 1)),
        ({"deepspeed_plugin": SimpleNamespace(zero_stage=2)}, ("zero2", 16)),
        ({"deepspeed_plugin": SimpleNamespace(zero_stage=3)}, ("zero3", 16)),
        ({"fsdp_plugin": SimpleNamespace(reshard_after_forward=True)}, ("fsdp2", 16)),
        ({"fsdp_plugin": SimpleNamespace(reshard_after_forward=False), "sizes": (2, 8)}, ("hsdp", 8)),
        ({"fsdp_plugin": SimpleNamespace(reshard_after_forward=True), "sizes": (2, 8)}, ("fsdp2", 8)),
    ],
)
def test_a_run_is_estimated_as_it_is_sharded(state, expected, tmp_path, monkeypatch):
    sizes = dict(zip(("dp_replicate_size", "dp_shard_size"), state.pop("sizes", ()), strict=False))
    accelerator = SimpleNamespace(
        state=SimpleNamespace(**{"deepspeed_plugin": None, **state}),
        num_processes=16,
        parallelism_config=SimpleNamespace(**sizes) if sizes else None,
    )
    seen = {}
    monkeypatch.setattr(memory_report, "estimate_memory", lambda *args, **kwargs: seen.update(kwargs))
    memory_report.estimate_run(toy.config_for(tmp_path), toy.load_model(), accelerator)
    assert (seen["sharding"], seen["num_processes"]) == expected


def test_a_run_that_does_not_fit_says_what_to_change(tmp_path, monkeypatch):
    memory = Memory(weights=7.7, gradients=6.3, optimizer=12.7, copies=2.8, activations=1.2, logits=1.0)
    line = memory_report.compare(toy.config_for(tmp_path, bf16=True), memory, "Card", 80)
    parts = "weights 7.7, gradients 6.3, optimizer 12.7, copies 2.8, activations 1.2, logits 1.0"
    assert line == f"Estimated memory: 31.7 GiB per GPU ({parts}); the Card has 80.0 GiB."
    full = memory_report.compare(toy.config_for(tmp_path, bf16=True), memory, "Card", 24)
    assert full.startswith(
        f"WARNING: Estimated memory: 31.7 GiB per GPU ({parts}); the Card has 24.0 GiB. That is too"
    )
    for advice in ("per_device_train_batch_size", "activation_checkpointing=true", "fsdp2.yaml", "lora_ stage"):
        assert advice in full
    lora = toy.config_for(
        tmp_path, "lora_both", per_device_train_batch_size=1, activation_checkpointing=True, bf16=False
    )
    found = memory_report.compare(lora, memory, "Card", 24)
    assert found.split("too little: ")[1] == (
        "set training.bf16=true, or set model.quantization=4bit, or lower training.max_length."
    )
    assert "more than 31.7 GiB" in found


def test_the_report_is_about_cuda_devices(tmp_path, monkeypatch):
    trainer = toy.trainer_for(toy.config_for(tmp_path))
    parts = trainer.model, trainer.accelerator
    assert memory_report.memory_report(trainer.args, *parts) is None
    monkeypatch.setattr(type(trainer.args), "device", torch.device("cuda"))
    card = SimpleNamespace(name="Card", total_memory=2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    assert "the Card has 1.0 GiB" in memory_report.memory_report(trainer.args, *parts)
