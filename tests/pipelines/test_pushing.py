"""Uploading a pipeline with a model card, to a fake Hub."""

import json
import types
from pathlib import Path

import pytest
from tiny_pipes import load, same_weights

from tiny import TINY_MODEL


@pytest.fixture
def hub(monkeypatch):
    """A fake Hub that records uploads, tokens and created repositories, and uploads nothing."""
    record = types.SimpleNamespace(uploads=[], tokens=[], created=[])

    class FakeApi:
        def __init__(self, token=None):
            record.tokens.append(token)

        def create_repo(self, repo_id, **kwargs):
            record.created.append((repo_id, kwargs))
            return types.SimpleNamespace(repo_id=repo_id if "/" in repo_id else f"me/{repo_id}")

        def upload_folder(self, *, folder_path, **kwargs):
            files = {path.name: path.read_bytes() for path in Path(folder_path).iterdir()}
            record.uploads.append(types.SimpleNamespace(files=files, **kwargs))
            return types.SimpleNamespace(commit_url=f"https://hub/{kwargs['repo_id']}/commit/1")

    monkeypatch.setattr("janus_hf.files.HfApi", FakeApi)
    return record


def test_push_to_hub(own_pipe, hub):
    own_pipe.model.config.name_or_path = "deepseek-ai/Janus-Pro-1B"
    url = own_pipe.push_to_hub(
        "fox", private=True, token="secret", commit_message="first", create_pr=True, layout="transformers"
    )
    assert url == "https://hub/me/fox/commit/1"
    assert hub.tokens == ["secret"]
    assert hub.created == [("fox", {"private": True, "exist_ok": True})]
    (upload,) = hub.uploads
    assert (upload.repo_id, upload.commit_message, upload.create_pr) == ("me/fox", "first", True)
    assert {"config.json", "model.safetensors", "model_index.json", "tokenizer.json", "README.md"} <= set(upload.files)
    assert json.loads(upload.files["config.json"])["model_type"] == "janus"
    card = upload.files["README.md"].decode()
    for line in (
        "base_model: deepseek-ai/Janus-Pro-1B",
        "library_name: janus_hf",
        "pipeline_tag: any-to-any",
        "license_name: deepseek",
        "# fox",
        'JanusProPipeline.from_pretrained("me/fox")',
        "| generated images | 64x64 pixels, 64 image tokens out of 256 |",
        "| dtype | float32 |",
    ):
        assert line in card, line


def test_save_and_push(pipe, hub, tmp_path):
    pipe.save_pretrained(tmp_path / "my-fox", push_to_hub=True)
    pipe.save_pretrained(tmp_path / "other", push_to_hub=True, repo_id="us/fox", commit_message="again")
    first, second = hub.uploads
    assert (first.repo_id, first.commit_message) == ("me/my-fox", "Upload JanusProPipeline")
    assert (second.repo_id, second.commit_message) == ("us/fox", "again")
    for upload in (first, second):
        assert f'from_pretrained("{upload.repo_id}")' in upload.files["README.md"].decode()
    assert same_weights(load(tmp_path / "my-fox").model, pipe.model)


@pytest.mark.parametrize("source", [TINY_MODEL, "", "me/fox"])
def test_card_names_a_base_model_only_if_there_is_one(own_pipe, hub, source):
    """The base model is named unless it is a local folder, empty, or the repository itself."""
    own_pipe.model.config.name_or_path = source
    own_pipe.push_to_hub("me/fox")
    assert "base_model" not in hub.uploads[0].files["README.md"].decode()


def test_saved_card_shows_how_to_use_it(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\n")
    assert "from janus_hf import JanusProPipeline" in card
