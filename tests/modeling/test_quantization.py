"""A `quantization_config` skips all but the language model's layers, unless it lists modules to skip itself."""

import copy

import pytest
import torch
from transformers import BitsAndBytesConfig, FineGrainedFP8Config, FourOverSixConfig, QuantoConfig
from transformers.quantizers.quantizers_utils import should_convert_module

from janus_hf import JanusProForConditionalGeneration
from janus_hf.modeling.quantisation import weight_only
from janus_hf.modeling.quantisation.weight_only import skip_all_but_language_model


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
    skip = getattr(skip_all_but_language_model(config), field)
    assert vars(config) == before  # the user's own object is left alone
    names = linear_names(tiny_model.model if bare else tiny_model)
    assert len([name for name in names if not is_language_layer(name)]) >= 18
    # transformers' own rule for bitsandbytes, quanto, torchao and fp8
    assert {name for name in names if should_convert_module(name, skip)} == set(filter(is_language_layer, names))


@pytest.mark.parametrize("method", CONFIGS)
def test_a_list_of_ones_own_is_kept(method):
    build, field = CONFIGS[method]
    config = skip_all_but_language_model(build(**{field: ["model.vqmodel"]}))
    assert getattr(config, field) == ["model.vqmodel"]


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({"load_in_4bit": True}, "llm_int8_skip_modules"),
        ({"quant_method": "quanto", "weights": "int8"}, "modules_to_not_convert"),
    ],
)
def test_dicts_are_understood(config, field):
    skip = getattr(skip_all_but_language_model(config), field)
    assert not should_convert_module("model.vision_model.encoder.layers.0.mlp.fc1", skip)
    assert should_convert_module("model.language_model.layers.0.mlp.up_proj", skip)


class HqqLike:
    """Stands in for hqq's config, which cannot be built without hqq, with the one field that is read."""

    def __init__(self, skip_modules):
        self.skip_modules = skip_modules


def test_hqq_is_refused_unless_the_user_names_what_to_skip():
    with pytest.raises(ValueError, match="got one of HQQ. HQQ compares whole layer names"):
        skip_all_but_language_model(HqqLike(["lm_head"]))
    config = HqqLike(["lm_head", "fc1"])
    assert skip_all_but_language_model(config) is config


def test_words_it_does_not_know_are_refused(golden_checkpoint):
    with pytest.raises(ValueError, match=r"must be 'int8', 'int4', 'fp8' or a configuration .*, got 'int5'"):
        JanusProForConditionalGeneration.from_pretrained(golden_checkpoint, quantization_config="int5")


def test_without_torchao_it_is_said_what_to_install(golden_checkpoint, monkeypatch):
    monkeypatch.setattr(weight_only, "is_torchao_available", lambda: False)
    with pytest.raises(ImportError, match=r"int8 weights need torchao: pip install 'janus_hf\[quant\]'"):
        JanusProForConditionalGeneration.from_pretrained(golden_checkpoint, quantization_config="int8")
