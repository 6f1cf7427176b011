"""Weights survive the savers and loaders of other libraries, which know nothing of the original names."""

import os
import stat

import pytest
import torch
from accelerate import Accelerator
from peft import LoraConfig
from safetensors.torch import load_file, load_model, save_model
from transformers import Trainer, TrainingArguments

from janus_hf import JanusProConfig, JanusProForConditionalGeneration, JanusProProcessor
from janus_hf.generation.decoders import plain
from tiny import TINY_MODEL


@pytest.fixture(params=["loaded", "has generated"])
def model(request, monkeypatch):
    """A model, also one that has generated an image with the layers for GPUs, which copy weights."""
    model = JanusProForConditionalGeneration.from_pretrained(TINY_MODEL, dtype=torch.float32)
    if request.param == "has generated":
        monkeypatch.setattr(plain, "few_kernels_pay", lambda device: True)
        model.generate_images(torch.tensor([[1, 2, 3]]))
    return model


def weights_of(model) -> dict[str, torch.Tensor]:
    return {name: weight.clone() for name, weight in model.state_dict().items()}


def assert_equal(model, expected) -> None:
    found = model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())


def zero(model) -> None:
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()


def test_no_two_parameters_share_storage(model):
    pointers = [weight.untyped_storage().data_ptr() for weight in model.parameters()]
    assert len(pointers) == len(set(pointers))


def test_accelerate_saves_and_loads_the_state(model, tmp_path):
    accelerator = Accelerator(cpu=True)
    prepared = accelerator.prepare(model)
    expected = weights_of(prepared)
    accelerator.save_state(tmp_path)
    zero(prepared)
    accelerator.load_state(tmp_path)
    assert_equal(prepared, expected)


def test_safetensors_saves_and_loads_the_model(model, tmp_path):
    expected = weights_of(model)
    save_model(model, tmp_path / "model.safetensors")
    zero(model)
    load_model(model, tmp_path / "model.safetensors")
    assert_equal(model, expected)


def test_a_subclass_with_a_model_type_of_its_own_loads_original_weights(model):
    class OtherConfig(JanusProConfig):
        model_type = "other_janus"

    class OtherModel(JanusProForConditionalGeneration):
        config_class = OtherConfig

    assert_equal(OtherModel.from_pretrained(TINY_MODEL, dtype=torch.float32), weights_of(model))


def save_adapter(model, folder):
    model.add_adapter(LoraConfig(target_modules=["q_proj"]))
    model.save_pretrained(folder)


SAVERS = {
    "model": lambda model, folder: model.save_pretrained(folder),
    "shards": lambda model, folder: model.save_pretrained(folder, max_shard_size="1500KB"),
    "variant": lambda model, folder: model.save_pretrained(folder, variant="fp16", layout="transformers"),
    "without text head": lambda model, folder: model.model.save_pretrained(folder),
    "vision tower": lambda model, folder: model.model.vision_model.save_pretrained(folder),
    "codec": lambda model, folder: model.model.vqmodel.save_pretrained(folder),
    "adapter": save_adapter,
    "processor": lambda model, folder: JanusProProcessor.from_pretrained(TINY_MODEL).save_pretrained(folder),
}


@pytest.mark.skipif(os.name != "posix", reason="permissions of other systems differ")
@pytest.mark.parametrize("umask", [0o022, 0o077], ids=oct)
@pytest.mark.parametrize("saver", SAVERS)
def test_files_have_the_permissions_of_the_umask(model, tmp_path, saver, umask):
    before = os.umask(umask)
    try:
        SAVERS[saver](model, tmp_path / "saved")
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "saved").iterdir()}
    assert set(modes.values()) == {0o666 & ~umask}, modes


# Saved in the original layout, which is the default: other libraries read the files and call `load_state_dict`.


def other_model(model):
    torch.manual_seed(1)
    return type(model)(model.config)


@pytest.mark.parametrize("max_shard_size", ["5GB", "1500KB"], ids=["one file", "shards"])
def test_load_state_dict_takes_our_files(model, tmp_path, max_shard_size):
    model.save_pretrained(tmp_path, max_shard_size=max_shard_size)
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) > 1 or max_shard_size == "5GB"
    loaded = other_model(model)
    loaded.load_state_dict({name: weight for file in files for name, weight in load_file(file).items()})
    assert_equal(loaded, weights_of(model))
    by_shards = other_model(model)
    for file in files:
        assert not by_shards.load_state_dict(load_file(file), strict=False).unexpected_keys
    assert_equal(by_shards, weights_of(model))


def test_load_state_dict_takes_a_release(golden_checkpoint):
    expected = JanusProForConditionalGeneration.from_pretrained(golden_checkpoint, dtype=torch.float32)
    files = sorted(golden_checkpoint.glob("*.bin"))
    weights = {name: weight for file in files for name, weight in torch.load(file, weights_only=True).items()}
    assert any("attn_pool" in name for name in weights)
    loaded = other_model(expected)
    loaded.load_state_dict(weights)
    assert_equal(loaded, weights_of(expected))


def test_names_that_are_unknown_stay_unexpected(model):
    weights = weights_of(model) | {"language_model.model.layers.99.mlp.up_proj.weight": torch.zeros(1)}
    with pytest.raises(RuntimeError, match="language_model.model.layers.99"):
        other_model(model).load_state_dict(weights)


def make_trainer(folder, **options):
    model = JanusProForConditionalGeneration.from_pretrained(TINY_MODEL, dtype=torch.float32)
    rows = [{"input_ids": row, "labels": row} for row in torch.randint(5, 90, (4, 12), generator=torch.manual_seed(0))]
    arguments = TrainingArguments(
        output_dir=folder,
        max_steps=4,
        save_steps=2,
        per_device_train_batch_size=2,
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        logging_steps=1,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        **options,
    )
    return Trainer(model=model, args=arguments, train_dataset=rows, eval_dataset=rows)


def test_transformers_trainer_resumes(tmp_path):
    straight = make_trainer(tmp_path)
    straight.train()
    resumed = make_trainer(tmp_path)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    runs = [[entry["loss"] for entry in one.state.log_history if "loss" in entry] for one in (straight, resumed)]
    assert runs[0][0] - runs[0][2] > 0.1, "a loss that does not change proves nothing"
    torch.testing.assert_close(torch.tensor(runs[1]), torch.tensor(runs[0]), atol=1e-5, rtol=1e-5)


def test_transformers_trainer_loads_the_best_model(tmp_path):
    trainer = make_trainer(tmp_path, load_best_model_at_end=True, eval_strategy="steps", eval_steps=2)
    trainer.train()
    best = JanusProForConditionalGeneration.from_pretrained(trainer.state.best_model_checkpoint, dtype=torch.float32)
    assert_equal(trainer.model, weights_of(best))
