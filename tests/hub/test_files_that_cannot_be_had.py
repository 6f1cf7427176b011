"""A file whose download fails does not count as absent, whichever file of a checkpoint it is and whoever reads it."""

import re
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants, snapshot_download
from transformers import AutoProcessor

from hub_server import Fault
from janus_hf import (
    CheckpointError,
    JanusProForConditionalGeneration,
    JanusProImageProcessor,
    JanusProModel,
    JanusProPipeline,
    JanusProProcessor,
)
from janus_hf.checkpoints.merge import merge_adapter
from janus_hf.hub.fetching import fetch_files


TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
READERS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "processor": (
        JanusProProcessor.from_pretrained,
        (
            *TOKENIZER_FILES,
            "processor_config.json",
            "preprocessor_config.json",
            "chat_template.jinja",
            "chat_template.json",
        ),
    ),
    "image processor": (
        JanusProImageProcessor.from_pretrained,
        ("preprocessor_config.json", "processor_config.json"),
    ),
    "model": (
        JanusProForConditionalGeneration.from_pretrained,
        (
            *TOKENIZER_FILES,
            "processor_config.json",
            "config.json",
            "generation_config.json",
            "adapter_config.json",
        ),
    ),
    "base model": (JanusProModel.from_pretrained, ("config.json", "adapter_config.json", "tokenizer.json")),
}


@pytest.fixture
def repository(local_hub, golden_checkpoint: Path):
    """The Hub with the golden checkpoint as me/model, whose config and files name no special token ids."""
    local_hub.add_files("me/model", {path.name: path.read_bytes() for path in golden_checkpoint.iterdir()})
    return local_hub


@pytest.mark.parametrize(
    ("reader", "name"), [(reader, name) for reader, (_, names) in READERS.items() for name in names]
)
def test_a_failed_download_is_an_error(reader: str, name: str, repository) -> None:
    """It is one too if the repository has no such file: the Hub has not said so."""
    repository.faults.append(Fault(f"/{name}", "status", 403))
    with pytest.raises(OSError, match=re.escape(name)):
        READERS[reader][0]("me/model")


@pytest.mark.parametrize("reader", READERS)
def test_without_faults_everything_is_read_and_then_read_again_offline(
    reader: str, repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = READERS[reader][0]
    load("me/model")
    load("me/model", local_files_only=True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    load("me/model")


@pytest.mark.parametrize("reader", READERS)
def test_a_repository_that_was_downloaded_as_a_whole_is_read_offline(reader: str, repository) -> None:
    """The cache then holds every file, but no marks of the files that the repository lacks."""
    snapshot_download("me/model")
    READERS[reader][0]("me/model", local_files_only=True)


def test_offline_a_file_that_the_reading_depends_on_is_not_taken_for_absent(repository) -> None:
    snapshot_download("me/model", ignore_patterns=["processor_config.json"])
    with pytest.raises(OSError, match="^processor_config.json of 'me/model' cannot be read"):
        AutoProcessor.from_pretrained("me/model", local_files_only=True)


def test_the_hub_is_asked_once_about_a_file(repository) -> None:
    first = fetch_files("me/model", needed=["config.json"], optional=["added_tokens.json"])
    assert first["added_tokens.json"] is None
    assert Path(first["config.json"] or "").is_file()
    repository.faults += [Fault("/config.json", "status", 403), Fault("/added_tokens.json", "status", 403)]
    assert fetch_files("me/model", needed=["config.json"], optional=["added_tokens.json"]) == first


def test_merging_takes_no_other_processor_for_one_that_cannot_be_read(
    golden_checkpoint: Path, tmp_path: Path, repository
) -> None:
    from peft import LoraConfig, get_peft_model

    model = JanusProForConditionalGeneration.from_pretrained(golden_checkpoint)
    adapter = tmp_path / "adapter"
    get_peft_model(model, LoraConfig(target_modules=["q_proj"])).save_pretrained(adapter)
    (adapter / "tokenizer.json").write_text("{}", encoding="utf-8")
    with pytest.raises(CheckpointError, match="tokenizer files of .*adapter. must be whole, got KeyError"):
        merge_adapter(adapter, tmp_path / "merged", base=golden_checkpoint)
    assert not (tmp_path / "merged").exists()
    (adapter / "tokenizer.json").unlink()
    repository.faults.append(Fault("/tokenizer_config.json", "status", 403))
    with pytest.raises(OSError, match="tokenizer_config"):
        merge_adapter(adapter, tmp_path / "merged", base="me/model")
    assert not (tmp_path / "merged").exists()
    repository.faults.clear()
    merge_adapter(adapter, tmp_path / "merged", base="me/model", layout="transformers")
    assert type(AutoProcessor.from_pretrained(tmp_path / "merged")).__name__ == "JanusProcessor"


def test_an_adapter_that_cannot_be_had_is_not_called_absent(golden_checkpoint: Path, repository) -> None:
    pipe = JanusProPipeline.from_pretrained(golden_checkpoint)
    repository.add_files("me/adapter", {"adapter_config.json": b"{}"})
    repository.faults.append(Fault("/adapter_config.json", "status", 403))
    with pytest.raises(OSError, match="^adapter_config.json of 'me/adapter' cannot be read"):
        pipe.load_lora_weights("me/adapter")
