"""Every shipped recipe parses and builds; bad recipes and overrides are refused by name; `train` goes end to end."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import toy
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from huggingface_hub.utils import filter_repo_objects
from PIL import Image

from janus_hf import JanusProForConditionalGeneration, JanusProProcessor
from janus_hf.training import JanusProSFTConfig, train
from janus_hf.training.mixture import TrainingData, load_mixture
from janus_hf.training.recipes import load_recipe
from janus_hf.training.run import _load_processor, _newest_checkpoint, build_trainer
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
}
HERE = ["training.use_cpu=true", "training.report_to=none", "training.disable_tqdm=true"]


def toy_data(section, args, model, processor):
    return TrainingData(toy.Packs(model.config, rows=24, kinds=(2, 1, 0)), toy.collate, {"plan_hash": "abc"})


def test_the_recipes_are_there():
    names = {path.stem for path in RECIPES}
    assert names >= {*PAPER, "lora_understanding", "lora_drawing", "lora_both", "qlora", "full_finetune"}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_builds(path, tmp_path):
    recipe = load_recipe(path, [*HERE, f"training.output_dir={tmp_path}"])
    trainer = build_trainer(recipe, load_data=toy_data, model=toy.load_model(), processor=toy.load_processor())
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
    """As on a device that computes in bfloat16, and on one that does not: here that is a matter of one option."""
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
    trainer = build_trainer(load_recipe(ROOT / "recipes" / f"{name}.yaml", [*HERE, *overrides]), load_data=toy_data)
    trainer.train()
    frozen = {p.dtype for p in trainer.model.parameters() if not p.requires_grad}
    assert torch.bfloat16 in frozen if bf16 == "true" and name.startswith("lora") else frozen == {torch.float32}
    assert {p.dtype for p in trainer.model.parameters() if p.requires_grad} == {torch.float32}
    assert (tmp_path / "out" / "samples" / "step-1.png").is_file()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.ratios={mine: 1}", "training.ratios follows from data.sources"),
        ("data.sources.0.task=drawing", "'mine' is prepared already, so task would change nothing"),
    ],
)
def test_what_would_be_ignored_is_refused(override, message, recipe_file, tmp_path):
    prepared = tmp_path / "prepared"
    prepared.mkdir()
    (prepared / "meta.json").write_text("{}")
    with pytest.raises(ValueError, match=message):
        build_trainer(load_recipe(recipe_file, [f"data.sources.0.path={prepared}", override]))


def test_half_written_checkpoints_are_passed_over(tmp_path):
    for step, complete in ((2, True), (10, True), (12, False)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "model.safetensors").touch()
        if complete:
            (folder / "trainer_state.json").touch()
    assert _newest_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")
    assert _newest_checkpoint(tmp_path / "nowhere") is None


@pytest.mark.parametrize("path", sorted((ROOT / "accelerate_configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_reads_its_configurations(path):
    config = load_config_from_file(str(path))
    assert config.mixed_precision == "bf16"
    assert config.num_processes % config.num_machines == 0


@pytest.fixture
def recipe_file(tmp_path):
    content = {
        "model": {"path": str(TINY_MODEL)},
        "data": {"sources": [{"name": "mine", "path": "nowhere", "ratio": 1}]},
        "training": {
            "stage": "lora_both",
            "output_dir": str(tmp_path / "out"),
            "max_steps": 2,
            "save_steps": 1,
            "use_cpu": True,
            "report_to": "none",
            "disable_tqdm": True,
            "max_length": 256,
        },
    }
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.learning_rat=1", "training has no key 'learning_rat'"),
        ("model.pth=x", "model has no key 'pth'"),
        ("data.sources=[]", "at least one source"),
        ("data.sources.0={name: a, path: b}", "name, a path and a ratio"),
        ("data.sources.3.path=x", "place that the recipe does not have"),
        ("training.stage=", "needs the key 'stage'"),
        ("lr=3", "section.key=value"),
        ("training.lr", "section.key=value"),
        ("other.key=1", "place that the recipe does not have"),
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


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"stage": "stage9"}, "no stage 'stage9'"),
        ({"stage": ""}, "stage must be one of"),
        ({"caption_drop": 1.5}, "caption_drop"),
        ({"save_layout": "mine"}, "save_layout"),
        ({"packing": True}, "packing=True has no meaning here"),
        ({"loss_type": "dft"}, "loss_type"),
        ({"fp16": True}, "bf16 or float32"),
        ({"lora_targets": "x"}, "need a lora_ stage"),
        ({"stage": "lora_both", "lora_r": 0}, "lora_r"),
        ({"num_processes": 2}, "num_processes=2 was asked for and 1 is running"),
        ({"total_batch_size": 7, "per_device_train_batch_size": 2}, "must be a multiple"),
        ({"total_batch_size": 8, "gradient_accumulation_steps": 3}, "contradicts"),
        ({"sample_steps": 5}, "go together"),
        ({"sample_prompts": ["a"]}, "go together"),
        ({"sample_steps": 5, "sample_questions": [{"text": "?"}]}, "keys question"),
        ({"max_length": None}, "max_length"),
    ],
)
def test_bad_configurations_are_refused(fields, message, tmp_path):
    defaults = {"output_dir": str(tmp_path), "stage": "stage1", "use_cpu": True}
    with pytest.raises(ValueError, match=message):
        JanusProSFTConfig(**{**defaults, **fields})


def test_two_gpus_without_a_launcher_are_refused(tmp_path, monkeypatch):
    """transformers would wrap the model in DataParallel, which splits rows of one micro-batch by their number."""
    monkeypatch.setattr(JanusProSFTConfig, "n_gpu", property(lambda self: 2))
    with pytest.raises(ValueError, match="sees 2 GPUs.*accelerate launch.*CUDA_VISIBLE_DEVICES=0"):
        JanusProSFTConfig(output_dir=str(tmp_path), stage="stage1", use_cpu=True)


def test_learning_rate_follows_the_stage(tmp_path):
    def rate(stage, **fields):
        return JanusProSFTConfig(output_dir=str(tmp_path), stage=stage, use_cpu=True, **fields).learning_rate

    assert [rate(f"stage{i}") for i in (1, 2, 3)] == [1e-3, 1e-4, 4e-5]
    assert rate("stage1", learning_rate=0.5) == 0.5


def test_train_goes_end_to_end_and_on(recipe_file, tmp_path):
    lines = []
    out = train(recipe_file, ["training.stage=stage1"], load_data=toy_data, report=lines.append)
    assert lines[0].startswith("| part | parameters | trained |")
    assert lines[-1].endswith("stage1, 2 steps")
    JanusProForConditionalGeneration.from_pretrained(out)
    JanusProProcessor.from_pretrained(out)
    assert json.loads((out / "janus_training.json").read_text()) == {
        "stage": "stage1",
        "ratios": {"mine": 1.0},
        "recipe": "mine",
        "plan_hash": "abc",
    }
    card = (out / "README.md").read_text()
    for stated in ("stage1", "mine: 1.0", "abc", "adam_beta2 | 0.95", "pipeline_tag: any-to-any"):
        assert stated in card
    overrides = ["training.stage=stage1", "training.max_steps=3", "training.resume_from_checkpoint=auto"]
    train(recipe_file, overrides, load_data=toy_data, report=lines.append)
    assert lines[-1].endswith("stage1, 3 steps")
    assert (out / "checkpoint-3").is_dir()
    before = (out / "model.safetensors").read_bytes()
    train(recipe_file, overrides, load_data=toy_data, report=lines.append)  # finished: nothing happens
    assert lines[-1].endswith("stage1, 3 steps")
    assert (out / "model.safetensors").read_bytes() == before


def test_a_finished_sharded_run_is_left_alone(recipe_file, tmp_path, monkeypatch):
    """Its model is only on the GPUs once training prepares it; the last checkpoint is the trained model."""
    overrides = ["training.stage=stage1", "training.resume_from_checkpoint=auto"]
    out = train(recipe_file, overrides, load_data=toy_data)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    monkeypatch.setattr(JanusProSFTConfig, "sharded", True)
    lines = []
    train(recipe_file, overrides, load_data=toy_data, report=lines.append)
    assert "nothing is left to do" in lines[-1]
    assert "checkpoint-2" in lines[-1]
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    with pytest.raises(ValueError, match="stage 'stage1'.*this run has 'full'"):
        train(recipe_file, ["training.stage=full", "training.resume_from_checkpoint=true"], load_data=toy_data)


def test_a_run_is_pushed_once_and_without_its_data(raw_recipe, monkeypatch):
    """What was prepared from the user's pictures stays here."""
    uploads = []

    class Hub:
        def create_repo(self, *args, **kwargs):
            return SimpleNamespace(repo_id="me/mine")

        def upload_folder(self, **kwargs):
            assert not torch.distributed.is_initialized()
            files = [str(path.relative_to(kwargs["folder_path"])) for path in Path(kwargs["folder_path"]).rglob("*")]
            uploads.append(set(filter_repo_objects(files, ignore_patterns=kwargs["ignore_patterns"])))
            assert "| stage | full |" in Path(kwargs["folder_path"], "README.md").read_text()

    monkeypatch.setattr("transformers.trainer.hf_api", Hub)
    monkeypatch.setattr("janus_hf.training.run.HfApi", lambda **kwargs: Hub())
    settings = ["training.push_to_hub=true", "training.hub_model_id=me/mine", "training.hub_strategy=end"]
    out = train(raw_recipe, [*settings, "training.max_steps=2"])
    assert (out / "_prepared" / "drawing" / "meta.json").is_file()
    (uploaded,) = uploads
    assert {"model.safetensors", "README.md", "config.json"} <= uploaded
    assert not any("prepared" in name or name.endswith((".arrow", ".parquet")) for name in uploaded)


def test_the_processor_is_that_of_the_models_revision(monkeypatch):
    asked = []
    monkeypatch.setattr(
        "janus_hf.training.run.JanusProProcessor.from_pretrained",
        lambda path, **kwargs: asked.append((path, kwargs)),
    )
    _load_processor({"path": "a/model", "revision": "v2"})
    _load_processor({"path": "a/model", "revision": "v2", "processor": "another"})
    _load_processor({"path": "a/model"})
    assert asked == [("a/model", {"revision": "v2"}), ("another", {}), ("a/model", {})]


@pytest.fixture
def raw_recipe(tmp_path):
    """A recipe on raw pictures and JSONL files."""
    for i, colour in enumerate(["red", "green", "blue"]):
        Image.new("RGB", (70, 64), colour).save(tmp_path / f"{i}.png")
    drawing = [{"prompt": f"picture {i}", "image": f"{i}.png"} for i in range(3)]
    talk = [{"role": "user", "content": "<image>What is it?"}, {"role": "assistant", "content": "A colour."}]
    understanding = [{"messages": talk, "images": [f"{i}.png"]} for i in range(3)]
    for name, rows in (("drawing", drawing), ("understanding", understanding)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = {
        "model": {"path": str(TINY_MODEL)},
        "data": {
            "sources": [
                {"name": name, "path": str(tmp_path / f"{name}.jsonl"), "ratio": ratio}
                for name, ratio in (("drawing", 1), ("understanding", 2))
            ]
        },
        "training": {
            "stage": "full",
            "output_dir": str(tmp_path / "out"),
            "max_steps": 4,
            "save_steps": 2,
            "logging_steps": 4,
            "per_device_train_batch_size": 2,
            "max_length": 256,
            "use_cpu": True,
            "report_to": "none",
            "disable_tqdm": True,
        },
    }
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return path


def test_one_command_from_raw_pictures(raw_recipe):
    """A folder of pictures with a JSONL file and a recipe are all that `janus-hf train` needs."""
    out = train(raw_recipe)
    facts = json.loads((out / "janus_training.json").read_text())
    assert facts["ratios"] == {"drawing": 1.0, "understanding": 2.0}
    assert set(facts["documents"]) == {"drawing", "understanding"}
    state = json.loads((out / "trainer_state.json").read_text())
    assert {"loss_drawing", "loss_understanding"} <= set(state["log_history"][0])

    with pytest.raises(ValueError, match="plan_hash"):
        train(raw_recipe, ["data.seed=7", f"training.resume_from_checkpoint={out / 'checkpoint-2'}"])
    with pytest.raises(ValueError, match="context holds"):
        train(raw_recipe, ["training.max_length=4096"])


def test_pictures_may_be_decoded_beside_the_training(raw_recipe, tmp_path):
    def losses(workers):
        out = tmp_path / f"out{workers}"
        train(raw_recipe, [f"training.dataloader_num_workers={workers}", f"training.output_dir={out}"])
        return json.loads((out / "trainer_state.json").read_text())["log_history"][0]["loss"]

    assert losses(2) == losses(0)


@pytest.mark.parametrize("stage", ["lora_drawing", "lora_understanding"])
def test_sharded_runs_have_a_picture_in_every_batch(stage, raw_recipe, monkeypatch, tmp_path):
    """All ranks must pass through the tower together, and a batch for flash-attention cannot get one later."""
    recipe = load_recipe(raw_recipe, [f"training.stage={stage}"])
    model, processor = toy.load_model(), toy.load_processor()
    model.config._attn_implementation = "flash_attention_2"

    def collator():
        args = JanusProSFTConfig(**recipe.training)
        return load_mixture(recipe.data, args, model, processor).collator

    assert collator().varlen
    assert collator().always_picture == (stage == "lora_understanding")
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setattr(JanusProSFTConfig, "__post_init__", lambda self: None)
    assert collator().always_picture


def test_streaming_is_a_switch(raw_recipe):
    out = train(raw_recipe, ["data.streaming=true", "training.max_steps=2"])
    plan_hash = json.loads((out / "janus_training.json").read_text())["plan_hash"]
    assert plan_hash.startswith("streamed-")
    assert json.loads((out / "trainer_state.json").read_text())["global_step"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["full", "lora_both"])
def test_two_processes_prepare_train_save_and_resume(raw_recipe, stage, tmp_path):
    """`accelerate launch -m janus_hf_cli train`, twice: the second run goes on, and its model loads."""

    def launch(*overrides):
        command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2"]
        command += ["--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no", "--main_process_port=0"]
        command += ["-m", "janus_hf_cli", "train", str(raw_recipe)]
        command += [f"training.stage={stage}", "training.num_processes=2"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CI": "1", "HF_HUB_OFFLINE": "1"}
        return subprocess.run(
            [*command, *overrides], env=environment, capture_output=True, text=True, timeout=280, cwd=tmp_path
        )

    overrides = [
        "training.per_device_train_batch_size=1",
        "training.sample_steps=4",
        "training.sample_prompts=[a dog]",
    ]
    first = launch(*overrides)
    assert first.returncode == 0, first.stderr[-3000:]
    assert first.stderr.count("| part | parameters | trained |") == 1
    assert (tmp_path / "out" / "samples" / "step-4.png").is_file()
    shutil.rmtree(tmp_path / "out" / "checkpoint-4")
    second = launch(*overrides, "training.resume_from_checkpoint=auto")
    assert second.returncode == 0, second.stderr[-3000:]
    assert (tmp_path / "out" / "checkpoint-4").is_dir()
    JanusProForConditionalGeneration.from_pretrained(tmp_path / "out")
    wrong = launch("training.total_batch_size=3")
    assert wrong.returncode != 0
    assert "must be a multiple" in wrong.stderr
