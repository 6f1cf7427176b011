"""What we save, every public loader loads whole, or it raises an error: no weight stays at its random value."""

import copy

import pytest
import torch
import torch.distributed.checkpoint as dcp
from accelerate import Accelerator, init_empty_weights, load_checkpoint_and_dispatch, load_checkpoint_in_model
from peft import AutoPeftModel, LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file, load_model, save_model
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from transformers import AutoModel
from transformers.trainer_utils import load_sharded_checkpoint

from janus_hf import (
    CheckpointError,
    JanusProForConditionalGeneration,
    JanusProModel,
    JanusProVisionModel,
    JanusProVQModel,
)
from tiny import TINY_MODEL


LAYOUTS = ("original", "transformers")
SIZES = {"one file": "5GB", "shards": "1500KB"}
CPU = {"": "cpu"}
DISK = {"model.language_model": "disk", "lm_head": "cpu"} | {
    f"model.{part}": "cpu"
    for part in (
        "vision_model",
        "aligner",
        "vqmodel",
        "generation_embeddings",
        "generation_aligner",
        "generation_head",
    )
}


@pytest.fixture(scope="module")
def model():
    """The tiny model. Tests share it and must not change it."""
    return JanusProForConditionalGeneration.from_pretrained(TINY_MODEL, dtype=torch.float32)


@pytest.fixture(scope="module")
def parts(model):
    """The models that can be saved, by name."""
    return {
        "whole": model,
        "no head": model.model,
        "tower": model.model.vision_model,
        "codec": model.model.vqmodel,
    }


@pytest.fixture(scope="module")
def saved(parts, tmp_path_factory):
    """Folders of the whole model and of the one without text head, by name, layout and size of the shards."""
    folders = {}
    for name in ("whole", "no head"):
        for layout in LAYOUTS:
            for size, limit in SIZES.items():
                folder = tmp_path_factory.mktemp("saved")
                parts[name].save_pretrained(folder, layout=layout, max_shard_size=limit)
                assert (len(list(folder.glob("*.safetensors"))) > 1) == (size == "shards")
                folders[name, layout, size] = folder
    return folders


def other(model):
    """Return a model of the same configuration with other weights."""
    torch.manual_seed(1)
    return type(model)(copy.deepcopy(model.config))


def all_weights(folder):
    return {name: weight for file in folder.glob("*.safetensors") for name, weight in load_file(file).items()}


def is_whole(loaded, expected) -> bool:
    mine, theirs = loaded.state_dict(), expected.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def load_shard_by_shard(model, folder):
    for file in folder.glob("*.safetensors"):
        assert not model.load_state_dict(load_file(file), strict=False).unexpected_keys


def load_files_of_safetensors(model, folder):
    for file in (files := list(folder.glob("*.safetensors"))):
        load_model(model, file, strict=len(files) == 1)


# Loaders that take a model and the folder of a checkpoint.
LOADERS = {
    "load_state_dict": lambda model, folder: model.load_state_dict(all_weights(folder)),
    "load_state_dict, shard by shard": load_shard_by_shard,
    "load_state_dict(assign=True)": lambda model, folder: model.load_state_dict(all_weights(folder), assign=True),
    "safetensors.torch.load_model": load_files_of_safetensors,
    "set_model_state_dict": lambda model, folder: set_model_state_dict(model, all_weights(folder)),
    "set_model_state_dict(full)": lambda model, folder: set_model_state_dict(
        model, all_weights(folder), options=StateDictOptions(full_state_dict=True, strict=False)
    ),
    "load_checkpoint_in_model": lambda model, folder: load_checkpoint_in_model(model, folder),
    "from_pretrained": lambda model, folder: model.load_state_dict(
        type(model).from_pretrained(folder, dtype=torch.float32).state_dict()
    ),
    "from_pretrained(state_dict=...)": lambda model, folder: model.load_state_dict(
        type(model)
        .from_pretrained(None, config=model.config, state_dict=all_weights(folder), dtype=torch.float32)
        .state_dict()
    ),
}


@pytest.mark.parametrize("name", ["whole", "no head"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("loader", LOADERS)
def test_what_was_saved_is_loaded_whole(parts, saved, loader, layout, size, name):
    loaded = other(parts[name])
    LOADERS[loader](loaded, saved[name, layout, size])
    assert is_whole(loaded, parts[name])


@pytest.mark.parametrize("size", ["one file"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("loader", [name for name in LOADERS if name != "from_pretrained(state_dict=...)"])
def test_the_whole_checkpoint_fits_the_model_without_text_head(parts, saved, loader, layout, size):
    loaded = other(parts["no head"])
    LOADERS[loader](loaded, saved["whole", layout, size])
    assert is_whole(loaded, parts["no head"])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_checkpoint_without_text_head_does_not_fit_the_whole_model(parts, saved, layout, size):
    folder = saved["no head", layout, size]
    with pytest.raises(CheckpointError, match="lm_head"):
        JanusProForConditionalGeneration.from_pretrained(folder)
    with pytest.raises(RuntimeError, match="lm_head"):
        other(parts["whole"]).load_state_dict(all_weights(folder))


# safetensors' `load_model` is left out: it refuses every file with both names of a tied weight.
@pytest.mark.parametrize("loader", [name for name in LOADERS if not name.startswith("safetensors")])
def test_a_tied_head_is_loaded(model, tmp_path, loader):
    config = copy.deepcopy(model.config)
    config.tie_word_embeddings = True
    tied = JanusProForConditionalGeneration(config)
    tied.save_pretrained(tmp_path)
    loaded = other(tied)
    LOADERS[loader](loaded, tmp_path)
    loaded.tie_weights()
    assert is_whole(loaded, tied)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_transformers_loads_shards(parts, saved, layout):
    loaded = other(parts["whole"])
    load_sharded_checkpoint(loaded, saved["whole", layout, "shards"], strict=False)
    assert is_whole(loaded, parts["whole"])


def empty(model):
    with init_empty_weights():
        return AutoModel.from_config(copy.deepcopy(model.config))


# With a device_map accelerate sets weights by their names, without `load_state_dict`.


@pytest.mark.parametrize("build", [other, empty], ids=["random", "without storage"])
@pytest.mark.parametrize("device_map", [CPU, "auto", DISK], ids=["cpu", "auto", "disk"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_accelerate_dispatches_the_whole_model_or_refuses(model, saved, tmp_path, layout, device_map, build):
    folder, loaded = saved["whole", layout, "one file"], build(model)
    if layout == "original":
        with pytest.raises(CheckpointError, match=r"from_pretrained\(folder, device_map") as error:
            load_checkpoint_and_dispatch(loaded, folder, device_map=device_map, offload_folder=tmp_path)
        assert "language_model.lm_head.weight" in error.value.unexpected
    else:
        load_checkpoint_and_dispatch(loaded, folder, device_map=device_map, offload_folder=tmp_path)
        ids = torch.tensor([[1, 2, 3]])
        torch.testing.assert_close(loaded(ids).logits, model(ids).logits)
        assert device_map is DISK or is_whole(loaded, model)


@pytest.mark.parametrize("name", ["whole", "no head"])
@pytest.mark.parametrize("fit", ["whole", "no head"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_accelerate_loads_on_a_device_the_whole_model_or_refuses(parts, saved, layout, size, fit, name):
    loaded = other(parts[fit])
    if layout == "transformers" and fit == name:
        load_checkpoint_in_model(loaded, saved[name, layout, size], device_map=CPU)
        assert is_whole(loaded, parts[fit])
    else:
        with pytest.raises(CheckpointError, match="would skip"):
            load_checkpoint_in_model(loaded, saved[name, layout, size], device_map=CPU)


@pytest.mark.parametrize("file", ["pytorch_model.bin.index.json", "pytorch_model-00001-of-00002.bin", ""])
def test_accelerate_refuses_releases(golden_model, golden_checkpoint, file):
    """The path may be that of a folder, of an index or of one file."""
    with pytest.raises(CheckpointError, match="would skip"):
        load_checkpoint_in_model(other(golden_model), str(golden_checkpoint / file), device_map=CPU)


def test_accelerate_refuses_for_a_model_with_an_adapter(model, saved):
    adapted = get_peft_model(other(model), LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(CheckpointError, match="would skip"):
        load_checkpoint_in_model(adapted, saved["whole", "original", "one file"], device_map=CPU)


@pytest.mark.parametrize("name", ["tower", "codec"])
def test_parts_are_loaded_whole(parts, saved, tmp_path, name):
    part = parts[name]
    part.save_pretrained(tmp_path)
    loaders = [
        lambda model: load_model(model, tmp_path / "model.safetensors"),
        lambda model: load_checkpoint_in_model(model, tmp_path),
        lambda model: model.load_state_dict(type(part).from_pretrained(tmp_path).state_dict()),
    ]
    for load in loaders:
        loaded = other(part)
        load(loaded)
        assert is_whole(loaded, part)
    if name == "tower":  # it is saved under its original names
        with pytest.raises(CheckpointError, match="would skip"):
            load_checkpoint_in_model(other(part), tmp_path, device_map=CPU)


@pytest.mark.parametrize("part", [JanusProVisionModel, JanusProVQModel])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_parts_do_not_stay_random_if_the_files_are_those_of_the_whole_model(saved, part, layout):
    with pytest.raises(CheckpointError):
        part.from_pretrained(saved["whole", layout, "one file"])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["tower", "codec"])
def test_loaders_that_are_not_strict_leave_no_part_random(parts, saved, name, layout, size):
    with pytest.raises(CheckpointError, match="must have names of JanusPro.*nothing would be loaded"):
        load_checkpoint_in_model(other(parts[name]), saved["whole", layout, size])


@pytest.mark.parametrize("name", ["whole", "no head", "tower", "codec"])
def test_weights_without_any_name_of_the_model_are_refused(parts, name):
    weights = {f"other.{key}": value for key, value in parts[name].state_dict().items()}
    loaded = other(parts[name])
    with pytest.raises(RuntimeError, match="got .* other names such as 'other"):
        loaded.load_state_dict(weights, strict=False)
    assert loaded.load_state_dict({}, strict=False).missing_keys  # other processes pass no weights
    first = next(iter(parts[name].state_dict()))
    assert loaded.load_state_dict({first: parts[name].state_dict()[first]}, strict=False).missing_keys


def test_a_shard_with_the_text_head_alone_is_no_error_without_text_head(parts):
    head = {"language_model.lm_head.weight": parts["whole"].lm_head.weight}
    assert not other(parts["no head"]).load_state_dict(head, strict=False).unexpected_keys


# Savers of other libraries, read by ours.


def through_dcp(model, folder):
    dcp.save(get_model_state_dict(model), checkpoint_id=folder / "dcp", no_dist=True)
    dcp_to_torch_save(folder / "dcp", folder / "pytorch_model.bin")


def save_state(model, folder):
    accelerator = Accelerator(cpu=True)
    accelerator.prepare(copy.deepcopy(model))
    accelerator.save_state(folder)


SAVERS = {
    "Accelerator.save_model": lambda model, folder: Accelerator(cpu=True).save_model(model, folder),
    "Accelerator.save_model, shards": lambda model, folder: Accelerator(cpu=True).save_model(
        model, folder, max_shard_size="1500KB"
    ),
    "Accelerator.save_model, pickle": lambda model, folder: Accelerator(cpu=True).save_model(
        model, folder, safe_serialization=False
    ),
    "Accelerator.save_state": save_state,
    "safetensors.torch.save_model": lambda model, folder: save_model(model, folder / "model.safetensors"),
    "torch.save": lambda model, folder: torch.save(model.state_dict(), folder / "pytorch_model.bin"),
    "torch.distributed.checkpoint": through_dcp,
    "save_pretrained(state_dict=...)": lambda model, folder: model.save_pretrained(
        folder, state_dict=model.state_dict(), layout="transformers"
    ),
}


@pytest.mark.parametrize("saver", SAVERS)
def test_from_pretrained_reads_what_others_saved(model, tmp_path, saver):
    model.config.save_pretrained(tmp_path)
    SAVERS[saver](model, tmp_path)
    assert is_whole(JanusProForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float32), model)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("names", LAYOUTS)
def test_save_pretrained_takes_weights_under_both_names(model, saved, tmp_path, names, layout):
    model.save_pretrained(tmp_path, state_dict=all_weights(saved["whole", names, "one file"]), layout=layout)
    assert all_weights(tmp_path).keys() == all_weights(saved["whole", layout, "one file"]).keys()
    assert is_whole(JanusProForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float32), model)


def test_save_pretrained_refuses_names_that_the_model_does_not_have(model, tmp_path):
    unknown = {"language_model.model.layers.99.mlp.up_proj.weight": torch.zeros(1)}
    with pytest.raises(ValueError, match="layers.99"):
        model.save_pretrained(tmp_path, state_dict=model.state_dict() | unknown)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_prefixes_of_wrappers_are_understood_or_refused(model, saved, tmp_path, layout, prefix):
    weights = {prefix + key: weight for key, weight in all_weights(saved["whole", layout, "one file"]).items()}
    loaded = other(model)
    loaded.load_state_dict(weights)
    assert is_whole(loaded, model)

    model.config.save_pretrained(tmp_path)
    torch.save(weights, tmp_path / "pytorch_model.bin")
    loaded = other(model)
    load_checkpoint_in_model(loaded, tmp_path)
    assert is_whole(loaded, model)
    with pytest.raises(CheckpointError, match="would skip"):
        load_checkpoint_in_model(other(model), tmp_path, device_map=CPU)
    with pytest.raises(CheckpointError, match="unexpected"):
        JanusProForConditionalGeneration.from_pretrained(tmp_path)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_compiled_model_loads_our_files(model, saved, layout):
    loaded = other(model)
    weights = all_weights(saved["whole", layout, "one file"])
    torch.compile(loaded).load_state_dict({f"_orig_mod.{key}": weight for key, weight in weights.items()})
    assert is_whole(loaded, model)


# transformers' name of the layout.


@pytest.mark.parametrize("original", [True, False])
def test_save_original_format_names_the_layout(model, saved, tmp_path, original):
    model.save_pretrained(tmp_path, save_original_format=original)
    layout = "original" if original else "transformers"
    expected = saved["whole", layout, "one file"] / "model.safetensors"
    assert (tmp_path / "model.safetensors").read_bytes() == expected.read_bytes()
    model.save_pretrained(tmp_path, save_original_format=original, layout=layout)


@pytest.mark.parametrize(("original", "layout"), [(True, "transformers"), (False, "original")])
def test_layout_and_save_original_format_must_not_contradict(model, tmp_path, original, layout):
    with pytest.raises(ValueError, match="save_original_format"):
        model.save_pretrained(tmp_path, save_original_format=original, layout=layout)
    assert not list(tmp_path.iterdir())


# PEFT.

TARGETS = r"model\.language_model\.layers\.\d+\.self_attn\.(q|v)_proj"


def with_adapter(model, modules_to_save):
    torch.manual_seed(5)
    adapted = get_peft_model(
        copy.deepcopy(model),
        LoraConfig(target_modules=TARGETS, init_lora_weights=False, r=2, modules_to_save=modules_to_save),
    )
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "modules_to_save" in name:
                weight.add_(0.5)
    return adapted.eval()


@pytest.mark.parametrize("modules_to_save", [None, ["lm_head"], ["generation_head"], ["vision_model"]], ids=str)
@pytest.mark.parametrize(("layout", "size"), [("original", "shards"), ("transformers", "one file")])
def test_adapters_fit_a_base_model_that_is_loaded_again(model, saved, tmp_path, layout, size, modules_to_save):
    adapted = with_adapter(model, modules_to_save)
    expected = get_peft_model_state_dict(adapted)
    adapted.save_pretrained(tmp_path)
    base = JanusProForConditionalGeneration.from_pretrained(saved["whole", layout, size], dtype=torch.float32)
    loaded = PeftModel.from_pretrained(base, tmp_path)
    found = get_peft_model_state_dict(loaded)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())
    ids = torch.tensor([[1, 2, 3]])
    torch.testing.assert_close(loaded(ids).logits, adapted(ids).logits)
    assert not torch.allclose(loaded(ids).logits, model(ids).logits)


def test_peft_loads_an_adapter_with_its_base_model(model, tmp_path):
    adapted = with_adapter(model, ["lm_head"])
    adapted.save_pretrained(tmp_path)
    ids = torch.tensor([[1, 2, 3]])
    loaded = AutoPeftModel.from_pretrained(tmp_path, dtype=torch.float32, import_allowlist=["janus_hf"])
    torch.testing.assert_close(loaded(ids).logits, adapted(ids).logits)


@pytest.mark.parametrize("modules_to_save", [None, ["lm_head"], ["vision_model"]], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_our_files_are_loaded_into_the_base_model_below_an_adapter(model, saved, layout, modules_to_save):
    adapted = with_adapter(other(model), modules_to_save)
    base = adapted.get_base_model()
    keys = base.load_state_dict(all_weights(saved["whole", layout, "one file"]), strict=False)
    assert not keys.unexpected_keys
    assert all("lora_" in name or "modules_to_save" in name for name in keys.missing_keys)
    assert is_whole(adapted.unload() if modules_to_save is None else model, model)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_state_of_a_model_with_an_adapter_survives_accelerate(model, saved, tmp_path, layout):
    adapted = with_adapter(model, ["lm_head"])
    expected = {name: weight.clone() for name, weight in adapted.state_dict().items()}
    accelerator = Accelerator(cpu=True)
    adapted = accelerator.prepare(adapted)
    accelerator.save_state(tmp_path)
    with torch.no_grad():
        for weight in adapted.parameters():
            weight.zero_()
    accelerator.load_state(tmp_path)
    found = adapted.state_dict()
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())


def test_the_model_without_text_head_survives_safetensors(parts, tmp_path):
    save_model(parts["no head"], tmp_path / "model.safetensors")
    loaded = JanusProModel(parts["no head"].config)
    load_model(loaded, tmp_path / "model.safetensors")
    assert is_whole(loaded, parts["no head"])
