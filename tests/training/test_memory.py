"""The memory estimates: parameter counts are the trainer's, and the documented table is the computed one."""

from pathlib import Path

import pytest
import toy

from janus_hf import JanusProConfig
from janus_hf.training.memory import GIB, estimate_memory, memory_table, recipe_memory, recipes_table, released_config
from janus_hf.training.recipes import load_recipe
from janus_hf.training.stages import STAGES


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
