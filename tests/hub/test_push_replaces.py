"""Saving and pushing over an earlier save: the new weights are those that load, and no other file is lost."""

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from janus_hf import JanusProForConditionalGeneration, JanusProPipeline
from tiny import TINY_MODEL


# Ways to save a model; every one must replace every other of the same variant.
WAYS = {
    "one file": {},
    "many files": {"max_shard_size": "700KB"},
    "more files": {"max_shard_size": "400KB"},
    "transformers layout": {"layout": "transformers"},
}
OLD_BINS = ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "pytorch_model.bin.index.json"]
# Files that have names like those of weights, and are not of an earlier save of this variant.
OTHERS = [
    "model.fp32.safetensors",
    "model.fp32-00001-of-00002.safetensors",
    "model.safetensors.index.fp32.json",
    "pytorch_model.fp32.bin",
    "model.bin",
    "modeling.py",
    "model_card.safetensors",
    "my-model.safetensors",
    "model-1-of-2.safetensors",
    "training_args.bin",
    "notes.txt",
]
IN_FOLDERS = ["fp32/model.safetensors", "fp32/adapter_config.json"]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Folder with the tiny checkpoint, from which everything is loaded, so that its path could leak."""
    folder = tmp_path_factory.mktemp("secret") / "base"
    shutil.copytree(TINY_MODEL, folder)
    return folder


@pytest.fixture(scope="module")
def pipe(base):
    return JanusProPipeline.from_pretrained(base, dtype=torch.float32)


@pytest.fixture(scope="module")
def lora(base):
    """A model with an adapter that changes it."""
    return with_adapter(JanusProForConditionalGeneration.from_pretrained(base, dtype=torch.float32))


def with_adapter(model):
    model.add_adapter(LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    return model


def change(model):
    """Change a weight in place and return its value."""
    with torch.no_grad():
        model.lm_head.weight += 1
    return model.lm_head.weight.clone()


def loaded_head(source, **kwargs):
    return JanusProForConditionalGeneration.from_pretrained(source, dtype=torch.float32, **kwargs).lm_head.weight


def assert_one_save(files, *, sharded):
    """Check that files hold either one weight file, or an index and exactly the shards that it names."""
    weights = {name for name in files if name.endswith((".safetensors", ".bin"))}
    indices = [name for name in files if ".index." in name]
    assert len(indices) == sharded
    if sharded:
        assert weights == set(json.loads(files[indices[0]])["weight_map"].values())
    else:
        assert len(weights) == 1


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_pushing_replaces_the_weights_of_the_variant(local_hub, pipe, variant):
    others = {name: b"other" for name in [*OTHERS, *IN_FOLDERS]}
    suffix = f".{variant}" if variant else ""
    bins = {
        "pytorch_model.bin": f"pytorch_model{suffix}.bin",
        "pytorch_model-00001-of-00002.bin": f"pytorch_model{suffix}-00001-of-00002.bin",
        "pytorch_model.bin.index.json": f"pytorch_model.bin.index{suffix}.json",
    }
    local_hub.add_files("me/fox", others | {name: b"old" for name in bins.values()})
    for way, arguments in [*WAYS.items(), ("one file", {})]:
        head = change(pipe.model)
        (pipe if way == "many files" else pipe.model).push_to_hub("fox", variant=variant, **arguments)
        files = local_hub.files("me/fox")
        assert all(files.pop(name) == b"other" for name in others)
        assert not files.keys() & set(bins.values())
        assert_one_save(files, sharded="max_shard_size" in arguments)
        assert torch.equal(loaded_head("me/fox", variant=variant), head), way


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("one file", "many files"),
        ("many files", "one file"),
        ("more files", "many files"),
        ("many files", "transformers layout"),
    ],
)
def test_saving_replaces_the_weights_of_the_variant(pipe, tmp_path, first, second):
    for name in [*OTHERS, *OLD_BINS]:
        (tmp_path / name).write_bytes(b"other")
    pipe.model.save_pretrained(tmp_path, **WAYS[first])
    pipe.model.save_pretrained(tmp_path, variant="fp16", **WAYS[first])
    old = pipe.model.lm_head.weight.clone()
    head = change(pipe.model)
    pipe.model.save_pretrained(tmp_path, **WAYS[second])
    assert torch.equal(loaded_head(tmp_path), head)
    assert torch.equal(loaded_head(tmp_path, variant="fp16"), old)
    assert all((tmp_path / name).read_bytes() == b"other" for name in OTHERS)
    assert not any((tmp_path / name).exists() for name in OLD_BINS)
    ours = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    ours = {name: data for name, data in ours.items() if name not in OTHERS and "fp16" not in name}
    assert_one_save(ours, sharded="max_shard_size" in WAYS[second])


def test_a_failed_save_changes_nothing(pipe, tmp_path, monkeypatch):
    pipe.save_pretrained(tmp_path / "fox", max_shard_size="700KB")
    before = {path.name: path.read_bytes() for path in (tmp_path / "fox").iterdir()}
    change(pipe.model)
    calls = []

    def fail_at_last(*args, **kwargs):
        calls.append(args)
        raise OSError("disk full")

    monkeypatch.setattr(pipe.processor, "save_pretrained", fail_at_last, raising=False)
    with pytest.raises(OSError, match="disk full"):
        pipe.save_pretrained(tmp_path / "fox")
    with pytest.raises(OSError, match="disk full"):
        pipe.save_pretrained(tmp_path / "new")
    assert len(calls) == 2
    assert {path.name: path.read_bytes() for path in (tmp_path / "fox").iterdir()} == before
    assert not (tmp_path / "new").exists()


def test_a_file_is_no_folder(pipe, tmp_path):
    (tmp_path / "file").write_text("x")
    for saved in (pipe, pipe.model):
        with pytest.raises(ValueError, match="`save_directory` must be a folder"):
            saved.save_pretrained(tmp_path / "file")


def test_a_whole_model_replaces_an_adapter_on_the_hub_only(local_hub, pipe, lora, base, tmp_path):
    """On the Hub the adapter stays in the history; in a folder it could not be restored."""
    lora.push_to_hub("fox")
    pipe.push_to_hub("fox")
    assert not [name for name in local_hub.files("me/fox") if name.startswith("adapter")]
    assert torch.equal(loaded_head("me/fox"), pipe.model.lm_head.weight)
    folder = tmp_path / "adapter"
    lora.save_pretrained(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for saved in (pipe, pipe.model):
        with pytest.raises(ValueError, match=r"without an adapter, got .*adapter_config\.json.*: choose another"):
            saved.save_pretrained(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_an_adapter_is_pushed_beside_its_base(local_hub, base):
    pipe = JanusProPipeline.from_pretrained(base, dtype=torch.float32)
    pipe.push_to_hub("fox", max_shard_size="700KB")
    whole = set(local_hub.files("me/fox"))
    loaded = with_adapter(JanusProForConditionalGeneration.from_pretrained("me/fox", dtype=torch.float32))
    local_hub.add_files("me/fox", {"adapter_model.bin": b"old"})
    loaded.push_to_hub("fox")
    assert set(local_hub.files("me/fox")) == whole | {"adapter_config.json", "adapter_model.safetensors"}
    opened = JanusProForConditionalGeneration.from_pretrained("me/fox", dtype=torch.float32)
    assert all(torch.equal(value, opened.state_dict()[name]) for name, value in loaded.state_dict().items())


@pytest.mark.parametrize("way", ["model", "pipe"])
def test_adapters_are_pushed_with_a_card(local_hub, lora, pipe, tmp_path, caplog, way):
    if way == "model":
        lora.push_to_hub("fox", tags=["t"], revision="dev")
    else:
        shared = JanusProPipeline(lora, pipe.processor)
        shared.save_lora_weights(
            tmp_path / "saved", push_to_hub=True, repo_id="fox", tags=["t"], revision="dev", commit_message="m"
        )
        assert json.loads((tmp_path / "saved" / "adapter_config.json").read_text())["base_model_name_or_path"]
    files = local_hub.files("me/fox", "dev")
    assert {"adapter_config.json", "adapter_model.safetensors", "README.md"} <= set(files)
    assert "model.safetensors" not in files
    assert (
        json.loads(files["adapter_config.json"])["base_model_name_or_path"]
        == f"./{Path(lora.config.name_or_path).name}"
    )
    assert "does not name its base model" in caplog.text
    card = files["README.md"].decode()
    assert "library_name: peft\n" in card
    assert "- t\n" in card
    assert "- lora\n" in card
    with pytest.raises(TypeError, match=r"got \['repo_id'\]"):
        JanusProPipeline(lora, pipe.processor).save_lora_weights(tmp_path / "x", repo_id="fox")


@pytest.mark.parametrize("arguments", [{"variant": "fp16"}, {"max_shard_size": "1KB"}])
def test_an_adapter_is_one_file_without_variants(lora, tmp_path, arguments):
    with pytest.raises(ValueError, match=f"`{next(iter(arguments))}` must"):
        lora.save_pretrained(tmp_path / "x", **arguments)
    assert not (tmp_path / "x").exists()


def test_an_adapter_names_the_base_on_the_hub(local_hub, lora, monkeypatch):
    monkeypatch.setattr(lora.config, "_name_or_path", "deepseek-ai/Janus-Pro-1B")
    lora.push_to_hub("fox")
    files = local_hub.files("me/fox")
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == "deepseek-ai/Janus-Pro-1B"
    assert "base_model: deepseek-ai/Janus-Pro-1B\n" in files["README.md"].decode()


def test_a_model_inside_a_peft_model_is_not_saved_as_a_broken_one(local_hub, pipe, tmp_path):
    wrapped = get_peft_model(copy.deepcopy(pipe.model), LoraConfig(r=2, target_modules=["q_proj"]))
    for push in (
        lambda: wrapped.get_base_model().save_pretrained(tmp_path / "x"),
        lambda: wrapped.get_base_model().push_to_hub("fox"),
    ):
        with pytest.raises(ValueError, match="save the PeftModel instead"):
            push()
    assert not (tmp_path / "x").exists()
    assert not local_hub.repositories
    wrapped.push_to_hub("fox")
    again = PeftModel.from_pretrained(copy.deepcopy(pipe.model), "me/fox")
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in wrapped.state_dict().items())
    merged = wrapped.merge_and_unload()
    merged.push_to_hub("merged")
    assert torch.equal(loaded_head("me/merged"), merged.lm_head.weight)


def test_nothing_pushed_names_a_folder_of_this_machine(local_hub, pipe, lora, base, tmp_path):
    for layout in ("original", "transformers"):
        pipe.push_to_hub(f"pipe-{layout}", layout=layout, max_shard_size="700KB")
        pipe.model.push_to_hub(f"model-{layout}", layout=layout)
        pipe.processor.push_to_hub(f"processor-{layout}", layout=layout, tags="t")
    lora.push_to_hub("adapter")
    pipe.save_pretrained(tmp_path / "saved", push_to_hub=True)
    pushed = {(repo, name): data for _, repo in local_hub.repositories for name, data in local_hub.files(repo).items()}
    assert len(pushed) > 50
    secrets = [str(path).encode() for path in (base, tmp_path, base.parents[2])]
    assert [key for key, data in pushed.items() if any(secret in data for secret in secrets)] == []
