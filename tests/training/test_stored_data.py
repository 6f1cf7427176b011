"""Runs on prepared data: an order by shards, damaged shards, and rows whose images cannot be decoded in training."""

import json
import shutil
from pathlib import Path

import pytest
import toy
import yaml

from janus_hf.data import load_prepared, prepare
from janus_hf.data.store import make_table, write_shard
from janus_hf.training import JanusProSFTConfig, train
from janus_hf.training.mixture import load_mixture
from janus_hf.training.recipes import load_recipe
from janus_hf.training.run import build_trainer


BY_SHARDS = ["data.shuffle=shards", "data.shuffle_buffer=4"]


@pytest.fixture
def stored(raw_recipe):
    """A recipe of four steps on folders of prepared rows, of which the drawings lie in shards of two rows."""
    content = yaml.safe_load(raw_recipe.read_text())
    model, processor = toy.load_model(), toy.load_processor()
    for part in (model, processor):
        part.save_pretrained(raw_recipe.parent / "base")
    content["model"]["path"] = str(raw_recipe.parent / "base")
    for source in content["data"]["sources"]:
        folder = raw_recipe.parent / "prepared" / source["name"]
        rows = [json.loads(line) for line in Path(source["path"]).read_text().splitlines()] * 4
        prepare(rows, folder, model, processor, rows_per_shard=2, folder=raw_recipe.parent)
        source["path"] = str(folder)
    raw_recipe.write_text(yaml.safe_dump(content))
    return raw_recipe


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.shuffle=random"], "data.shuffle must be exact .* or shards .* got 'random'"),
        (["data.shuffle=true"], "data.shuffle must be of type str, got True"),
        (
            ["data.shuffle=shards", "data.shuffle_buffer=0"],
            "data.shuffle_buffer must be a number of rows of 1 or more",
        ),
        (["data.shuffle=shards", "data.shuffle_buffer=1.5"], "data.shuffle_buffer must be of type int, got 1.5"),
        (["data.shuffle_buffer=10"], "needs data.shuffle=shards, got 10 with data.shuffle=exact"),
        (
            ["data.shuffle=exact", "data.shuffle_buffer=10"],
            "needs data.shuffle=shards, got 10 with data.shuffle=exact",
        ),
        (["data.streaming=true", "data.shuffle=shards"], "data.shuffle must be left out with data.streaming"),
        (["data.streaming=true", "data.shuffle_buffer=9"], "data.shuffle_buffer must be left out with data.streaming"),
    ],
)
def test_orders_that_do_not_exist_are_refused(overrides, message, recipe_file):
    with pytest.raises(ValueError, match=message):
        load_recipe(recipe_file, overrides)


def test_the_order_of_a_recipe_is_that_of_the_plan(stored):
    recipe = load_recipe(stored, BY_SHARDS)
    model, processor = toy.load_model(), toy.load_processor()

    def data(**changes):
        return load_mixture(recipe.data | changes, JanusProSFTConfig(**recipe.training), model, processor)

    by_shards, exact = data(), data(shuffle="exact")
    assert exact.facts["plan_hash"] == data(shuffle=None, shuffle_buffer=None).facts["plan_hash"]
    assert len({data.facts["plan_hash"] for data in (by_shards, exact, data(shuffle_buffer=6))}) == 2 + 1
    assert by_shards.facts["plan_hash"] == data().facts["plan_hash"]
    assert by_shards.dataset.plan.settings["order"]["buffer"] == 4
    assert by_shards.facts["documents"].keys() == {"drawing", "understanding"}


def shard_of(stored, name="understanding"):
    """Return the path of the second shard of a source."""
    return stored.parent / "prepared" / name / "shard-000001.arrow"


@pytest.mark.parametrize("name", ["drawing", "understanding"])
def test_a_run_names_a_shard_that_was_cut_before_its_first_step(stored, name):
    content = shard_of(stored, name).read_bytes()
    shard_of(stored, name).write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=f"{shard_of(stored, name)} must be .* delete this file, and run the command"):
        build_trainer(load_recipe(stored))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_run_names_a_shard_with_a_damaged_row(stored, workers):
    content = bytearray(shard_of(stored).read_bytes())
    ids = (
        load_prepared(shard_of(stored).parent).tables[1].column("input_ids").chunk(0).values.buffers()[1].to_pybytes()
    )
    content[content.index(ids) + 9] ^= 1
    shard_of(stored).write_bytes(content)
    workers = [f"training.dataloader_num_workers={workers}", "training.max_steps=12"]
    with pytest.raises(ValueError, match=f"{shard_of(stored)} must be .* in its row"):
        train(stored, workers)


@pytest.fixture
def spoilt(stored):
    """The same recipe; the image of a row cannot be decoded here, although preparation could."""
    rows = load_prepared(shard_of(stored).parent)
    content = [rows[number] for number in (2, 3)]
    content[0]["images"] = [b"a format that only the other machine reads"]
    write_shard(make_table(content), shard_of(stored))
    return stored


def losses(folder):
    """Return the losses of every step of a run."""
    history = json.loads((Path(folder) / "trainer_state.json").read_text())["log_history"]
    return [(log["step"], log["loss"], log["grad_norm"]) for log in history if "loss" in log]


STEPS = ["training.max_steps=10", "training.save_steps=5", "training.logging_steps=1"]


@pytest.mark.slow
@pytest.mark.parametrize("order", [[], BY_SHARDS], ids=["exact", "shards"])
def test_resumed_is_straight_with_a_row_that_cannot_be_decoded(order, spoilt, tmp_path, caplog):
    straight = train(spoilt, [*STEPS, *order])
    assert "Row 2 of the source 'understanding' is not trained" in caplog.text
    other = tmp_path / "other"
    other.mkdir()
    shutil.copytree(straight / "checkpoint-5", other / "checkpoint-5")
    overrides = [*STEPS, *order, f"training.output_dir={other}", "training.resume_from_checkpoint=auto"]
    assert losses(train(spoilt, overrides)) == losses(straight)
    with pytest.raises(ValueError, match="plan_hash"):
        train(spoilt, [*overrides[:-1], "data.shuffle=shards", "data.shuffle_buffer=9", *overrides[-1:]])


@pytest.mark.slow
def test_two_ranks_are_one_in_an_order_by_shards(spoilt, tmp_path):
    script = Path(__file__).with_name("resumable.py")

    overrides = [*STEPS, *BY_SHARDS, "training.num_processes=2", "training.per_device_train_batch_size=1"]
    out = tmp_path / "two"
    arguments = [str(tmp_path / "hashes"), str(spoilt), *overrides, f"training.output_dir={out}"]
    done = toy.launch(str(script), *arguments)
    assert done.returncode == 0, done.stderr[-3000:]
    one = losses(train(spoilt, [*STEPS, *BY_SHARDS, "training.per_device_train_batch_size=2"]))
    two = losses(out)
    assert [step for step, *_ in one] == [step for step, *_ in two] == list(range(1, 11))
    for (_, *expected), (_, *found) in zip(one, two, strict=True):
        assert found == pytest.approx(expected, rel=1e-4)
