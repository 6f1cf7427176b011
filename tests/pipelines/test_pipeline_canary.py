"""Private names of diffusers, accelerate and transformers that the pipeline uses.

A failure here means that such a library was changed: read its changes and look for a public way first.
"""

import logging
from pathlib import Path

import diffusers
import pytest
import torch
from accelerate import cpu_offload_with_hook
from accelerate.hooks import CpuOffload
from diffusers import DiffusionPipeline
from diffusers.loaders.lora_base import LoraBaseMixin
from diffusers.pipelines import pipeline_loading_utils
from peft import LoraConfig, get_peft_model


def test_accelerate_keeps_a_modules_hook_in_an_attribute():
    module = torch.nn.Linear(2, 2)
    assert not hasattr(module, "_hf_hook")
    cpu_offload_with_hook(module, execution_device="cpu")
    assert isinstance(module._hf_hook, CpuOffload)


def test_diffusers_knows_the_device_that_an_offloaded_model_runs_on(own_pipe):
    assert isinstance(DiffusionPipeline._execution_device, property)
    assert own_pipe._execution_device.type == "cpu"
    own_pipe.enable_sequential_cpu_offload(device="cpu")
    assert own_pipe.device == torch.device("meta")  # the public property does not tell
    assert own_pipe._execution_device.type == "cpu"


def test_diffusers_looks_up_classes_where_the_pipeline_is_registered(pipe, tmp_path, monkeypatch):
    """Without these entries, for which diffusers has no function, its own loaders do not find the pipeline."""
    pipe.save_pretrained(tmp_path)
    with monkeypatch.context() as patch:
        patch.delattr(diffusers, "JanusProPipeline")
        with pytest.raises(AttributeError, match="JanusProPipeline"):
            DiffusionPipeline.from_pretrained(tmp_path)
    with monkeypatch.context() as patch:
        patch.delitem(pipeline_loading_utils.ALL_IMPORTABLE_CLASSES, "JanusProForConditionalGeneration")
        with pytest.raises(ValueError, match="loading methods"):
            DiffusionPipeline.from_pretrained(tmp_path)


def test_diffusers_lists_the_components_that_take_adapters(pipe):
    assert LoraBaseMixin._lora_loadable_modules == []
    assert isinstance(pipe, LoraBaseMixin)
    assert pipe._lora_loadable_modules == ["model"]


def test_transformers_marks_a_model_with_adapters(own_pipe):
    model = own_pipe.model
    assert not model._hf_peft_config_loaded
    get_peft_model(model, LoraConfig(target_modules=["q_proj"]), adapter_name="made_by_peft")
    # The public way to reset the mark; it refuses adapters that were not loaded through transformers.
    with pytest.raises(ValueError, match="No adapter loaded"):
        model.delete_adapter("made_by_peft")
    own_pipe.unload_lora_weights()
    model.add_adapter(LoraConfig(target_modules=["q_proj"]))
    assert model._hf_peft_config_loaded


def test_diffusers_warns_of_new_torchao_releases_through_this_logger():
    """`janus_hf.pipelines` silences the warning, which comes with every import of diffusers."""
    pytest.importorskip("torchao")
    import diffusers.quantizers.torchao.torchao_quantizer as module

    assert module.logger is logging.getLogger("diffusers.quantizers.torchao.torchao_quantizer")
    assert "Unable to import `torchao`" in Path(module.__file__).read_text(encoding="utf-8")


def test_transformers_reports_missing_weights_through_this_logger():
    """`load_lora_weights` silences the report, which lists weights of the base model as missing."""
    import transformers.integrations.peft as module

    assert module.logger is logging.getLogger("transformers.integrations.peft")
