"""Private names of transformers, accelerate, torch and torchao that the models rely on.

If one fails, read that library's changes. Each test also checks the reason for which the public way is not enough. If
that part fails, the private name may no longer be needed.
"""

import inspect

import pytest
import torch
from accelerate import load_checkpoint_in_model
from huggingface_hub import ResolvedRevision
from transformers import AutoModel, GenerationConfig, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion
from transformers.integrations.peft import maybe_load_adapters
from transformers.utils import find_adapter_config_file

from janus_hf import JanusProVisionModel
from janus_hf.hub.opening import ADAPTER_ARGUMENT
from janus_hf.modeling.checkpoint import all_conversions


def parameters(function):
    return list(inspect.signature(function).parameters)


# --- transformers


def test_a_model_class_states_facts_in_these_attributes():
    for name in (
        "_can_compile_fullgraph",
        "_init_weights",
        "_keys_to_ignore_on_load_unexpected",
        "_no_split_modules",
        "_skip_keys_device_placement",
        "_supports_attention_backend",
        "_supports_flash_attn",
        "_supports_sdpa",
        "_tied_weights_keys",
    ):
        assert hasattr(PreTrainedModel, name), name


def test_every_way_to_load_ends_in_one_method():
    assert isinstance(inspect.getattr_static(PreTrainedModel, "_finalize_model_loading"), staticmethod)
    assert parameters(PreTrainedModel._finalize_model_loading) == ["model", "load_config", "loading_info"]
    assert "_finalize_model_loading" in inspect.getsource(PreTrainedModel.from_pretrained)


def test_auto_model_passes_an_adapter_on_beside_its_base_model():
    """The public ways load the base model at the revision of the adapter, or the adapter in the dtype of its file."""
    assert f'"{ADAPTER_ARGUMENT}"' in inspect.getsource(maybe_load_adapters)
    assert f'"{ADAPTER_ARGUMENT}"' in inspect.getsource(AutoModel.from_pretrained)
    assert not {"base_revision", "adapter_revision"} & set(parameters(PreTrainedModel.from_pretrained))
    assert parameters(ResolvedRevision.__new__) == ["cls", "resolved", "initial", "repo_id", "repo_type"]


def test_transformers_takes_a_file_that_it_does_not_get_as_absent():
    """This is why `Source.download` asks for optional files before transformers does."""
    assert "_raise_exceptions_for_connection_errors=False" in inspect.getsource(find_adapter_config_file)
    assert "except OSError" in inspect.getsource(GenerationMixin.adjust_generation_fn)


def test_parts_are_built_by_a_private_constructor(tiny_config):
    config = tiny_config().vision_config
    config.dtype = torch.bfloat16
    assert JanusProVisionModel._from_config(config).dtype == torch.bfloat16
    assert JanusProVisionModel(config).dtype == torch.float32  # the public constructor ignores the config's dtype


def test_saving_reverts_the_conversions_in_an_attribute(tiny_model):
    name = "model.language_model.norm.weight"
    state = {name: tiny_model.state_dict()[name]}
    before = getattr(tiny_model, "_weight_conversions", None)
    try:
        tiny_model._weight_conversions = all_conversions(tiny_model)
        assert list(revert_weight_conversion(tiny_model, state)) == ["language_model.model.norm.weight"]
        # Registered mappings are read only without the attribute, which every loaded model has.
        tiny_model._weight_conversions = []
        assert list(revert_weight_conversion(tiny_model, state)) == [name]
    finally:
        tiny_model._weight_conversions = before


@pytest.mark.parametrize("marked", [False, True])
def test_a_marked_generation_config_loses_fields_that_transformers_does_not_know(marked):
    read = GenerationConfig.from_dict({"image_guidance_scale": 3.0, "_from_model_config": marked})
    assert hasattr(read, "image_guidance_scale") is not marked


def test_hooks_for_input_gradients_are_removed_by_their_private_list(make_model):
    model = make_model()
    model.enable_input_require_grads()
    assert model._require_grads_hooks
    assert model(torch.tensor([[1, 2]]), output_hidden_states=True).hidden_states[0].requires_grad
    model.requires_grad_(False)
    assert model(torch.tensor([[1, 2]])).logits.requires_grad
    model.disable_input_require_grads()
    assert not model(torch.tensor([[1, 2]])).logits.requires_grad


def test_accelerate_asks_for_the_state_dict_before_it_sets_weights_by_name():
    """`LoadedWholeMixin.state_dict` reads these arguments from the call stack, because accelerate has no hook."""
    assert {"checkpoint", "device_map"} <= set(parameters(load_checkpoint_in_model))
    source = inspect.getsource(load_checkpoint_in_model)
    assert source.index("model.state_dict()") < source.index("set_module_tensor_to_device(")
    assert load_checkpoint_in_model.__code__.co_name == "load_checkpoint_in_model"  # no decorator hides the function


def test_config_files_are_written_by_a_method_that_takes_no_layout():
    """Because of this, `writing_layout` passes the layout in a context variable."""
    assert parameters(PreTrainedConfig.to_json_file) == ["self", "json_file_path", "use_diff"]
    assert "config.save_pretrained(" in inspect.getsource(PreTrainedModel.save_pretrained)


# --- torch


def test_int4_weights_are_packed_by_a_private_operator_that_only_reorders():
    values_NK = torch.randint(16, (64, 128), dtype=torch.int32, generator=torch.Generator().manual_seed(0))
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(values_NK, 1)
    assert (packed.dtype, packed.numel()) == (torch.uint8, values_NK.numel() // 2)
    halves = torch.cat([packed.flatten() & 15, packed.flatten() >> 4])
    assert torch.equal(halves.bincount(minlength=16), values_NK.flatten().bincount(minlength=16))


# --- torchao


@pytest.mark.slow
def test_torchaos_int4_classes_have_these_names_and_fields():
    from torchao.prototype.quantization import int4
    from torchao.quantization import FqnToConfig, Int4Tensor, Int4TilePackedTo4dTensor, Int4WeightOnlyConfig

    # Classes that are compared by name, so that torchao need not be imported.
    names = [one.__name__ for one in (int4.Int4OpaqueTensor, Int4Tensor, Int4TilePackedTo4dTensor, FqnToConfig)]
    assert names == ["Int4OpaqueTensor", "Int4Tensor", "Int4TilePackedTo4dTensor", "FqnToConfig"]
    assert int4.PrototypeInt4WeightOnlyConfig.__name__ == "PrototypeInt4WeightOnlyConfig"
    assert {"group_size", "set_inductor_config"} <= set(parameters(int4.PrototypeInt4WeightOnlyConfig))
    assert {"group_size", "set_inductor_config", "int4_packing_format"} <= set(parameters(Int4WeightOnlyConfig))
    fields = ["qdata", "scale_and_zero", "block_size", "shape", "act_pre_scale", "act_mapping_type"]
    assert set(fields) <= set(parameters(int4.Int4OpaqueTensor.__new__))
    assert parameters(int4.Int4OpaqueTensor.__new__)[1:5] == fields[:4]
    assert {"qdata", "scale", "zero_point", "block_size"} <= set(parameters(Int4Tensor.__new__))


@pytest.mark.slow
def test_torchaos_classes_for_8_bits_have_these_names_and_fields():
    """`generation/kernels/quantised_values.py` recognises them by name and reads these fields."""
    from torchao.quantization import Float8Tensor, Float8WeightOnlyConfig, Int8Tensor

    assert [one.__name__ for one in (Int8Tensor, Float8Tensor)] == ["Int8Tensor", "Float8Tensor"]
    assert {"qdata", "scale", "block_size", "zero_point", "act_quant_kwargs", "act_pre_scale"} <= set(
        parameters(Int8Tensor.__new__)
    )
    assert {"qdata", "scale", "block_size", "act_quant_kwargs"} <= set(parameters(Float8Tensor.__new__))
    assert {"weight_dtype", "set_inductor_config"} <= set(parameters(Float8WeightOnlyConfig))
    weight = Float8Tensor.from_hp(torch.randn(4, 8))
    assert (weight.qdata.dtype, weight.scale.dtype, weight.scale.shape) == (torch.float8_e4m3fn, torch.float32, (4, 1))


@pytest.mark.slow
def test_torchaos_stable_int4_config_has_no_format_for_a_cpu():
    """If it has one, the prototype module is no longer needed."""
    from torchao.quantization.quantize_.workflows import Int4PackingFormat

    assert {one.value for one in Int4PackingFormat} == {"plain", "plain_int32", "preshuffled", "tile_packed_to_4d"}
