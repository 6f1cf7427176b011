"""diffusers' own loaders give our pipeline, with the weights that were saved."""

import json

import diffusers
import pytest
import torch
from diffusers import AutoPipelineForText2Image, DiffusionPipeline
from tiny_pipes import generate_ids, same_weights, silent

from janus_hf import CheckpointError, JanusProForConditionalGeneration, JanusProPipeline


@pytest.fixture(autouse=True, scope="module")
def quiet():
    diffusers.utils.logging.disable_progress_bar()
    yield
    diffusers.utils.logging.enable_progress_bar()


LOADERS = pytest.mark.parametrize("loader", [DiffusionPipeline, JanusProPipeline])


@LOADERS
@pytest.mark.parametrize("max_shard_size", [None, "1500KB"], ids=["one file", "shards"])
@pytest.mark.parametrize("layout", ["original", "transformers"])
def test_a_saved_pipeline_is_loaded(pipe, tmp_path, loader, layout, max_shard_size):
    pipe.save_pretrained(tmp_path, layout=layout, max_shard_size=max_shard_size)
    loaded = loader.from_pretrained(tmp_path)
    assert type(loaded) is JanusProPipeline
    assert loaded.model.dtype == pipe.model.dtype
    assert same_weights(loaded.model, pipe.model)
    assert loaded.processor.tokenizer.get_vocab() == pipe.processor.tokenizer.get_vocab()
    assert loaded.model.config.image_token_id == pipe.processor.image_token_id


@LOADERS
def test_arguments_of_diffusers_are_used(pipe, tmp_path, loader):
    pipe.save_pretrained(tmp_path)
    assert loader.from_pretrained(tmp_path, dtype=torch.bfloat16).model.dtype == torch.bfloat16
    assert loader.from_pretrained(tmp_path, dtype={"model": torch.bfloat16}).model.dtype == torch.bfloat16
    assert loader.from_pretrained(tmp_path, model=pipe.model).model is pipe.model
    loaded = silent(loader.from_pretrained(tmp_path, use_safetensors=True))
    assert torch.equal(generate_ids(loaded), generate_ids(pipe))
    with pytest.raises((ValueError, OSError), match="fp16"):
        loader.from_pretrained(tmp_path, variant="fp16")


@LOADERS
def test_an_incomplete_folder_is_refused(pipe, tmp_path, loader):
    weights = pipe.model.state_dict()
    weights.pop("lm_head.weight")
    pipe.save_pretrained(tmp_path)
    pipe.model.save_pretrained(tmp_path, state_dict=weights)
    with pytest.raises(CheckpointError, match="lm_head"):
        loader.from_pretrained(tmp_path)


def test_the_loader_by_task_refuses_by_name(pipe, tmp_path):
    """Its table stands in a module that imports all of diffusers, so the pipeline is not in it."""
    pipe.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="JanusProPipeline"):
        AutoPipelineForText2Image.from_pretrained(tmp_path)


def test_a_saved_pipeline_names_the_public_classes(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text(encoding="utf-8"))
    assert index["model"] == ["janus_hf", "JanusProForConditionalGeneration"]
    assert index["processor"] == ["janus_hf", "JanusProProcessor"]


def test_the_class_of_a_subclass_is_recorded(pipe):
    class OwnModel(JanusProForConditionalGeneration):
        pass

    model = OwnModel(pipe.model.config)
    assert JanusProPipeline(model, pipe.processor).config["model"] == (__name__, "OwnModel")
