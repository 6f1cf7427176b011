"""Pushing a pipeline, a model and a processor in both ways: every argument, and what a refused push leaves."""

import time

import pytest
import torch
from huggingface_hub import CommitInfo
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

from hub_server import Fault
from janus_hf import JanusProPipeline
from tiny import TINY_MODEL


WEIGHTS = {"config.json", "generation_config.json", "model.safetensors"}
PROCESSOR = {
    "processor_config.json",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
}
FILES = {
    "pipe": {*WEIGHTS, *PROCESSOR, "model_index.json", "README.md"},
    "model": {*WEIGHTS, "README.md"},
    "processor": PROCESSOR,
}


@pytest.fixture(scope="module")
def pipe():
    pipe = JanusProPipeline.from_pretrained(TINY_MODEL, dtype=torch.float32)
    pipe.model.config.name_or_path = "deepseek-ai/Janus-Pro-1B"
    return pipe


@pytest.fixture(params=["pipe", "model", "processor"])
def kind(request):
    return request.param


@pytest.fixture
def pushed(pipe, kind):
    """The object to push, which tests share and must not change."""
    return pipe if kind == "pipe" else getattr(pipe, kind)


@pytest.fixture(params=["push_to_hub", "save_pretrained"])
def push(request, pushed, tmp_path):
    """Function `push(repo_id, **arguments)` that pushes in one of the two ways; `push.result` is what it returned."""

    def push(repo_id, **arguments):
        if request.param == "push_to_hub":
            push.result = pushed.push_to_hub(repo_id, **arguments)
        else:
            push.result = None
            pushed.save_pretrained(tmp_path / "saved", push_to_hub=True, repo_id=repo_id, **arguments)

    return push


def test_every_argument_at_once(local_hub, monkeypatch, push, kind):
    """The branch exists afterwards, main is untouched, and no other token than the given one is used."""
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    push(
        "team/fox",
        commit_message="first",
        commit_description="in detail",
        private=True,
        token="hf_me",
        revision="dev",
        tags=["fox", "janus"],
        variant="fp16",
        max_shard_size="20GB",
    )
    repository = local_hub.repositories["model", "team/fox"]
    assert repository.private
    assert local_hub.files("team/fox") == {}
    commit = repository.resolve("dev")
    assert (commit.title, commit.description) == ("first", "in detail")
    files = {name.replace("model.safetensors", "model.fp16.safetensors") for name in FILES[kind]} | {"README.md"}
    assert set(local_hub.files("team/fox", "dev")) == files
    assert "- fox\n" in commit.files["README.md"].data.decode()
    assert commit.files["README.md"].data.decode().count("- janus\n") <= 1
    assert {request.user for request in local_hub.requests} <= {"me", None}
    assert isinstance(push.result, CommitInfo) or push.result is None


def test_defaults(local_hub, push, kind):
    push("fox")
    assert set(local_hub.files("me/fox")) == FILES[kind]
    assert not local_hub.repositories["model", "me/fox"].private
    commit = local_hub.repositories["model", "me/fox"].resolve("main")
    if push.result is not None:
        assert push.result == push.result.commit_url == f"{local_hub.url}/me/fox/commit/{commit.sha}"
    assert (
        commit.title
        == {
            "pipe": "Upload JanusProPipeline",
            "model": "Upload JanusProForConditionalGeneration",
            "processor": "Upload processor",
        }[kind]
    )


def test_a_folder_gives_its_name_and_only_what_was_written(local_hub, pushed, kind, tmp_path):
    folder = tmp_path / "fox"
    folder.mkdir()
    (folder / "notes.txt").write_text("not to be uploaded")
    pushed.save_pretrained(folder, push_to_hub=True)
    assert set(local_hub.files("me/fox")) == FILES[kind]
    assert (folder / "notes.txt").exists()


def test_pull_requests(local_hub, push, kind):
    """A pull request is based on the branch that `revision` names, and can be pushed to again."""
    local_hub.add_files("other/fox", {"notes.txt": b"main"})
    local_hub.add_files("other/fox", {"notes.txt": b"dev"}, revision="dev")
    push("other/fox", create_pr=True, revision="dev")
    files = local_hub.files("other/fox", "refs/pr/1")
    assert set(files) == FILES[kind] | {"notes.txt"}
    assert files["notes.txt"] == b"dev"
    assert set(local_hub.files("other/fox")) == set(local_hub.files("other/fox", "dev")) == {"notes.txt"}
    if push.result is not None:
        assert push.result.pr_revision == "refs/pr/1"
    local_hub.add_files("me/fox", {"notes.txt": b"main"})
    push("fox", create_pr=True)
    push("fox", revision="refs/pr/1", commit_message="more")
    commit = local_hub.repositories["model", "me/fox"].resolve("refs/pr/1")
    assert (commit.title, commit.files["notes.txt"].data) == ("more", b"main")
    assert set(local_hub.files("me/fox")) == {"notes.txt"}


def test_private_is_not_ignored_for_a_public_repository(local_hub, push):
    local_hub.add_files("me/fox", {"notes.txt": b"x"})
    with pytest.raises(ValueError, match="`private` must be left out for me/fox"):
        push("fox", private=True)
    assert local_hub.files("me/fox") == {"notes.txt": b"x"}
    local_hub.repositories["model", "me/fox"].private = True
    push("fox", private=True)
    assert len(local_hub.files("me/fox")) > 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"privat": True}, r"got \['privat'\]"),
        ({"branch": "dev"}, r"got \['branch'\]"),
        ({"use_auth_token": "hf_me"}, r"got \['use_auth_token'\]"),
        ({"tags": [1]}, r"`tags` must be strings, got \[1\]"),
    ],
)
def test_unknown_arguments_are_refused_by_name(local_hub, push, tmp_path, arguments, message):
    with pytest.raises(TypeError, match=message):
        push("fox", **arguments)
    assert not local_hub.repositories
    assert not (tmp_path / "saved").exists()


@pytest.mark.parametrize("name", ["repo_id", "commit_message", "private", "token", "revision", "create_pr", "tags"])
def test_arguments_of_an_upload_need_an_upload(pushed, tmp_path, name):
    with pytest.raises(TypeError, match=rf"got \['{name}'\].*push_to_hub=True"):
        pushed.save_pretrained(tmp_path / "saved", **{name: "x"})
    assert not (tmp_path / "saved").exists()


BAD_CARD = b"---\nlicense: none-such\n---\n"
FAULTS = {
    "refused": (Fault("/commit/", "status", 403), "403"),
    "server error": (Fault("/commit/", "status", 500), "500"),
    "storage refused": (Fault("/storage/put", "status", 403), "model.safetensors"),
    "cut in the middle": (Fault("/storage/put", "drop", 0.5), "model.safetensors"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_failed_push_leaves_the_repository_as_it_was(local_hub, monkeypatch, pipe, fault):
    """No file is changed or deleted, and a branch that was created for the push is removed."""
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # between the client's retries
    old = {"model-00001-of-00002.safetensors": b"old", "README.md": b"by hand"}
    local_hub.add_files("me/fox", old)
    before = dict(local_hub.repositories["model", "me/fox"].refs)
    armed, message = FAULTS[fault]
    local_hub.faults.append(armed)
    for revision in (None, "new"):
        with pytest.raises((HfHubHTTPError, RuntimeError), match=message):
            pipe.model.push_to_hub("fox", revision=revision)
    assert local_hub.repositories["model", "me/fox"].refs == before
    assert local_hub.files("me/fox") == old
    local_hub.faults.clear()
    pipe.model.push_to_hub("fox", revision="new")
    assert "model.safetensors" in local_hub.files("me/fox", "new")


def test_an_invalid_card_and_a_token_that_only_reads_are_refused(local_hub, push):
    local_hub.add_files("me/fox", {"README.md": BAD_CARD})
    with pytest.raises(ValueError, match="license"):
        push("fox", tags="t")
    with pytest.raises(HfHubHTTPError, match="403"):
        push("fox", token="hf_me_read")
    with pytest.raises(HfHubHTTPError, match="403"):
        push("team/new", token="hf_me_read")
    with pytest.raises((HfHubHTTPError, RepositoryNotFoundError)):
        push("other/fox")
    assert local_hub.files("me/fox") == {"README.md": BAD_CARD}
    assert list(local_hub.repositories) == [("model", "me/fox")]
