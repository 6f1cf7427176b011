"""Repositories on the local Hub: two states of the tiny model, and an adapter."""

import pytest
from huggingface_hub.utils import _http
from model_states import marked, renamed

from janus_hf import JanusProForConditionalGeneration, JanusProPipeline, JanusProProcessor
from tiny import TINY_MODEL


@pytest.fixture(scope="session")
def states() -> dict[str, dict[str, bytes]]:
    """Files of two states of the tiny model, "main" marked by 1 and "dev" marked by 2."""
    return {"main": marked(1.0, top_k=3), "dev": marked(2.0, top_k=4)}


@pytest.fixture(scope="session")
def adapter_files(tmp_path_factory) -> dict[str, bytes]:
    """Files of an adapter that changes something; its config names me/base at the revision "dev"."""
    from peft import LoraConfig, get_peft_model

    folder = tmp_path_factory.mktemp("adapter")
    model = JanusProForConditionalGeneration.from_pretrained(TINY_MODEL)
    config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    get_peft_model(model, config, revision="dev").save_pretrained(folder)
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "README.md"}
    return files | {"adapter_config.json": renamed(files["adapter_config.json"], base_model_name_or_path="me/base")}


@pytest.fixture
def base(local_hub, states):
    """The repository me/base with the branches main and dev; returns the hashes of their commits."""
    commits = {"main": local_hub.add_files("me/base", states["main"])}
    local_hub.repositories["model", "me/base"].refs["heads/dev"] = commits["main"]
    commits["dev"] = local_hub.add_files("me/base", states["dev"], "dev")
    return commits


@pytest.fixture
def lora(local_hub, base, adapter_files):
    """The adapter me/lora of me/base at the revision "dev", with no processor; returns the hash of its commit."""
    return local_hub.add_files("me/lora", adapter_files)


@pytest.fixture
def no_waiting(monkeypatch):
    """The client does not wait before it asks again."""
    monkeypatch.setattr(_http.time, "sleep", lambda seconds: None)


@pytest.fixture(scope="session")
def tiny_pipe() -> JanusProPipeline:
    """A pipeline with the tiny model. Shared: a test may only try in vain to change it."""
    model = JanusProForConditionalGeneration.from_pretrained(TINY_MODEL)
    return JanusProPipeline(model, JanusProProcessor.from_pretrained(TINY_MODEL))
