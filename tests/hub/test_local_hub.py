"""The local Hub answers huggingface_hub's client as the Hub does, as far as the other tests need it."""

import pytest
from huggingface_hub import CommitOperationAdd, HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from hub_server import Fault


def test_files_come_back_as_they_were_pushed(local_hub, tmp_path):
    files = {
        "config.json": b"{}",
        "model.safetensors": bytes(range(256)) * 20,
        "README.md": b"---\nlicense: mit\n---\n",
    }
    for name, data in files.items():
        (tmp_path / "folder" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "folder" / name).write_bytes(data)
    api = HfApi()
    api.create_repo("model", private=True)
    sha = api.upload_folder(repo_id="me/model", folder_path=tmp_path / "folder").oid
    assert local_hub.files("me/model") == files
    folder = snapshot_download("me/model", revision=sha)
    assert folder.endswith(sha)
    api.create_branch("me/model", branch="dev")
    api.delete_file("config.json", "me/model", revision="dev")
    assert local_hub.files("me/model", "dev").keys() == files.keys() - {"config.json"}
    for name, data in files.items():
        with open(hf_hub_download("me/model", name), "rb") as file:
            assert file.read() == data
    addition = CommitOperationAdd("added.txt", b"added")
    pull = api.create_commit("me/model", [addition], commit_message="title", commit_description="more", create_pr=True)
    assert pull.pr_revision == "refs/pr/1"
    assert local_hub.repositories["model", "me/model"].resolve("refs/pr/1").description == "more"


def test_refusals(local_hub, monkeypatch):
    local_hub.add_files("other/gated", {"config.json": b"{}"})
    local_hub.repositories["model", "other/gated"].gated = True
    with pytest.raises(GatedRepoError):
        hf_hub_download("other/gated", "config.json")
    with pytest.raises(RepositoryNotFoundError):
        hf_hub_download("me/none", "config.json")
    local_hub.add_files("me/card", {"config.json": b"{}"})
    with pytest.raises(RevisionNotFoundError):
        hf_hub_download("me/card", "config.json", revision="none")
    with pytest.raises(ValueError, match="base_model"):
        HfApi().upload_file(
            path_or_fileobj=b"---\nbase_model: /tmp/base\n---\n", path_in_repo="README.md", repo_id="me/card"
        )
    monkeypatch.setenv("HF_TOKEN", "hf_me_read")
    with pytest.raises(HfHubHTTPError, match="403"):
        HfApi().upload_file(path_or_fileobj=b"x", path_in_repo="x.txt", repo_id="me/card")


def test_faults(local_hub):
    local_hub.add_files("me/model", {"model.safetensors": bytes(5000), "config.json": b"{}"})
    local_hub.faults.append(Fault("config.json", "status", 403, times=1))
    with pytest.raises(LocalEntryNotFoundError):
        hf_hub_download("me/model", "config.json")
    hf_hub_download("me/model", "config.json")
    local_hub.faults.append(Fault("/storage/get", "cut", 0.5, times=1))
    with open(hf_hub_download("me/model", "model.safetensors"), "rb") as file:
        assert file.read() == bytes(5000)
    assert len(local_hub.asked_for("config.json")) > 2
