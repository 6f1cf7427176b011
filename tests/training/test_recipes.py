"""Every shipped recipe builds and trains; overrides are read as YAML; bad recipes are refused by name."""

from pathlib import Path

import pytest
import torch
import toy
from accelerate.commands.config.config_args import load_config_from_file
from PIL import Image

from janus_hf.training.recipes import load_recipe
from janus_hf.training.run import build_trainer
from tiny import TINY_MODEL


ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
PAPER = {  # lr, warm-up, steps, batch, ratios (und, text, drawing): the report's Table 2
    "stage1_1b": (1e-3, 600, 20_000, 256, (1, 0, 3)),
    "stage1_7b": (1e-3, 600, 20_000, 256, (1, 0, 3)),
    "stage2_1b": (1e-4, 5000, 360_000, 512, (2, 3, 5)),
    "stage2_7b": (1e-4, 5000, 360_000, 512, (2, 3, 5)),
    "stage3_1b": (4e-5, 0, 80_000, 128, (5, 1, 4)),
    "stage3_7b": (4e-5, 0, 40_000, 128, (5, 1, 4)),
    "stage3_janus_1b": (4e-5, 0, 80_000, 128, (7, 3, 10)),  # the ratio is that of the Janus report
}
HERE = ["training.use_cpu=true", "training.report_to=none", "training.disable_tqdm=true"]


def test_the_recipes_are_there():
    names = {path.stem for path in RECIPES}
    assert names >= {*PAPER, "lora_understanding", "lora_drawing", "lora_both", "qlora", "full_finetune"}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_builds(path, tmp_path):
    recipe = load_recipe(path, [*HERE, f"training.output_dir={tmp_path}"])
    trainer = build_trainer(recipe, load_data=toy.load_data, model=toy.load_model(), processor=toy.load_processor())
    args = trainer.args
    stage = path.stem.split("_")[0] if path.stem in PAPER else path.stem
    assert args.stage == {"qlora": "lora_both", "full_finetune": "full"}.get(stage, stage)
    assert (args.adam_beta1, args.adam_beta2, args.weight_decay, args.max_grad_norm) == (0.9, 0.95, 0.0, 1.0)
    assert args.lr_scheduler_type == "constant_with_warmup"
    assert args.max_length == 4096
    if path.stem in PAPER:
        rate, warmup, steps, batch, ratios = PAPER[path.stem]
        assert (args.learning_rate, args.warmup_steps, args.max_steps) == (rate, warmup, steps)
        assert args.per_device_train_batch_size * args.gradient_accumulation_steps == batch
        found = tuple(recipe.ratios.get(task, 0) for task in ("understanding", "text", "drawing"))
        assert found == ratios


@pytest.mark.parametrize("name", ["lora_drawing", "lora_understanding", "lora_both", "full_finetune"])
@pytest.mark.parametrize("bf16", ["true", "false"])
def test_recipe_trains_and_samples_in_its_own_dtype(name, bf16, tmp_path):
    """The option `bf16` stands for a device that computes in bfloat16, or one that does not."""
    image = tmp_path / "grey.png"
    Image.new("RGB", (64, 64), "grey").save(image)
    overrides = [
        f"model.path={TINY_MODEL}",
        f"training.output_dir={tmp_path / 'out'}",
        f"training.bf16={bf16}",
        "training.max_steps=1",
        "training.per_device_train_batch_size=2",
        "training.total_batch_size=2",
        "training.max_length=256",
        "training.sample_steps=1",
        "training.sample_prompts=[a red square]",
        f"training.sample_questions=[{{question: 'What is it?', image: {image}}}]",
        "training.sample_max_new_tokens=4",
        "training.save_strategy='no'",
    ]
    trainer = build_trainer(
        load_recipe(ROOT / "recipes" / f"{name}.yaml", [*HERE, *overrides]), load_data=toy.load_data
    )
    trainer.train()
    frozen = {p.dtype for p in trainer.model.parameters() if not p.requires_grad}
    assert torch.bfloat16 in frozen if bf16 == "true" and name.startswith("lora") else frozen == {torch.float32}
    assert {p.dtype for p in trainer.model.parameters() if p.requires_grad} == {torch.float32}
    assert (tmp_path / "out" / "samples" / "step-1.png").is_file()


@pytest.mark.parametrize("path", sorted((ROOT / "accelerate_configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_reads_its_configurations(path):
    config = load_config_from_file(str(path))
    assert config.mixed_precision == "bf16"
    assert config.num_processes % config.num_machines == 0


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.learning_rat=1", "training has no key 'learning_rat'"),
        ("model.pth=x", "model has no key 'pth'"),
        ("data.sources=[]", "at least one source"),
        ("data.sources.0={name: a, path: b}", "name, a path and a ratio"),
        ("data.sources.3.path=x", "position that the recipe does not have"),
        ("training.stage=", "needs the key 'stage'"),
        ("lr=3", "section.key=value"),
        ("training.lr", "section.key=value"),
        ("other.key=1", "position that the recipe does not have"),
    ],
)
def test_bad_recipes_are_refused_by_name(recipe_file, override, message):
    with pytest.raises(ValueError, match=message):
        load_recipe(recipe_file, [override])


def test_overrides_are_yaml(recipe_file):
    overrides = ["training.learning_rate=2e-5", "data.sources.0.ratio=3", "training.sample_prompts=[a b, c]"]
    recipe = load_recipe(recipe_file, overrides)
    assert recipe.training["learning_rate"] == 2e-5
    assert recipe.ratios == {"mine": 3.0}
    assert recipe.training["sample_prompts"] == ["a b", "c"]
