"""What cannot be had from the Hub is told as what it is, in one line, and never counts as absent."""

import time
from pathlib import Path

import pytest
from huggingface_hub import constants
from model_states import mark_of, renamed, slow

from hub_server import Fault
from janus_hf import JanusProForConditionalGeneration, JanusProPipeline, JanusProProcessor
from janus_hf.checkpoints.merge import merge_adapter
from tiny import TINY_MODEL


DOORS = {
    "model": JanusProForConditionalGeneration.from_pretrained,
    "pipeline": JanusProPipeline.from_pretrained,
    "processor": JanusProProcessor.from_pretrained,
}


def gated(hub, monkeypatch, repository):
    hub.repositories["model", repository].gated = True
    monkeypatch.setenv("HF_TOKEN", "hf_other")


def private(hub, monkeypatch, repository):
    hub.repositories["model", repository].private = True
    monkeypatch.setenv("HF_TOKEN", "hf_other")


def without_login(hub, monkeypatch, repository):
    hub.repositories["model", repository].gated = True
    monkeypatch.delenv("HF_TOKEN")


def deleted(hub, monkeypatch, repository):
    del hub.repositories["model", repository]


def wrong_token(hub, monkeypatch, repository):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")


def answering(status):
    return lambda hub, monkeypatch, repository: hub.faults.append(Fault(f"{repository}/resolve", "status", status))


def offline(hub, monkeypatch, repository):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


NOT_SEEN = (
    r"is not a folder on this machine, and http.* shows you no model repository of this id: check the spelling; "
)
REFUSALS = {
    "gated": (gated, r"the repository '{repository}' is gated, .*: ask for it on http\S*/{repository}, then log in"),
    "gated, no login": (without_login, r"the repository '{repository}' is gated, .* pass `token=...`"),
    "private": (private, NOT_SEEN + "if the repository is private, log in with `hf auth login` or pass `token=...`"),
    "deleted": (deleted, "'{repository}' " + NOT_SEEN),
    "token": (wrong_token, r"answers HTTP 401: the token is not valid; log in|" + NOT_SEEN),
    "forbidden": (answering(403), r"answers HTTP 403: the token may not read this repository"),
    "rate limit": (answering(429), r"answers HTTP 429, which means too many requests: wait some minutes"),
    "down": (answering(503), r"answers HTTP 503: try again later"),
    "broken": (answering(500), r"answers HTTP 500: try again later"),
    "offline": (offline, r"HF_HUB_OFFLINE=1 forbids asking the Hub, and the cache \(.*run `hf download {repository}`"),
}


@pytest.mark.parametrize("refusal", REFUSALS)
@pytest.mark.parametrize("door", DOORS)
def test_a_refused_model_is_told(local_hub, base, no_waiting, monkeypatch, door, refusal):
    refuse, message = REFUSALS[refusal]
    refuse(local_hub, monkeypatch, "me/base")
    with pytest.raises(OSError, match=message.format(repository="me/base")) as error:
        DOORS[door]("me/base")
    assert "\n" not in str(error.value)
    assert len(local_hub.requests) <= 7  # one file, with the client's retries


@pytest.mark.parametrize("refusal", REFUSALS)
@pytest.mark.parametrize("door", ["from_pretrained", "load_lora_weights", slow("load_adapter"), slow("merge")])
def test_a_refused_adapter_is_told(local_hub, lora, tiny_pipe, no_waiting, monkeypatch, tmp_path, door, refusal):
    refuse, message = REFUSALS[refusal]
    refuse(local_hub, monkeypatch, "me/lora")
    load = {
        "from_pretrained": JanusProForConditionalGeneration.from_pretrained,
        "load_lora_weights": tiny_pipe.load_lora_weights,
        "load_adapter": tiny_pipe.model.load_adapter,
        "merge": lambda source: merge_adapter(source, tmp_path / "merged"),
    }[door]
    with pytest.raises(OSError, match=message.format(repository="me/lora")) as error:
        load("me/lora")
    assert "\n" not in str(error.value)
    assert not tiny_pipe.get_list_adapters()
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize("refusal", ["gated", "private", "deleted", "rate limit", "revision"])
@pytest.mark.parametrize("door", ["pipeline", *map(slow, ["model", "processor", "merge"])])
def test_a_refused_base_is_told_as_the_base(local_hub, lora, no_waiting, monkeypatch, tmp_path, door, refusal):
    local_hub.repositories["model", "other/base"] = local_hub.repositories["model", "me/base"]
    config = local_hub.files("me/lora")["adapter_config.json"]
    revision = "gone" if refusal == "revision" else "dev"
    local_hub.add_files(
        "other/lora",
        local_hub.files("me/lora")
        | {"adapter_config.json": renamed(config, base_model_name_or_path="me/base", revision=revision)},
    )
    if refusal == "revision":
        message = "the repository 'me/base' has no branch, tag or commit 'gone'"
    else:
        refuse, message = REFUSALS[refusal]
        refuse(local_hub, monkeypatch, "me/base")
    load = DOORS.get(door) or (lambda source: merge_adapter(source, tmp_path / "merged"))
    with pytest.raises(OSError, match=message.format(repository="me/base")) as error:
        load("other/lora")
    assert str(error.value).startswith("The base model 'me/base' of the adapter 'other/lora' cannot be opened: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("door", DOORS)
def test_a_revision_that_does_not_exist_is_told(local_hub, base, door):
    with pytest.raises(OSError, match=r"'me/base' has no branch, tag or commit 'v9': choose one of those on http"):
        DOORS[door]("me/base", revision="v9")


@pytest.mark.parametrize("source", ["no/such/folder", "/no/such/folder", "no such id"])
@pytest.mark.parametrize("door", DOORS)
def test_what_is_neither_folder_nor_id_is_told(local_hub, monkeypatch, door, source):
    for is_offline in (False, True):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", is_offline)
        with pytest.raises(OSError, match=f"'{source}' is not a folder on this machine, and not a repository id such"):
            DOORS[door](source)
    assert not local_hub.requests


def test_no_connection_is_noticed_by_the_first_file(local_hub, no_waiting, monkeypatch, caplog):
    """Nothing listens at the address: only the first file is asked for, with the client's five retries."""
    address = "http://127.0.0.1:9"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    start = time.monotonic()
    for door in DOORS.values():
        with pytest.raises(OSError, match=r"http://127.0.0.1:9 cannot be reached \(ConnectError: .*: check the conne"):
            door("me/base")
    assert time.monotonic() - start < 5
    tries = [record for record in caplog.records if "Retrying" in record.getMessage()]
    assert len(tries) == 5 * len(DOORS)


@pytest.mark.parametrize("command", [["draw", "a cat", "--model"], ["chat", "--model"], ["info"]])
def test_a_command_says_it_in_one_line(local_hub, run, command):
    status, _, error = run(*command, "me/none")
    lines = [line for line in error.splitlines() if line.startswith("janus-hf")]
    assert status == 1
    assert len(lines) == 1
    assert "shows you no model repository of this id" in lines[0]
    assert error.splitlines()[-1] == lines[0]


FILES = sorted(path.name for path in Path(TINY_MODEL).iterdir())
ABSENT = ["added_tokens.json", "chat_template.json", "adapter_config.json"]  # files that are asked for in vain
FAULTS = {"503": ("status", 503), "403": ("status", 403), "cut": ("cut", 0.5)}


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        *[(name, "503") for name in FILES + ABSENT],
        *[pytest.param(name, "403", marks=pytest.mark.slow) for name in FILES + ABSENT],
        *[pytest.param(name, "cut", marks=pytest.mark.slow) for name in FILES],
    ],
)
def test_a_file_that_cannot_be_had_is_not_absent(local_hub, base, no_waiting, name, fault):
    """The pipeline reads every file, or raises an error that names the one it does not get."""
    kind, value = FAULTS[fault]
    match = f"/{name}" if fault != "cut" or name != "model.safetensors" else "/storage/get"
    local_hub.faults.append(Fault(match, kind, value))
    with pytest.raises(OSError, match=f"^{name} of 'me/base' cannot be read: ") as error:
        JanusProPipeline.from_pretrained("me/base")
    assert "\n" not in str(error.value)
    if fault == "cut":  # nothing of the failed load stays behind
        local_hub.faults.clear()
        pipe = JanusProPipeline.from_pretrained("me/base")
        assert (mark_of(pipe.model), pipe.model.generation_config.top_k) == (1.0, 3)


@pytest.mark.parametrize("fault", ["503", "cut"])
@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
@pytest.mark.parametrize("door", ["model", slow("pipeline"), "load_lora_weights", slow("merge")])
def test_a_file_of_an_adapter_that_cannot_be_had_is_not_absent(
    local_hub, lora, tiny_pipe, no_waiting, tmp_path, door, name, fault
):
    kind, value = FAULTS[fault]
    file = local_hub.repositories["model", "me/lora"].resolve("main").files[name]
    match = f"/storage/get/{file.etag}" if fault == "cut" and file.lfs else f"/{name}"
    local_hub.faults.append(Fault(match, kind, value))
    load = {
        **DOORS,
        "load_lora_weights": tiny_pipe.load_lora_weights,
        "merge": lambda source: merge_adapter(source, tmp_path / "merged"),
    }[door]
    with pytest.raises(OSError, match=f"{name} of 'me/lora' cannot be read: "):
        load("me/lora")


def test_weights_are_not_taken_from_an_older_file_beside_them(local_hub, base, states, no_waiting):
    """transformers goes on to pytorch_model.bin where it does not get model.safetensors."""
    local_hub.add_files("me/base", {"pytorch_model.bin": b"other weights"})
    local_hub.faults.append(Fault("/model.safetensors", "status", 503))
    with pytest.raises(OSError, match="^model.safetensors of 'me/base' cannot be read"):
        JanusProForConditionalGeneration.from_pretrained("me/base")
    assert not local_hub.asked_for("pytorch_model.bin")


def test_the_tokenizer_of_an_original_checkpoint_is_not_absent(local_hub, golden_checkpoint, no_waiting):
    """Its config names no special token ids, so that the model reads tokenizer.json too."""
    local_hub.add_files("me/original", {path.name: path.read_bytes() for path in golden_checkpoint.iterdir()})
    local_hub.faults.append(Fault("/tokenizer.json", "status", 503))
    with pytest.raises(OSError, match="^tokenizer.json of 'me/original' cannot be read"):
        JanusProForConditionalGeneration.from_pretrained("me/original")
    local_hub.faults.clear()
    model = JanusProForConditionalGeneration.from_pretrained("me/original")
    assert model.config.image_token_id is not None


@pytest.mark.parametrize("share", [slow(0.0), 0.5, slow(0.99)])
def test_a_cut_download_is_gone_on_with(local_hub, base, no_waiting, share):
    local_hub.faults.append(Fault("/storage/get", "cut", share, times=2))
    assert mark_of(JanusProForConditionalGeneration.from_pretrained("me/base")) == 1.0
    assert not any(fault.times for fault in local_hub.faults)


def test_a_cached_model_is_loaded_where_the_hub_is_down(local_hub, base, no_waiting, caplog):
    JanusProPipeline.from_pretrained("me/base")
    local_hub.faults.append(Fault("/", "status", 503))
    assert mark_of(JanusProPipeline.from_pretrained("me/base").model) == 1.0
