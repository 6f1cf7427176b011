"""Files of one load are of one commit, and the base of an adapter is of the revision that the adapter names."""

import pytest
import torch
from huggingface_hub import constants
from model_states import mark_of, renamed, slow
from peft import AutoPeftModel, LoraConfig, get_peft_model
from transformers import AutoModel, AutoModelForImageTextToText, AutoProcessor

from janus_hf import JanusProForConditionalGeneration, JanusProPipeline, JanusProProcessor, inspect_checkpoint
from janus_hf.checkpoints.convert import convert_checkpoint
from janus_hf.checkpoints.merge import merge_adapter
from janus_hf.integrations import load_pipeline


def model_of(opened):
    return getattr(opened, "model", None) if isinstance(opened, JanusProPipeline) else opened


DOORS = {
    "model": JanusProForConditionalGeneration.from_pretrained,
    "auto model": AutoModelForImageTextToText.from_pretrained,
    "pipeline": JanusProPipeline.from_pretrained,
    "processor": JanusProProcessor.from_pretrained,
    "auto processor": AutoProcessor.from_pretrained,
}
MODEL_DOORS = ("model", "auto model", "pipeline")


class _Hooked(list):
    """A list of requests that calls a function once, after the first request whose path contains a name."""

    def __init__(self, name, function):
        self.name, self.function = name, function

    def append(self, request):
        super().append(request)
        if self.function and self.name in request.path and request.method == "GET":
            function, self.function = self.function, None
            function()


@pytest.mark.parametrize(
    ("door", "after"),
    [
        ("model", "config.json"),
        ("model", "generation_config.json"),
        ("pipeline", "config.json"),
        ("pipeline", "tokenizer.json"),
        ("pipeline", "generation_config.json"),
    ],
)
def test_a_push_while_files_are_read_mixes_nothing(local_hub, base, states, monkeypatch, door, after):
    first = base["main"]
    monkeypatch.setattr(
        local_hub, "requests", _Hooked(f"/{after}", lambda: local_hub.add_files("me/base", states["dev"]))
    )
    opened = DOORS[door]("me/base")
    model = model_of(opened)
    assert local_hub.requests.function is None  # the push did happen
    assert (mark_of(model), model.generation_config.top_k) == (1.0, 3)
    assert model.loaded_commit == first
    later = [request.path for request in local_hub.requests if "/resolve/" in request.path]
    assert all(first in path for path in later[2:])  # after the first file everything is asked for by its commit


@pytest.mark.parametrize("door", [slow(door) if door != "pipeline" else door for door in DOORS])
def test_a_cached_load_asks_nothing_when_offline(local_hub, base, monkeypatch, door):
    DOORS[door]("me/base")
    local_hub.requests.clear()
    DOORS[door]("me/base", local_files_only=True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    opened = DOORS[door]("me/base")
    assert not local_hub.requests
    if door in MODEL_DOORS:
        assert model_of(opened).loaded_commit == base["main"]


def test_a_commit_that_is_cached_is_loaded_without_a_request(local_hub, base):
    JanusProPipeline.from_pretrained("me/base")
    local_hub.requests.clear()
    JanusProForConditionalGeneration.from_pretrained("me/base", revision=base["main"])
    assert not local_hub.requests


def test_the_pipeline_resolves_once(local_hub, base):
    JanusProPipeline.from_pretrained("me/base")
    heads = [request.path for request in local_hub.requests if request.method == "HEAD"]
    asked = [path for path in heads if "/resolve/" in path]
    assert len(asked) == len(set(asked))  # every file once
    assert len(local_hub.requests) <= 36  # what it was before
    assert not [path for path in asked[1:] if "/resolve/main/" in path]


def test_a_model_keeps_what_it_was_loaded_from(local_hub, base, tmp_path):
    from peft import LoraConfig

    model = JanusProForConditionalGeneration.from_pretrained("me/base", revision="dev")
    assert (model.loaded_revision, model.loaded_commit) == ("dev", base["dev"])
    pipe = JanusProPipeline(model, JanusProProcessor.from_pretrained("me/base"))
    model.add_adapter(LoraConfig(r=2, target_modules=["q_proj"]), "new")
    pipe.save_lora_weights(tmp_path / "lora")
    local_hub.add_files("me/saved", {path.name: path.read_bytes() for path in (tmp_path / "lora").iterdir()})
    again = JanusProPipeline.from_pretrained("me/saved")
    assert mark_of(again.model) == 2.0
    plain = JanusProForConditionalGeneration.from_pretrained("me/base")
    assert (plain.loaded_revision, plain.loaded_commit) == (None, base["main"])
    assert "loaded_revision" not in plain.config.to_dict()


ADAPTER_DOORS = {
    "model": lambda source, **kw: JanusProForConditionalGeneration.from_pretrained(source, **kw),
    "auto image-text": lambda source, **kw: AutoModelForImageTextToText.from_pretrained(source, **kw),
    "auto": lambda source, **kw: AutoModel.from_pretrained(source, **kw),
    "pipeline": lambda source, **kw: JanusProPipeline.from_pretrained(source, **kw).model,
    "integrations": lambda source, **kw: load_pipeline(source, dtype="auto", device="cpu", **kw).model,
    "peft": lambda source, **kw: AutoPeftModel.from_pretrained(source, import_allowlist=["janus_hf"], **kw),
}


@pytest.mark.parametrize(
    "door", ["model", "pipeline", "auto", *map(slow, ["auto image-text", "integrations", "peft"])]
)
def test_an_adapter_is_opened_on_its_base_at_its_revision(lora, door):
    model = ADAPTER_DOORS[door]("me/lora")
    assert mark_of(model) == 2.0
    weights = [value for name, value in model.state_dict().items() if "lora_B" in name]
    assert weights
    assert all(value.abs().sum() > 0 for value in weights)


def add_adapter(model, config, folder):
    model.add_adapter(config)
    model.save_pretrained(folder)


def add_second_adapter(model, config, folder):
    adapted = get_peft_model(model, LoraConfig(target_modules=["v_proj"]), adapter_name="first")
    adapted.add_adapter("default", config)
    adapted.save_pretrained(folder, selected_adapters=["default"])


ADAPTER_SAVERS = {
    "model": add_adapter,
    "peft": lambda model, config, folder: get_peft_model(model, config).save_pretrained(folder),
    "peft, second adapter": add_second_adapter,
    "peft, push": lambda model, config, folder: get_peft_model(model, config).push_to_hub("me/fox"),
}


@pytest.mark.parametrize("saver", ADAPTER_SAVERS)
def test_an_adapter_states_the_revision_of_its_base(base, tmp_path, saver):
    model = JanusProForConditionalGeneration.from_pretrained("me/base", revision="dev")
    ADAPTER_SAVERS[saver](model, LoraConfig(r=2, target_modules=["q_proj"]), tmp_path)
    source = "me/fox" if saver == "peft, push" else tmp_path
    assert mark_of(JanusProForConditionalGeneration.from_pretrained(source)) == 2.0


def test_a_revision_that_an_adapter_states_already_is_kept(base, tmp_path):
    model = JanusProForConditionalGeneration.from_pretrained("me/base", revision="dev")
    get_peft_model(model, LoraConfig(target_modules=["q_proj"]), revision=base["main"]).save_pretrained(tmp_path)
    assert mark_of(JanusProForConditionalGeneration.from_pretrained(tmp_path)) == 1.0


@pytest.mark.parametrize("door", ["pipeline", *map(slow, ["model", "integrations", "peft"])])
def test_a_revision_is_that_of_the_adapter(local_hub, lora, adapter_files, door):
    """The revision v2 of the adapter names no revision of the base, and the base has no v2."""
    local_hub.repositories["model", "me/lora"].refs["heads/v2"] = lora
    other = adapter_files | {"adapter_config.json": renamed(adapter_files["adapter_config.json"], revision=None)}
    local_hub.add_files("me/lora", other, "v2")
    assert mark_of(ADAPTER_DOORS[door]("me/lora", revision="v2")) == 1.0


def test_auto_model_takes_the_base_at_the_revision_of_the_adapters_config(local_hub, lora, base):
    """Both repositories have a branch v2. transformers would take the base from it; adapter_kwargs does without it."""
    for name, commit in {"me/lora": lora, "me/base": base["main"]}.items():
        local_hub.repositories["model", name].refs["heads/v2"] = commit
    assert mark_of(AutoModel.from_pretrained("me/lora", revision="v2")) == 2.0
    del local_hub.repositories["model", "me/base"].refs["heads/v2"]
    assert mark_of(AutoModel.from_pretrained("me/lora", adapter_kwargs={"revision": "v2"})) == 2.0


def test_auto_model_refuses_a_config_of_another_revision(local_hub, lora, base, states):
    local_hub.repositories["model", "me/lora"].refs["heads/v2"] = lora
    other = states["main"] | {"config.json": renamed(states["main"]["config.json"], image_token_id=7)}
    local_hub.repositories["model", "me/base"].refs["heads/v2"] = base["main"]
    local_hub.add_files("me/base", other, "v2")
    with pytest.raises(ValueError, match="must be the same at revision 'v2'.* and at 'dev'.*is not: load the adapter"):
        AutoModel.from_pretrained("me/lora", revision="v2")


def test_an_adapter_in_a_subfolder_is_opened_on_the_root_of_its_base(local_hub, base, adapter_files):
    local_hub.add_files("me/loras", {f"a/{name}": data for name, data in adapter_files.items()})
    for door in ("model", "pipeline"):
        assert mark_of(ADAPTER_DOORS[door]("me/loras", subfolder="a")) == 2.0


def test_the_processor_of_an_adapter(local_hub, lora, adapter_files, states):
    """It is the adapter's own if there is one, else that of the base at the revision of the adapter's config."""
    dev = {"tokenizer_config.json": renamed(states["dev"]["tokenizer_config.json"], system_prompt="dev")}
    local_hub.add_files("me/base", dev, "dev")
    own = {name: states["main"][name] for name in states["main"] if "token" in name or "processor" in name}
    local_hub.add_files("me/whole", adapter_files | own)
    main = JanusProProcessor.from_pretrained("me/base").system_prompt
    for source, expected in (("me/lora", "dev"), ("me/whole", main)):
        assert JanusProProcessor.from_pretrained(source).system_prompt == expected
        assert JanusProPipeline.from_pretrained(source).processor.system_prompt == expected


def test_merge_takes_the_base_at_the_revision_of_the_adapter(lora, base, tmp_path, run):
    merged = JanusProForConditionalGeneration.from_pretrained(merge_adapter("me/lora", tmp_path / "merged"))
    assert mark_of(merged) == 2.0
    card = (tmp_path / "merged" / "README.md").read_text()
    assert "base_model: me/base" in card
    assert base["dev"] in card
    assert lora in card
    status, _, error = run("merge", "me/lora", tmp_path / "by_command", "--revision", lora)
    assert status == 0, error
    assert mark_of(JanusProForConditionalGeneration.from_pretrained(tmp_path / "by_command")) == 2.0


@pytest.mark.parametrize(
    ("base_name", "revision", "loaded", "warns"),
    [
        ("me/base", "dev", "dev", False),
        ("me/base", "dev", None, True),
        pytest.param("me/base", None, "dev", True, marks=pytest.mark.slow),
        pytest.param("me/base", None, None, False, marks=pytest.mark.slow),
        ("me/base", "same", None, False),  # another name of the same commit
        pytest.param("me/base", "gone", None, True, marks=pytest.mark.slow),
        pytest.param("me/other", None, None, True, marks=pytest.mark.slow),
        pytest.param(
            "{folder}", None, None, False, marks=pytest.mark.slow
        ),  # a folder may be a copy of the repository
    ],
)
def test_an_adapter_of_another_base_is_told(
    local_hub, base, adapter_files, tmp_path, caplog, base_name, revision, loaded, warns
):
    local_hub.repositories["model", "me/base"].refs["heads/same"] = base["main"]
    config = renamed(
        adapter_files["adapter_config.json"],
        base_model_name_or_path=base_name.format(folder=tmp_path),
        revision=revision,
    )
    local_hub.add_files("me/lora", adapter_files | {"adapter_config.json": config})
    pipe = JanusProPipeline.from_pretrained("me/base", **({"revision": loaded} if loaded else {}))
    caplog.clear()
    pipe.load_lora_weights("me/lora")
    told = [record.getMessage() for record in caplog.records if "was trained on" in record.getMessage()]
    assert bool(told) == warns
    assert all(name in told[0] for name in ("me/lora", "me/base", base_name)) if warns else True


FAMILIES = {
    "llama": ({"config.json": b'{"model_type": "llama"}'}, "got 'llama': this is a checkpoint of another family"),
    "DeepSeek-VL": (
        {"config.json": b'{"model_type": "multi_modality", "language_config": {}, "vision_config": {}}'},
        "it looks like DeepSeek-VL",
    ),
    "JanusFlow": (
        {"config.json": b'{"model_type": "multi_modality", "vision_gen_enc_config": {}, "language_config": {}}'},
        "got a JanusFlow checkpoint",
    ),
    "UNet": (
        {"config.json": b'{"_class_name": "UNet2DModel"}'},
        "names no model_type, of the diffusers class UNet2DM",
    ),
    "Stable Diffusion": (
        {"model_index.json": b'{"_class_name": "StableDiffusionPipeline"}', "unet/config.json": b"{}"},
        "it is a diffusers pipeline of the class StableDiffusionPipeline; load it with diffusers",
    ),
    "GGUF": ({"model-Q4.gguf": b"GGUF"}, "it holds GGUF files"),
    "subfolders": ({"a/config.json": b"{}"}, "config.json is in a; pass `subfolder`"),
    "nothing": ({"README.md": b"# Empty"}, "check the name, and that all files are there"),
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("door", ["model", "pipeline", "folder"])
def test_another_family_is_refused_by_its_first_file(local_hub, tmp_path, family, door):
    files, message = FAMILIES[family]
    source = "me/foreign"
    if door == "folder":
        source = tmp_path / "foreign"
        for name, data in files.items():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes(data)
        if family == "subfolders":
            message = "check the name"
    else:
        local_hub.add_files(source, files | {"tokenizer.json": b"{}", "model.safetensors": b"weights"})
    with pytest.raises((OSError, ValueError), match=message) as error:
        DOORS.get(door, JanusProPipeline.from_pretrained)(source)
    assert "foreign" in str(error.value)
    assert "\n" not in str(error.value)
    assert not local_hub.asked_for("tokenizer.json") + local_hub.asked_for("model.safetensors")


@pytest.mark.parametrize("family", ["llama", "DeepSeek-VL", "JanusFlow"])
@pytest.mark.parametrize("door", ["auto processor", "processor"])
def test_the_processor_of_another_family_is_refused(local_hub, states, family, door):
    local_hub.add_files("me/foreign", states["main"] | FAMILIES[family][0])
    with pytest.raises(ValueError, match=f"me/foreign.*{FAMILIES[family][1]}"):
        DOORS[door]("me/foreign")


def test_a_dataset_is_called_a_dataset(local_hub):
    local_hub.create("me/pictures", "dataset")
    for door in ("model", "pipeline", "processor"):
        with pytest.raises(OSError, match="'me/pictures' must be a model repository, got a dataset"):
            DOORS[door]("me/pictures")


@pytest.mark.parametrize(
    "door", ["pipeline", *map(slow, ["model", "processor", "auto model", "auto processor", "info"])]
)
def test_arguments_reach_every_file(local_hub, states, tmp_path, monkeypatch, door):
    """A private repository is read with a token, at a revision, in a subfolder, in a cache of its own."""
    monkeypatch.delenv("HF_TOKEN")
    first = local_hub.add_files("me/private", {"README.md": b"text"})
    repository = local_hub.repositories["model", "me/private"]
    repository.refs["heads/v1"], repository.private = first, True
    local_hub.add_files("me/private", {f"sub/{name}": data for name, data in states["dev"].items()}, "v1")
    where = {"token": "hf_me", "revision": "v1", "subfolder": "sub", "cache_dir": tmp_path / "cache"}
    load = DOORS.get(door, inspect_checkpoint)
    opened = load("me/private", **where)
    answered = [request for request in local_hub.requests if request.status < 400]
    assert {request.user for request in answered if not request.path.startswith("/storage/")} == {"me"}
    if door != "auto model":  # transformers looks for an adapter in the default cache
        assert not list((tmp_path / "hub_home" / "hub").glob("models*/**/*.json"))
    if isinstance(model := model_of(opened), torch.nn.Module):
        assert (mark_of(model), model.loaded_revision) == (2.0, "v1")
    local_hub.requests.clear()
    load("me/private", local_files_only=True, **where)
    if door != "auto processor":  # transformers asks for a file of another kind of tokenizer
        assert not local_hub.requests
    load("me/private", force_download=True, **where)
    assert [request for request in local_hub.asked_for("sub/config.json") if request.method == "GET"]


def test_convert_reads_one_commit_and_refuses_an_adapter(local_hub, lora, base, states, monkeypatch, tmp_path):
    monkeypatch.setattr(
        local_hub, "requests", _Hooked("/config.json", lambda: local_hub.add_files("me/base", states["main"], "dev"))
    )
    convert_checkpoint("me/base", tmp_path / "copy", "transformers", revision="dev", token="hf_me")
    assert local_hub.requests.function is None
    assert mark_of(JanusProForConditionalGeneration.from_pretrained(tmp_path / "copy")) == 2.0
    with pytest.raises(ValueError, match="'me/lora', which is an adapter for 'me/base': merge it with merge_adapter"):
        convert_checkpoint("me/lora", tmp_path / "other", "transformers")
