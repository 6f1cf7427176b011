"""Model cards that pushing and saving write: what they state, and that a card edited by hand is kept."""

import contextlib
import io
import re
import time

import pytest
import torch
from huggingface_hub import ModelCard, hf_hub_download
from peft import LoraConfig

from hub_repositories import card_data
from hub_server import Fault
from janus_hf import JanusProPipeline
from tiny import TINY_MODEL


DEEPSEEK = {
    "license": "other",
    "license_name": "deepseek",
    "license_link": "https://github.com/deepseek-ai/DeepSeek-LLM/blob/HEAD/LICENSE-MODEL",
}
BY_HAND = b"---\n# a comment\nlicense: mit\ntags:\n- mine\n---\n\n# By hand\r\n\n| dtype | float8 |\n"


@pytest.fixture(scope="module")
def pipe():
    pipe = JanusProPipeline.from_pretrained(TINY_MODEL, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(autouse=True)
def loaded_from(pipe, monkeypatch):
    """Function `loaded_from(source)` that makes the pipe's model one that was loaded from there."""

    def loaded_from(source):
        monkeypatch.setattr(pipe.model.config, "_name_or_path", str(source))

    loaded_from("")
    return loaded_from


def card_of(hub, repo_id, revision="main"):
    return hub.files(repo_id, revision)["README.md"].decode()


def license_of(card):
    return {name: value for name, value in card_data(card).items() if name.startswith("license")}


# The model's source, the card of the base on the Hub, and the base model and license that the pushed card must state.
BASES = {
    "released by deepseek-ai": ("deepseek-ai/Janus-Pro-1B", None, DEEPSEEK),
    "its card wins over the table": ("deepseek-ai/Janus-Pro-1B", "license: mit", {"license": "mit"}),
    "another license": ("them/fox", "license: apache-2.0", {"license": "apache-2.0"}),
    "a link inside the base": (
        "them/fox",
        "license: other\nlicense_name: fox\nlicense_link: LICENSE",
        {
            "license": "other",
            "license_name": "fox",
            "license_link": "https://huggingface.co/them/fox/blob/main/LICENSE",
        },
    ),
    "no license": ("them/fox", "tags: []", {}),
    "broken metadata": ("them/fox", "license: [", {}),
    "no card": ("them/fox", None, {}),
}


@pytest.mark.parametrize("name", BASES)
def test_the_license_is_that_of_the_base(local_hub, pipe, loaded_from, name):
    base, metadata, expected = BASES[name]
    if metadata is not None:
        local_hub.add_files(base, {"README.md": f"---\n{metadata}\n---\n".encode()})
    loaded_from(base)
    pipe.model.push_to_hub("new")
    card = card_of(local_hub, "me/new")
    assert card_data(card)["base_model"] == base
    assert license_of(card) == expected
    assert card_data(card)["library_name"] == "janus_hf"
    assert card_data(card)["pipeline_tag"] == "any-to-any"


@pytest.mark.parametrize("status", [403, 500])
def test_a_base_whose_card_is_unreachable_is_named_without_a_license(
    local_hub, pipe, loaded_from, monkeypatch, status
):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # between the client's retries
    local_hub.add_files("them/fox", {"README.md": b"---\nlicense: mit\n---\n"})
    local_hub.faults.append(Fault("them/fox/resolve", "status", status))
    loaded_from("them/fox")
    pipe.model.push_to_hub("new")
    card = card_of(local_hub, "me/new")
    assert (card_data(card)["base_model"], license_of(card)) == ("them/fox", {})


@pytest.mark.parametrize("source", ["absolute", "some/folder", "", "./x/y", "../y", "/x/y", "C:\\x\\y", "me/new"])
def test_a_base_model_is_never_a_path_or_the_repository_itself(
    local_hub, pipe, loaded_from, tmp_path, monkeypatch, source
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "some" / "folder").mkdir(parents=True)
    loaded_from(tmp_path if source == "absolute" else source)
    pipe.model.push_to_hub("new", max_shard_size="50GB")
    assert "base_model" not in card_data(card_of(local_hub, "me/new"))
    assert license_of(card_of(local_hub, "me/new")) == {}


def test_a_folder_passes_on_the_base_that_its_card_names(local_hub, pipe, loaded_from, tmp_path):
    (tmp_path / "README.md").write_text("---\nbase_model:\n- them/fox\n- /x/y\nlicense: mit\n---\n")
    loaded_from(tmp_path)
    pipe.model.push_to_hub("new")
    card = card_of(local_hub, "me/new")
    assert (card_data(card)["base_model"], license_of(card)) == ("them/fox", {"license": "mit"})
    cached = tmp_path / "models--deepseek-ai--Janus-Pro-7B" / "snapshots" / "0123"
    cached.mkdir(parents=True)
    loaded_from(cached)
    pipe.model.push_to_hub("new")
    card = card_of(local_hub, "me/new")
    assert (card_data(card)["base_model"], license_of(card)) == ("deepseek-ai/Janus-Pro-7B", DEEPSEEK)


def test_an_edited_card_is_kept_and_completed(local_hub, pipe, loaded_from, tmp_path):
    """The text is kept; only metadata that is missing is added, and given tags."""
    loaded_from("deepseek-ai/Janus-Pro-1B")
    local_hub.add_files("me/fox", {"README.md": BY_HAND})
    pushes = [
        lambda: pipe.push_to_hub("fox"),
        lambda: pipe.save_pretrained(tmp_path / "fox", push_to_hub=True),
        lambda: pipe.model.push_to_hub("fox", tags=["new", "mine"]),
        lambda: pipe.processor.push_to_hub("fox", tags=["more"]),
        lambda: pipe.processor.push_to_hub("fox"),
    ]
    seen = [BY_HAND.decode()]
    for push in pushes:
        push()
        seen.append(card_of(local_hub, "me/fox"))
    assert all(card.endswith("\n\n# By hand\r\n\n| dtype | float8 |\n") for card in seen)
    metadata = card_data(seen[1])
    assert (metadata["license"], metadata["tags"]) == ("mit", ["mine"])
    assert (metadata["library_name"], metadata["base_model"]) == ("janus_hf", "deepseek-ai/Janus-Pro-1B")
    assert license_of(seen[-1]) == {"license": "mit"}
    assert seen[1] == seen[2]
    assert card_data(seen[3])["tags"] == ["mine", "new"]
    assert card_data(seen[4])["tags"] == ["mine", "new", "more"]
    assert seen[4] == seen[5]


def test_the_tags_of_the_model_are_stated(local_hub, pipe, monkeypatch):
    monkeypatch.setattr(pipe.model, "model_tags", ["sft"])
    pipe.push_to_hub("fox", tags="t")
    assert card_data(card_of(local_hub, "me/fox"))["tags"][-2:] == ["sft", "t"]


def test_a_complete_card_stays_the_same_byte_for_byte(local_hub, pipe):
    card = (
        b"---\n# a comment\nlicense: mit\nlibrary_name: x\npipeline_tag: any-to-any\ntags: [mine]\n---\n\xc3\xa4\r\n"
    )
    local_hub.add_files("me/fox", {"README.md": card})
    pipe.push_to_hub("fox", tags="mine")
    assert local_hub.files("me/fox")["README.md"] == card


def test_cards_of_revisions_and_pull_requests(local_hub, pipe):
    """The card that counts is that of the branch; a new branch starts with main's, as does a pull request."""
    local_hub.add_files("me/fox", {"README.md": BY_HAND})
    local_hub.add_files("me/fox", {"README.md": BY_HAND.replace(b"By hand", b"Of dev")}, revision="dev")
    pipe.model.push_to_hub("fox", revision="dev")
    pipe.model.push_to_hub("fox", revision="new")
    pipe.model.push_to_hub("fox", create_pr=True)
    assert "# Of dev" in card_of(local_hub, "me/fox", "dev")
    assert "# By hand" in card_of(local_hub, "me/fox", "new")
    assert "# By hand" in card_of(local_hub, "me/fox", "refs/pr/1")
    assert local_hub.files("me/fox")["README.md"] == BY_HAND


def test_a_generated_card_is_kept_up_to_date_until_it_is_edited(local_hub, pipe, loaded_from, monkeypatch):
    loaded_from("deepseek-ai/Janus-Pro-1B")
    pipe.push_to_hub("fox", tags=["first"])
    assert "| dtype | float32 |" in card_of(local_hub, "me/fox")
    loaded_from("me/fox")
    pipe.push_to_hub("fox", tags=["second"], variant="fp16")
    card = card_of(local_hub, "me/fox")
    assert 'from_pretrained("me/fox", variant="fp16")' in card
    assert (card_data(card)["base_model"], license_of(card)) == ("deepseek-ai/Janus-Pro-1B", DEEPSEEK)
    assert card_data(card)["tags"][-2:] == ["first", "second"]
    pipe.processor.push_to_hub("fox", tags=["third"])
    loaded_from("them/other")  # whose license is not known
    pipe.push_to_hub("fox")
    card = card_of(local_hub, "me/fox")
    assert (card_data(card)["base_model"], license_of(card)) == ("them/other", {})
    assert card_data(card)["tags"][-3:] == ["first", "second", "third"]
    assert 'from_pretrained("me/fox")' in card
    edited = card.replace("A Janus-Pro model:", "My model:")
    local_hub.add_files("me/fox", {"README.md": edited.encode()})
    pipe.push_to_hub("fox", variant="fp16")
    assert card_of(local_hub, "me/fox") == edited


def test_saving_states_a_license_that_the_cache_knows(local_hub, pipe, loaded_from, tmp_path):
    local_hub.add_files("them/fox", {"README.md": b"---\nlicense: mit\n---\n"})
    loaded_from("them/fox")
    pipe.save_pretrained(tmp_path / "unknown")
    assert license_of((tmp_path / "unknown" / "README.md").read_text()) == {}
    assert not local_hub.requests  # saving needs no Hub
    hf_hub_download("them/fox", "README.md")
    pipe.save_pretrained(tmp_path / "known")
    assert license_of((tmp_path / "known" / "README.md").read_text()) == {"license": "mit"}


def test_saving_keeps_an_edited_card(pipe, tmp_path, loaded_from, local_hub):
    loaded_from("deepseek-ai/Janus-Pro-1B")
    pipe.save_pretrained(tmp_path)
    readme = tmp_path / "README.md"
    assert license_of(readme.read_text()) == DEEPSEEK
    pipe.save_pretrained(tmp_path, variant="fp16")
    assert 'variant="fp16"' in readme.read_text()
    readme.write_bytes(BY_HAND)
    pipe.save_pretrained(tmp_path)
    assert readme.read_bytes().endswith(b"\n\n# By hand\r\n\n| dtype | float8 |\n")
    readme.write_bytes(broken := b"---\nlicense: [\n---\n# Mine\n")
    pipe.save_pretrained(tmp_path)
    assert readme.read_bytes() == broken
    assert not local_hub.requests  # saving needs no Hub
    readme.write_bytes(latin := b"---\nlicense: [\n---\n\xe4\n")
    pipe.save_pretrained(tmp_path)
    assert readme.read_bytes() == latin
    readme.write_bytes(b"\xef\xbb\xbf# Mine\n")  # goes to a repository that has no card
    pipe.model.save_pretrained(tmp_path, push_to_hub=True, repo_id="fox")
    assert card_of(local_hub, "me/fox").endswith("---\n# Mine\n")


@pytest.mark.parametrize(
    "kind", ["pipe", "model", "model without heads", "model beside a processor", "processor", "adapter"]
)
def test_the_code_in_the_card_runs(local_hub, pipe, tmp_path, monkeypatch, kind):
    where = {"revision": "dev", "variant": "fp16"}
    monkeypatch.chdir(tmp_path)
    local_hub.add_files("me/fox", {"notes.txt": b"made before"})
    pushed = pipe if kind == "pipe" else pipe.processor if kind == "processor" else pipe.model
    if kind == "model without heads":
        pushed = pipe.model.model
    if kind == "adapter":
        where = {"revision": "dev"}  # an adapter has no variants
        pipe.push_to_hub("base", revision="old")  # the main branch of the base model is empty
        pushed = JanusProPipeline.from_pretrained("me/base", revision="old", dtype=torch.float32).model
        pushed.add_adapter(LoraConfig(r=2, target_modules=["q_proj"]))
    if kind == "model beside a processor":
        pipe.processor.push_to_hub("fox", revision="dev")
    pushed.push_to_hub("fox", tags="t", **where)
    card = card_of(local_hub, "me/fox", "dev")
    ModelCard(card).validate()
    assert ("| base model | me/base at revision old |" in card) == (kind == "adapter")
    code = re.search(r"```python\n(.*?)```", card, re.S)[1]
    assert ("JanusProPipeline" in code) == (kind not in ("model", "model without heads", "processor"))
    with contextlib.redirect_stdout(io.StringIO()):
        exec(code, {})
    assert (tmp_path / "fox.png").exists() == ("JanusProPipeline" in code)
