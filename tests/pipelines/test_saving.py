"""Loading a pipeline from every layout, and saving it as one folder."""

import json

import pytest
import torch
from tiny_pipes import generate_ids, load, same_weights
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoProcessor,
)

from janus_hf import CheckpointError, JanusProForConditionalGeneration, JanusProPipeline, JanusProProcessor
from tiny import TINY_MODEL


def test_original_folder_without_model_index(golden_pipe, golden_checkpoint, golden, manifest):
    assert not (golden_checkpoint / "model_index.json").exists()
    loaded = load(golden_checkpoint)
    assert same_weights(loaded.model, golden_pipe.model)
    assert loaded.model.config.image_token_id == manifest["special_ids"]["image"]
    prompt = manifest["strings"]["t2i"]["prompts"][2]
    assert torch.equal(loaded(prompt, do_sample=False, output_type="latent").images[0], golden["gen.prompt2_ids"])


@pytest.mark.parametrize("layout", [None, "original", "transformers"])
def test_save_and_load(golden_pipe, tmp_path, layout):
    golden_pipe.save_pretrained(tmp_path, layout=layout)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    processor = json.loads((tmp_path / "processor_config.json").read_text(encoding="utf-8"))
    expected = ("janus", "JanusProcessor") if layout == "transformers" else ("multi_modality", "VLChatProcessor")
    assert (config["model_type"], processor["processor_class"]) == expected

    loaded = load(tmp_path, dtype="auto")
    assert loaded.model.dtype == torch.float32
    assert same_weights(loaded.model, golden_pipe.model)
    assert torch.equal(generate_ids(loaded), generate_ids(golden_pipe))
    question = [{"role": "user", "content": "what is a fox?"}]
    assert loaded.chat(question, max_new_tokens=5) == golden_pipe.chat(question, max_new_tokens=5)


def test_one_flat_folder_serves_everything(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "README.md",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "model_index.json",
        "preprocessor_config.json",
        "processor_config.json",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    for auto_class in (AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForMultimodalLM):
        model = auto_class.from_pretrained(tmp_path)
        assert type(model) is JanusProForConditionalGeneration
        assert same_weights(model, pipe.model)
    assert type(AutoProcessor.from_pretrained(tmp_path)) is JanusProProcessor
    index = json.loads((tmp_path / "model_index.json").read_text(encoding="utf-8"))
    assert index["_class_name"] == "JanusProPipeline"
    assert index["model"] == ["janus_hf", "JanusProForConditionalGeneration"]
    assert index["processor"] == ["janus_hf", "JanusProProcessor"]


def test_subfolder(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "inner")
    assert same_weights(load(tmp_path, subfolder="inner").model, pipe.model)


def test_components_may_be_given(pipe, tmp_path):
    given = JanusProPipeline.from_pretrained(tmp_path, model=pipe.model, processor=pipe.processor)  # an empty folder
    assert given.model is pipe.model
    assert given.processor is pipe.processor
    with_model = JanusProPipeline.from_pretrained(TINY_MODEL, model=pipe.model)
    assert with_model.model is pipe.model
    assert isinstance(with_model.processor, JanusProProcessor)
    with_processor = load(processor=pipe.processor)
    assert with_processor.processor is pipe.processor
    assert with_processor.model is not pipe.model


def test_a_given_model_and_arguments_that_load_one_are_not_mixed(pipe):
    with pytest.raises(ValueError, match="got both it and dtype: pass either"):
        JanusProPipeline.from_pretrained(TINY_MODEL, model=pipe.model, dtype=torch.bfloat16)


def test_model_without_a_placeholder_id_gets_the_processors(pipe, make_model, tiny_config):
    model = make_model(tiny_config(image_token_id=None))
    given = JanusProPipeline.from_pretrained("unused", model=model, processor=pipe.processor)
    assert given.model.config.image_token_id == pipe.processor.image_token_id


@pytest.mark.parametrize(
    ("kwargs", "dtype"),
    [
        ({}, torch.bfloat16),  # as stored
        ({"dtype": torch.float16}, torch.float16),
        ({"dtype": "float32"}, torch.float32),
        ({"torch_dtype": torch.float32}, torch.float32),
        ({"torch_dtype": torch.float16, "dtype": torch.float32}, torch.float32),
    ],
)
def test_dtype(kwargs, dtype):
    assert JanusProPipeline.from_pretrained(TINY_MODEL, **kwargs).model.dtype == dtype


def test_variant(pipe, tmp_path):
    pipe.save_pretrained(tmp_path, variant="fp32")
    assert [path.name for path in tmp_path.glob("*.safetensors")] == ["model.fp32.safetensors"]
    assert same_weights(load(tmp_path, variant="fp32").model, pipe.model)
    with pytest.raises(OSError, match="no file named model.safetensors"):
        load(tmp_path)


def test_sharding(pipe, tmp_path):
    pipe.save_pretrained(tmp_path, max_shard_size="500KB")
    assert len(list(tmp_path.glob("model-*-of-*.safetensors"))) > 2
    assert same_weights(load(tmp_path).model, pipe.model)


def test_missing_shard(pipe, tmp_path):
    pipe.save_pretrained(tmp_path, max_shard_size="500KB")
    next(tmp_path.glob("model-00002-of-*")).unlink()
    with pytest.raises(CheckpointError, match="model-00002-of"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"safe_serialization": False}, ValueError, "written as safetensors only"),
        ({"layout": "onnx"}, ValueError, "layout"),
        ({"max_shard": "1GB"}, TypeError, r"arguments that it knows, got \['max_shard'\]"),
        ({"repo_id": "me/fox"}, TypeError, "repo_id and the like need push_to_hub=True"),
        ({"push_to_hub": True, "privat": True}, TypeError, r"arguments that it knows, got \['privat'\]: leave"),
    ],
)
def test_bad_save_arguments_write_nothing(pipe, tmp_path, kwargs, error, message):
    folder = tmp_path / "model"
    with pytest.raises(error, match=message):
        pipe.save_pretrained(folder, **kwargs)
    assert not folder.exists()
