"""The data of a recipe: raw and prepared sources, streams, loader processes."""

import json

import fsspec
import pytest
import toy

from janus_hf.training import JanusProSFTConfig, train
from janus_hf.training.mixture import load_mixture
from janus_hf.training.recipes import load_recipe
from janus_hf.training.run import build_trainer


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.ratios={mine: 1}", "training.ratios follows from data.sources"),
        ("data.sources.0.task=drawing", "'mine' is prepared already, so task would change nothing"),
    ],
)
def test_options_without_effect_are_refused(override, message, recipe_file, tmp_path):
    prepared = tmp_path / "prepared"
    prepared.mkdir()
    (prepared / "meta.json").write_text("{}")
    with pytest.raises(ValueError, match=message):
        build_trainer(load_recipe(recipe_file, [f"data.sources.0.path={prepared}", override]))


def test_one_command_from_raw_images(raw_recipe):
    """A folder of images with a JSONL file and a recipe are all that `janus-hf train` needs."""
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


def test_a_source_may_ignore_content(raw_recipe):
    """Without `ignore` the column is refused by name, before the model is trained."""
    path = raw_recipe.parent / "drawing.jsonl"
    rows = [json.loads(line) | {"negative_prompt": "ugly"} for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match="got 'negative_prompt'"):
        build_trainer(load_recipe(raw_recipe))
    build_trainer(load_recipe(raw_recipe, ["data.sources.0.ignore=[negative_prompt]"]))


def test_images_may_be_decoded_by_loader_processes(raw_recipe, tmp_path):
    def losses(workers):
        out = tmp_path / f"out{workers}"
        train(raw_recipe, [f"training.dataloader_num_workers={workers}", f"training.output_dir={out}"])
        return json.loads((out / "trainer_state.json").read_text())["log_history"][0]["loss"]

    assert losses(2) == losses(0)


@pytest.mark.parametrize("stage", ["lora_drawing", "lora_understanding"])
def test_sharded_runs_have_an_image_in_every_batch(stage, raw_recipe, monkeypatch, tmp_path):
    """All ranks must pass through the tower, and the trainer cannot add an image to a batch for flash-attention."""
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


@pytest.mark.parametrize("streaming", ["false", "true"])
def test_sources_may_be_at_addresses(streaming, raw_recipe, tmp_path):
    """`memory://` stands for s3:// and others: rows and images are read there, and give the same plan and loss."""
    store = fsspec.filesystem("memory")
    for path in raw_recipe.parent.rglob("*"):
        if path.is_file():
            store.pipe_file(f"/site/{path.relative_to(raw_recipe.parent)}", path.read_bytes())
    store.pipe_file("/site/prepared/meta.json", b"{}")

    def run(out, *overrides):
        train(
            raw_recipe,
            ["training.max_steps=2", "training.logging_steps=2", f"training.output_dir={tmp_path / out}", *overrides],
        )
        history = json.loads((tmp_path / out / "trainer_state.json").read_text())["log_history"]
        return json.loads((tmp_path / out / "janus_training.json").read_text())["plan_hash"], history[0]["loss"]

    remote = ["data.sources.0.path=memory://site/drawing.jsonl", f"data.sources.0.streaming={streaming}"]
    assert run("remote", *remote) == run("local")
    with pytest.raises(ValueError, match="copy that folder to a local disk"):
        run("prepared", "data.sources.0.path=memory://site/prepared")
    store.store.clear()
