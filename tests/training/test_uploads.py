"""What a training run pushes: all of the model, in the repository that is named, without tokens and local folders."""

import copy
import io
import json
import logging
import pickle
from pathlib import Path

import pytest
import torch
import toy
from huggingface_hub import CommitOperationAdd, HfApi, ModelCard
from PIL import Image

import janus_hf_cli
from hub_server import Fault
from janus_hf import JanusProForConditionalGeneration
from janus_hf.modeling import JanusProVQModel
from janus_hf.training import JanusProSFTConfig, train
from janus_hf.training.recipes import load_recipe
from janus_hf.training.trainers.codec import CodecTrainer, CodecTrainingArguments
from tiny import TINY_MODEL


TOKEN = "hf_me"
REPOSITORY = str(Path(__file__).parents[2])


@pytest.fixture(autouse=True)
def _token_in_the_settings_only(local_hub, monkeypatch):
    """Nothing but the run's own setting gives the client a token, so an upload without it is refused."""
    monkeypatch.delenv("HF_TOKEN")


def settings(folder, **changes):
    values = {"output_dir": str(folder / "out"), "max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    values |= {"push_to_hub": True, "hub_model_id": "me/run", "hub_token": TOKEN, "hub_strategy": "all_checkpoints"}
    return values | {"use_cpu": True, "report_to": "none", "disable_tqdm": True} | changes


def recipe(folder, stage="lora_drawing", model=None, **changes):
    return {
        "model": model or {"path": TINY_MODEL},
        "data": {"sources": [{"name": "mine", "path": str(folder / "nowhere"), "ratio": 1}]},
        "training": settings(folder, stage=stage, max_length=256, **changes),
    }


def run_recipe(folder, **changes):
    return train(recipe(folder, **changes), load_data=toy.load_data)


def config_for(folder, stage="stage1", **changes):
    values = settings(folder, **changes)
    return toy.config_for(values.pop("output_dir"), stage, **values)


def run_trainer(folder, **changes):
    model = JanusProForConditionalGeneration.from_pretrained(TINY_MODEL, dtype=torch.float32)
    trainer = toy.trainer_for(config_for(folder, **changes), model=model)
    trainer.train()
    trainer.push_to_hub()


def run_codec(folder, **changes):
    config = JanusProForConditionalGeneration.config_class.from_pretrained(TINY_MODEL).vq_config
    model = JanusProVQModel(config)
    model.config._name_or_path = TINY_MODEL
    rows = [{"pixel_values": torch.zeros(3, config.image_size, config.image_size)}] * 16
    trainer = CodecTrainer(model, args=CodecTrainingArguments(**settings(folder, **changes)), train_dataset=rows)
    trainer.train()
    trainer.push_to_hub()


@pytest.fixture
def samples(tmp_path):
    """Settings with which a run writes a sample that names an image on this machine."""
    Image.new("RGB", (32, 32)).save(tmp_path / "image.png")
    question = {"question": "What?", "image": str(tmp_path / "image.png")}
    return {"sample_steps": 2, "sample_max_new_tokens": 1, "sample_questions": [question]}


@pytest.mark.parametrize(
    ("run", "changes", "weights"),
    [
        pytest.param(run_recipe, {"stage": "lora_drawing"}, "adapter_model.safetensors", id="recipe, adapter"),
        pytest.param(run_recipe, {"stage": "stage1"}, "model.safetensors", marks=pytest.mark.slow, id="recipe, model"),
        pytest.param(run_trainer, {"stage": "lora_both"}, "adapter_model.safetensors", id="trainer, adapter"),
        pytest.param(run_trainer, {"stage": "full"}, "model.safetensors", marks=pytest.mark.slow, id="trainer, model"),
        pytest.param(run_codec, {}, "model.safetensors", id="codec"),
    ],
)
def test_nothing_uploaded_or_written_has_a_token_or_a_folder(
    run, changes, weights, local_hub, samples, tmp_path, capfd, caplog
):
    caplog.set_level(logging.INFO)
    run(tmp_path, hub_always_push=True, **changes, **({} if run is run_codec else samples))
    uploaded = local_hub.files("me/run")
    expected = {weights, "README.md", "training_args.bin", f"checkpoint-1/{weights}"}
    expected |= {"checkpoint-1/optimizer.pt", "checkpoint-2/trainer_state.json"}
    assert expected <= uploaded.keys()
    assert "optimizer.pt" not in uploaded
    assert not [name for name in uploaded if name.startswith("_")]
    for name, data in uploaded.items():
        for secret in (TOKEN, str(tmp_path), REPOSITORY):
            assert secret.encode() not in data, (name, secret)
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert not [path for path in files if TOKEN.encode() in path.read_bytes()]
    assert not list((tmp_path / "out").glob("_upload*")), "left behind"
    shown = capfd.readouterr()
    assert TOKEN not in shown.out + shown.err + caplog.text


def test_the_command_uploads_without_token_and_folder(raw_recipe, local_hub, tmp_path, capfd):
    """The prepared data stay private, and the run's own files still name the folders that resuming needs."""
    given = {"push_to_hub": "true", "hub_model_id": "me/run", "hub_token": TOKEN, "hub_private_repo": "true"}
    given |= {"max_steps": 1, "save_steps": 1, "stage": "lora_drawing", "hub_revision": "dev"}
    command = ["train", str(raw_recipe), *(f"training.{name}={value}" for name, value in given.items())]
    assert janus_hf_cli.main(command) == 0
    assert TOKEN not in "".join(capfd.readouterr())
    uploaded = local_hub.files("me/run", "dev")
    assert "adapter_model.safetensors" in uploaded
    assert local_hub.files("me/run") == {}
    assert local_hub.repositories["model", "me/run"].private
    assert not [name for name in uploaded if name.startswith("_") or name.endswith((".arrow", ".parquet"))]
    assert json.loads(uploaded["adapter_config.json"])["base_model_name_or_path"] == "./tiny-janus-pro"
    on_disk = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert on_disk["base_model_name_or_path"] == TINY_MODEL
    # The whole history: one commit for the save and one for the end.
    titles = [commit.title for commit in local_hub.repositories["model", "me/run"].commits.values()]
    assert titles == ["initial commit", "Training in progress, step 1", "End of training"]


@pytest.mark.parametrize("config", [JanusProSFTConfig, CodecTrainingArguments])
def test_records_of_the_configuration_hide_the_token(config, tmp_path):
    stage = {"stage": "stage1"} if config is JanusProSFTConfig else {}
    args = config(output_dir=str(tmp_path), hub_token="hf_secret", use_cpu=True, report_to="none", **stage)
    buffer = io.BytesIO()
    torch.save(args, buffer)
    records = [repr(args), str(args), args.to_json_string(), str(args.to_dict()), str(args.to_sanitized_dict())]
    assert not [text for text in (*records, str(buffer.getvalue()), str(pickle.dumps(args))) if "hf_secret" in text]
    assert not [text for text in records[2:] if str(tmp_path) in text], "trackers can be public"
    assert pickle.loads(pickle.dumps(args)).output_dir == str(tmp_path)
    assert copy.copy(args).hub_token == copy.deepcopy(args).hub_token == args.hub_token == "hf_secret"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("hub_token=hf_secret", "must be section.key=value"),
        ("training.a.b.hub_token=hf_secret", "position that the recipe does not have"),
        ("training.hub_token=hf_secret", "must have a name"),
    ],
)
def test_errors_of_a_recipe_hide_the_token(override, message, tmp_path):
    content = recipe(tmp_path, hub_token="hf_secret")
    assert "hf_secret" not in repr(load_recipe(content))
    assert load_recipe(content).training["hub_token"] == "hf_secret"
    content["data"]["sources"] = [{"path": "x", "token": "hf_secret"}]
    with pytest.raises(ValueError, match=message) as error:
        load_recipe(content, [override])
    assert "hf_secret" not in str(error.value)


@pytest.mark.parametrize(
    "strategy",
    ["checkpoint", *(pytest.param(name, marks=pytest.mark.slow) for name in ("end", "every_save", "all_checkpoints"))],
)
def test_every_strategy_uploads_what_it_says(strategy, local_hub, tmp_path):
    run_recipe(tmp_path, hub_strategy=strategy, hub_always_push=True)
    commits = [commit.title for commit in local_hub.repositories["model", "me/run"].commits.values()][1:]
    steps = [] if strategy == "end" else ["Training in progress, step 1", "Training in progress, step 2"]
    assert commits == [*steps, "End of training"]
    folders = {name.split("/")[0] for name in local_hub.files("me/run") if "/" in name}
    kept = {"checkpoint": {"last-checkpoint"}, "all_checkpoints": {"checkpoint-1", "checkpoint-2"}}
    assert folders == kept.get(strategy, set())


@pytest.mark.slow
def test_a_checkpoint_from_the_hub_is_resumed(local_hub, tmp_path):
    run_recipe(tmp_path, hub_strategy="checkpoint", stage="stage1")
    for name, data in local_hub.files("me/run").items():
        if name.startswith("last-checkpoint/"):
            path = tmp_path / "elsewhere" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    checkpoint = str(tmp_path / "elsewhere" / "last-checkpoint")
    changes = {"stage": "stage1", "push_to_hub": False, "max_steps": 3, "resume_from_checkpoint": checkpoint}
    out = run_recipe(tmp_path / "second", **changes)
    assert json.loads((out / "trainer_state.json").read_text())["global_step"] == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hub_token": None}, "got 'me/run', and .*hf auth login"),
        ({"hub_token": "hf_me_read"}, "got 'me/run', and .*rights"),
        ({"hub_token": "hf_wrong"}, "got 'me/run', and .*Invalid credentials"),
        ({"hub_model_id": "other/run"}, "got 'other/run', and .*rights"),
        ({"hub_model_id": "me/here", "hub_token": "hf_me_read"}, "got 'me/here', and .*rights"),
        ({"hub_model_id": "me/not a name"}, "got 'me/not a name', and .*"),
        ({"hub_revision": "refs/pr/7"}, "at revision 'refs/pr/7'"),
        ({"hub_model_id": "me/here", "hub_private_repo": True}, "`hub_private_repo` must be"),
    ],
)
def test_what_cannot_be_pushed_is_refused_before_anything_is_loaded(changes, message, local_hub, tmp_path):
    local_hub.create("me/here")
    local_hub.create("other/run")
    with pytest.raises((OSError, ValueError), match=message) as error:
        run_recipe(tmp_path, model={"path": "no model"}, **changes)
    assert "\n" not in str(error.value)
    with pytest.raises((OSError, ValueError), match=message):
        toy.trainer_for(config_for(tmp_path, **changes), model=toy.load_model())


def test_the_command_says_in_one_line_what_cannot_be_pushed(recipe_file, local_hub, capfd):
    command = ["train", str(recipe_file), "training.push_to_hub=true", "training.hub_model_id=other/run"]
    assert janus_hf_cli.main([*command, f"training.hub_token={TOKEN}"]) == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("janus-hf train: `hub_model_id` must be a repository that the Hub token may write to")


def test_an_upload_that_fails_is_told(local_hub, tmp_path, caplog):
    """In the background with a warning, at the end with an error. The run goes on and can be pushed later."""
    local_hub.faults.append(Fault("/commit/", "status", 403, method="POST"))
    with pytest.raises(OSError, match=r"upload to 'me/run' failed: .*403.*out'"):
        run_recipe(tmp_path, stage="stage1", hub_always_push=True)
    warnings = [record.message for record in caplog.records if "An upload to 'me/run' failed" in record.message]
    assert len(warnings) == 2
    assert "armed fault 403" in warnings[0]
    assert local_hub.files("me/run") == {}
    local_hub.faults.clear()
    lines = []
    train(recipe(tmp_path, stage="stage1"), load_data=toy.load_data, report=lines.append)
    assert "nothing is left to do" in lines[1]
    assert "model.safetensors" in local_hub.files("me/run")


def test_a_skipped_upload_is_told(local_hub, tmp_path, caplog, monkeypatch):
    started = []
    upload_folder = HfApi.upload_folder

    def slow(self, *args, **kwargs):
        started.append(kwargs["commit_message"])
        if len(started) == 1:
            while not any("Step 2 is not uploaded" in record.message for record in caplog.records):
                pass
        return upload_folder(self, *args, **kwargs)

    monkeypatch.setattr(HfApi, "upload_folder", slow)
    run_recipe(tmp_path, hub_strategy="every_save")
    assert started == ["Training in progress, step 1", "End of training"]


def test_the_revision_of_the_base_is_stated(local_hub, tmp_path):
    files = [CommitOperationAdd(path.name, path.read_bytes()) for path in Path(TINY_MODEL).iterdir() if path.is_file()]
    api = HfApi(token=TOKEN)
    api.create_repo("me/base")
    api.create_branch("me/base", branch="dev")
    api.create_commit("me/base", files, commit_message="base", revision="dev")
    run_recipe(tmp_path, model={"path": "me/base", "revision": "dev"}, hub_strategy="end")
    uploaded = local_hub.files("me/run")
    config = json.loads(uploaded["adapter_config.json"])
    assert (config["base_model_name_or_path"], config["revision"]) == ("me/base", "dev")
    card = ModelCard(uploaded["README.md"].decode())
    assert card.data.base_model == "me/base"
    assert "| model_revision | dev |" in card.text


def test_a_card_edited_by_hand_is_kept_and_old_weights_are_not(local_hub, tmp_path):
    """The card keeps its text and gets the metadata it lacks, on the Hub and on the disk."""
    text = "---\nlicense: mit\n---\n\n# My own words\n"
    local_hub.add_files("me/run", {"README.md": text.encode(), "adapter_model.bin": b"old", "notes.txt": b"kept"})
    out = run_recipe(tmp_path, hub_strategy="end")
    uploaded = local_hub.files("me/run")
    card = ModelCard(uploaded["README.md"].decode())
    assert (card.data.license, card.data.library_name) == ("mit", "peft")
    assert card.text.strip() == "# My own words"
    assert "notes.txt" in uploaded
    assert "adapter_model.bin" not in uploaded
    assert "| stage | lora_drawing |" in (out / "README.md").read_text()
    (out / "README.md").write_text("# Words on the disk\n")
    run_recipe(tmp_path, hub_strategy="end", hub_model_id="me/second")
    for written in ((out / "README.md").read_text(), local_hub.files("me/second")["README.md"].decode()):
        assert "# Words on the disk" in written
        assert ModelCard(written).data.library_name == "peft"


def test_a_local_base_is_named_without_its_folder(local_hub, tmp_path):
    out = run_recipe(tmp_path, hub_strategy="end", model={"path": TINY_MODEL, "revision": "dev"})
    uploaded = local_hub.files("me/run")
    assert json.loads(uploaded["adapter_config.json"])["base_model_name_or_path"] == "./tiny-janus-pro"
    assert json.loads(uploaded["adapter_config.json"])["revision"] is None
    assert ModelCard(uploaded["README.md"].decode()).data.base_model is None
    JanusProForConditionalGeneration.from_pretrained(out)  # on this machine the adapter still opens with its base
    with pytest.raises(OSError, match="tiny-janus-pro"):
        JanusProForConditionalGeneration.from_pretrained("me/run", token=TOKEN)
