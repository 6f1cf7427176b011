"""With a `quantization_config`, only the language model's layers are quantised unless the config says otherwise."""

import copy

import pytest
import torch
from transformers import BitsAndBytesConfig, FineGrainedFP8Config, FourOverSixConfig, QuantoConfig
from transformers.quantizers.quantizers_utils import should_convert_module

from janus_hf import JanusProForConditionalGeneration, JanusProModel
from janus_hf.modeling.pretrained import _skip_all_but_language_model


CONFIGS = {
    "bitsandbytes": (lambda **kwargs: BitsAndBytesConfig(load_in_8bit=True, **kwargs), "llm_int8_skip_modules"),
    "quanto": (lambda **kwargs: QuantoConfig(weights="int8", **kwargs), "modules_to_not_convert"),
    "four over six": (FourOverSixConfig, "modules_to_not_convert"),  # by default it skips ["lm_head"]
    "fp8": (FineGrainedFP8Config, "modules_to_not_convert"),
}


def linear_names(model):
    return {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}


def is_language_layer(name):
    return "language_model.layers." in name


@pytest.mark.parametrize("method", CONFIGS)
@pytest.mark.parametrize("bare", [False, True])
def test_everything_but_the_language_model_is_skipped(tiny_model, method, bare):
    build, field = CONFIGS[method]
    config = build()
    before = copy.deepcopy(vars(config))
    skip = getattr(_skip_all_but_language_model(config), field)
    assert vars(config) == before  # the user's own object is left alone
    names = linear_names(tiny_model.model if bare else tiny_model)
    assert len([name for name in names if not is_language_layer(name)]) >= 18
    # transformers' own rule for bitsandbytes, quanto, torchao and fp8
    assert {name for name in names if should_convert_module(name, skip)} == set(filter(is_language_layer, names))


@pytest.mark.parametrize("method", CONFIGS)
def test_a_list_of_ones_own_is_kept(method):
    build, field = CONFIGS[method]
    config = _skip_all_but_language_model(build(**{field: ["model.vqmodel"]}))
    assert getattr(config, field) == ["model.vqmodel"]


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({"load_in_4bit": True}, "llm_int8_skip_modules"),
        ({"quant_method": "quanto", "weights": "int8"}, "modules_to_not_convert"),
    ],
)
def test_dicts_are_understood(config, field):
    skip = getattr(_skip_all_but_language_model(config), field)
    assert not should_convert_module("model.vision_model.encoder.layers.0.mlp.fc1", skip)
    assert should_convert_module("model.language_model.layers.0.mlp.up_proj", skip)


@pytest.mark.parametrize("model_class", [JanusProForConditionalGeneration, JanusProModel])
def test_torchao_int8(golden_checkpoint, golden_model, golden, tmp_path, model_class):
    """A real quantised load: from the original `.bin` files, through the conversion of names."""
    pytest.importorskip("torchao")
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    model = model_class.from_pretrained(
        golden_checkpoint, dtype=torch.float32, quantization_config=TorchAoConfig(Int8WeightOnlyConfig())
    )
    plain = golden_model if model_class is JanusProForConditionalGeneration else golden_model.model
    for name, parameter in model.named_parameters():
        changed = is_language_layer(name) and "_proj." in name
        assert (type(parameter.data) is not torch.Tensor and type(parameter) is not torch.nn.Parameter) == changed, (
            name
        )
        if not changed:
            assert torch.equal(parameter, plain.get_parameter(name)), name
    if model_class is JanusProModel:
        return
    with torch.no_grad():
        ids = golden["text.input_ids"]
        error = (model(input_ids=ids).logits - golden["text.logits"]).norm() / golden["text.logits"].norm()
    assert 0 < error < 0.05  # measured 0.0077 with 8-bit weights
    with pytest.raises(ValueError, match="layout='transformers'"):
        model.save_pretrained(tmp_path, layout="original")
