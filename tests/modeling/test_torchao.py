"""Weight-only quantisation by torchao itself, which `make test-slow` installs (the extra `quant`)."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, TorchAoConfig

from janus_hf import CheckpointError, JanusProForConditionalGeneration, JanusProPipeline
from janus_hf.generation.decoders import CompiledDecoder
from janus_hf.generation.kernels.x86 import model_kernels
from janus_hf.generation.kernels.x86.cpu_kernels import kernels_fit
from janus_hf.generation.kernels.x86.packed_linear import PackedLinear
from janus_hf.modeling.quantisation.weight_only import settle_quantised, weight_only_config


GOLDENS = Path(__file__).parents[1] / "goldens"
CHECKPOINT = GOLDENS / "checkpoint"
IDS = torch.arange(20).unsqueeze(0)
BITS = ("int8", "int4", "fp8")
LAYER = "model.language_model.layers.0.mlp.up_proj"

pytestmark = pytest.mark.slow


def load(bits: Any, **kwargs: Any) -> JanusProForConditionalGeneration:
    return AutoModel.from_pretrained(CHECKPOINT, **{"dtype": torch.float32} | kwargs, quantization_config=bits)


def quantised_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: weight for name, weight in model.named_parameters() if type(weight.data) is not torch.Tensor}


def inner_tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {
        f"{name}.{part}": getattr(weight, part)
        for name, weight in quantised_weights(model).items()
        for part in weight.__tensor_flatten__()[0]
    }


@pytest.fixture(scope="module")
def exact() -> JanusProForConditionalGeneration:
    return load(None)


@pytest.fixture(scope="module", params=BITS)
def bits(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def quantised(bits: str) -> JanusProForConditionalGeneration:
    return load(bits)


def test_only_the_language_models_layers_are_quantised(quantised: JanusProForConditionalGeneration):
    linears = {
        f"model.language_model.{name}.weight"
        for name, module in quantised.model.language_model.named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    assert quantised_weights(quantised).keys() == linears
    assert len(linears) == 2 * 7


def rounded_int8(weight_NK: torch.Tensor) -> torch.Tensor:
    """Round weights to 255 levels, with a scale for each output."""
    scale = weight_NK.abs().amax(dim=1, keepdim=True) / 127.5
    return (weight_NK / scale).round().clamp(-128, 127) * scale


def rounded_int4(weight_NK: torch.Tensor) -> torch.Tensor:
    """Round weights to 16 levels from the smallest to the largest of 64 neighbours."""
    groups = weight_NK.unflatten(1, (-1, 64))
    low, high = groups.amin(dim=-1, keepdim=True), groups.amax(dim=-1, keepdim=True)
    scale = (high - low) / 15
    return (((groups - low) / scale).round() * scale + low).flatten(1)


def rounded_fp8(weight_NK: torch.Tensor) -> torch.Tensor:
    """Round weights to numbers with three bits after the first one, with a scale for each output."""
    scale = weight_NK.abs().amax(dim=1, keepdim=True) / 448  # the largest float8_e4m3fn
    values = weight_NK / scale
    exponent = values.abs().log2().floor().clamp(min=-6)
    step = 2 ** (exponent - 3)
    return (values / step).round() * step * scale


ROUNDED: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "int8": rounded_int8,
    "int4": rounded_int4,
    "fp8": rounded_fp8,
}
STEPS = {"int8": 1 / 127.5, "int4": 1 / 7.5, "fp8": 1 / 14}  # largest distance of two levels, of the largest weight


def test_layers_compute_with_rounded_weights(
    bits: str, quantised: JanusProForConditionalGeneration, exact: JanusProForConditionalGeneration
):
    weight_NK = exact.get_submodule(LAYER).weight
    with torch.no_grad():
        found_NK = quantised.get_submodule(LAYER)(torch.eye(weight_NK.shape[1])).T
    # The layer's outputs for unit vectors are its weights. A weight midway between two levels may round to either.
    step = weight_NK.abs().amax() * STEPS[bits]
    away = (found_NK - ROUNDED[bits](weight_NK)).abs()
    assert (away < 1e-5).float().mean() > 0.995
    assert away.max() < 1.01 * step
    assert (found_NK - weight_NK).abs().max() > 1e-4  # rounded indeed


def test_quantised_logits_are_close(
    bits: str, quantised: JanusProForConditionalGeneration, exact: JanusProForConditionalGeneration
):
    with torch.no_grad():
        error = (quantised(input_ids=IDS).logits - exact(input_ids=IDS).logits).abs().max()
        spread = exact(input_ids=IDS).logits.std()
    # Logits spread by 2.0. Measured 0.10 for int8, which rounds weights to 1/254 of each row's largest, 1.3 for int4,
    # to 1/30 of a group's range, and 0.41 for fp8, to 1/16 of each weight. Zero would mean that nothing was quantised,
    # several times the spread that weights were lost.
    assert 0 < error < {"int8": 0.15, "int4": 1.0, "fp8": 0.4}[bits] * spread


def test_quantised_save_and_reload(quantised: JanusProForConditionalGeneration, tmp_path: Path):
    with pytest.raises(ValueError, match="layout='transformers'"):
        quantised.save_pretrained(tmp_path, layout="original")
    before = inner_tensors(quantised)
    quantised.save_pretrained(tmp_path)
    assert inner_tensors(quantised).keys() == before.keys()
    assert all(tensor is before[name] for name, tensor in inner_tensors(quantised).items())  # saving changes nothing
    reloaded = JanusProForConditionalGeneration.from_pretrained(tmp_path)
    found = inner_tensors(reloaded)
    assert found.keys() == before.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in before.items())
    with torch.no_grad():
        assert torch.equal(reloaded(input_ids=IDS).logits, quantised(input_ids=IDS).logits)
    reloaded.save_pretrained(tmp_path / "again")
    first, second = load_file(tmp_path / "model.safetensors"), load_file(tmp_path / "again" / "model.safetensors")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_saved_pipeline_generates_and_answers_the_same(bits: str, tmp_path: Path):
    pipe = JanusProPipeline.from_pretrained(CHECKPOINT, dtype=torch.bfloat16, quantization_config=bits)
    assert quantised_weights(pipe.model)
    pipe.save_pretrained(tmp_path)
    reloaded = JanusProPipeline.from_pretrained(tmp_path)
    assert reloaded.model.dtype == torch.bfloat16
    codes, answers = [], []
    for one in (pipe, reloaded):
        one.set_progress_bar_config(disable=True)
        output = one("a red fox", generator=torch.Generator().manual_seed(3))
        codes.append(output.image_ids)
        answers.append(one.ask(output.images[0], "What is it?", max_new_tokens=8))
    assert torch.equal(*codes)
    assert answers[0] == answers[1]


def test_int4_files_hold_the_plain_order(exact: JanusProForConditionalGeneration, tmp_path: Path):
    """Files hold torchao's order of int4 weights, not that of the processor they were saved on."""
    model = load("int4")
    model.save_pretrained(tmp_path)
    stored = {
        name.removeprefix(f"{LAYER}._weight_"): tensor
        for name, tensor in load_file(tmp_path / "model.safetensors").items()
        if name.startswith(f"{LAYER}.")
    }
    assert stored.keys() == {"qdata", "scale", "zero_point"}
    # Two signed values to a byte, the first in the low half; value * scale + zero point is the weight.
    first, second = stored["qdata"] << 4 >> 4, stored["qdata"] >> 4
    values_NK = torch.stack([first, second], dim=-1).flatten(1)
    assert values_NK.min() == -8
    assert values_NK.max() == 7
    scale_NK = stored["scale"].T.repeat_interleave(64, dim=1)
    zero_NK = stored["zero_point"].T.repeat_interleave(64, dim=1)
    weight_NK = exact.get_submodule(LAYER).weight
    assert ((values_NK * scale_NK + zero_NK) - weight_NK).abs().max() < 0.51 * scale_NK.max()
    assert model.config.quantization_config.quant_type.__class__.__name__ == "PrototypeInt4WeightOnlyConfig"


def test_groups_that_do_not_fit_are_refused():
    from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig
    from torchao.quantization import FqnToConfig, Int8WeightOnlyConfig

    wide = PrototypeInt4WeightOnlyConfig(group_size=128)  # the layers have 64 inputs, but for down_proj, which has 128
    with pytest.raises(
        ValueError, match=r"group_size=128.* left 12 of the 14 weights .* has 64 inputs .* \(32, 64 or 128\)"
    ):
        load(TorchAoConfig(wide))
    by_name = {
        r"re:.*\.layers\.1\.mlp\.gate_proj": None,
        LAYER: Int8WeightOnlyConfig(),
        r"re:.*\.mlp\..*": wide,
        r"re:.*\.up_proj": Int8WeightOnlyConfig(),  # too late: the first pattern decides
    }
    with pytest.raises(ValueError, match=r"Prototype.*\(group_size=128\).* left 2 of the 4 weights "):
        load(TorchAoConfig(FqnToConfig(by_name)))


@pytest.mark.parametrize("attention", ["plain", "int8"])
def test_a_config_by_names_may_leave_layers_plain(attention: str, bits: str, tmp_path: Path):
    from torchao.quantization import FqnToConfig, Int8WeightOnlyConfig

    by_name = {r"re:.*\.mlp\..*": weight_only_config(bits).quant_type}
    if attention == "int8":
        by_name[r"re:.*\.self_attn\..*"] = Int8WeightOnlyConfig()
    model = load(TorchAoConfig(FqnToConfig(by_name)))
    names = quantised_weights(model).keys()
    assert all("language_model" in name for name in names)
    assert sum(".mlp." in name for name in names) == 2 * 3
    assert sum(".self_attn." in name for name in names) == (2 * 4 if attention == "int8" else 0)

    model.save_pretrained(tmp_path)
    reloaded = JanusProForConditionalGeneration.from_pretrained(tmp_path)
    saved = reloaded.config.quantization_config.quant_type
    assert isinstance(saved, FqnToConfig)
    assert saved.fqn_to_config.keys() == by_name.keys()
    found = inner_tensors(reloaded)
    assert found.keys() == inner_tensors(model).keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in inner_tensors(model).items())
    with torch.no_grad():
        assert torch.equal(reloaded(input_ids=IDS).logits, model(input_ids=IDS).logits)


@pytest.mark.parametrize("by_name", [False, True])
def test_int4_with_rounded_inputs_says_that_it_cannot_be_saved(by_name: bool, tmp_path: Path):
    """The weights are built by hand, because not every torchao is built with the kernel that packs them."""
    from torchao.prototype.quantization.int4 import Int8DynamicActivationInt4WeightConfig
    from torchao.quantization import FqnToConfig

    model = load("int4")
    layer = model.get_submodule(LAYER)
    fields = ("qdata", "scale_and_zero", "block_size", "shape")
    packed = type(layer.weight.data)(*(getattr(layer.weight, name) for name in fields), act_mapping_type="asymmetric")
    layer.weight = torch.nn.Parameter(packed, requires_grad=False)
    config = model.config.quantization_config
    rounded = Int8DynamicActivationInt4WeightConfig(group_size=64)
    config.quant_type = FqnToConfig({LAYER: rounded, "re:.*": config.quant_type}) if by_name else rounded
    before = quantised_weights(model)
    with pytest.raises(ValueError, match=r"of Int8DynamicActivationInt4WeightConfig \(.*layers.0.mlp.up_proj and"):
        model.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())
    assert all(weight is before[name] for name, weight in quantised_weights(model).items())


def test_int4_weights_of_another_device_are_refused():
    from torchao.quantization import Int4Tensor, Int4TilePackedTo4dTensor

    model = load("int4")
    layer = model.get_submodule(LAYER)
    shape, scale = layer.weight.shape, torch.zeros(1, 128)
    packed = Int4TilePackedTo4dTensor(torch.zeros(1), torch.zeros(1), [1, 64], shape)
    layer.weight = torch.nn.Parameter(packed, requires_grad=False)
    with pytest.raises(CheckpointError, match=r"packed for CUDA \(.*up_proj and others\)"):
        settle_quantised(model)
    plain = Int4Tensor(torch.zeros(128, 32, dtype=torch.int8, device="meta"), scale, scale, [1, 64], shape)
    layer.weight = torch.nn.Parameter(plain, requires_grad=False)
    with pytest.raises(CheckpointError, match="no kernel on meta without mslk"):
        settle_quantised(model)


def test_int4_is_packed_for_the_device_it_goes_to():
    def kind(device_map: Any) -> str:
        return type(weight_only_config("int4", device_map).quant_type).__name__

    assert kind(None) == kind("cpu") == kind({"": "cpu"}) == "PrototypeInt4WeightOnlyConfig"
    assert kind("cuda:0") == kind(torch.device("cuda")) == "Int4WeightOnlyConfig"
    assert weight_only_config("int4", "cuda").quant_type.int4_packing_format == "tile_packed_to_4d"
    assert kind("auto") == kind("cuda" if torch.cuda.is_available() else "cpu")
    for device_map in ({"model": "cuda:0", "lm_head": "cpu"}, "mps", {"": "disk"}):
        with pytest.raises(ValueError, match="must name a CPU or CUDA .*: int4 weights are packed for the kernel of"):
            weight_only_config("int4", device_map)


def test_an_adapter_stays_in_full_precision(bits: str, tmp_path: Path):
    from peft import LoraConfig

    model = load(None)
    model.add_adapter(LoraConfig(target_modules=["up_proj"], r=4, init_lora_weights=False))
    model.save_pretrained(tmp_path)
    stored = [tensor for name, tensor in model.state_dict().items() if "lora_" in name]
    loaded = JanusProForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float32, quantization_config=bits)
    found = [tensor for name, tensor in loaded.state_dict().items() if "lora_" in name]
    assert len(found) == len(stored) == 2 * 2
    assert all(torch.equal(*pair) for pair in zip(found, stored, strict=True))
    assert f"{LAYER}.base_layer.weight" in quantised_weights(loaded)


@pytest.mark.parametrize("bits", ["int8", "fp8"])  # int4 has no derivative, and no way back from its kernel's order
def test_an_adapter_on_quantised_weights_trains_and_merges(bits: str):
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(load(bits), LoraConfig(target_modules=["up_proj"], r=4, init_lora_weights=False))
    labels = IDS.masked_fill(IDS == 0, -100)
    adapted(input_ids=IDS, labels=labels).loss.backward()
    trained = [name for name, parameter in adapted.named_parameters() if parameter.grad is not None]
    assert len(trained) == 2 * 2
    assert all("lora_" in name for name in trained)
    with torch.no_grad():
        expected = adapted(input_ids=IDS).logits
        merged = adapted.merge_and_unload()
        found = merged(input_ids=IDS).logits
    assert LAYER + ".weight" in quantised_weights(merged)
    assert 0 < (found - expected).abs().max() < {"int8": 0.15, "fp8": 1.0}[bits] * expected.std()


def test_the_users_own_skip_list_is_kept():
    from torchao.quantization import Int8WeightOnlyConfig

    skip = ["model.vision_model", "model.language_model.layers.0"]
    names = quantised_weights(load(TorchAoConfig(Int8WeightOnlyConfig(), modules_to_not_convert=skip)))
    assert any(name.startswith("model.language_model.layers.1.") for name in names)
    assert not any(name.startswith("model.language_model.layers.0.") for name in names)
    assert "model.generation_head.vision_head.weight" in names


def test_a_compiled_quantised_step_generates_the_same(
    bits: str, quantised: JanusProForConditionalGeneration, caplog: pytest.LogCaptureFixture, monkeypatch
):
    """In float32 compiling must not change any code."""
    monkeypatch.setattr(logging.getLogger("janus_hf"), "propagate", True)
    settings = {"pad_token_id": 2, "do_sample": True}
    prompt = torch.tensor([[0, 5, 6, 7, 1]])
    expected = quantised.generate_images(prompt, generator=torch.Generator().manual_seed(1), **settings)
    model = load(bits)
    assert model.compile_generation()
    codes = model.generate_images(prompt, generator=torch.Generator().manual_seed(1), **settings)
    assert torch.equal(codes, expected)
    assert caplog.text.count("Compiling the generation step") == 1


def test_a_compiled_step_notices_changed_scales(bits: str, caplog: pytest.LogCaptureFixture, monkeypatch):
    """Scales change inside a weight, which stays the same object. Our own kernels, which would pack again, are off."""
    monkeypatch.setattr(logging.getLogger("janus_hf"), "propagate", True)
    monkeypatch.setattr(model_kernels, "kernels_fit", lambda device: False)
    model, decoder = load(bits), CompiledDecoder(torch.device("cpu"))
    decoder.prepare(model.model)
    decoder.prepare(model.model)
    assert not caplog.messages
    scales = inner_tensors(model)
    next(tensor for name, tensor in scales.items() if "scale" in name).mul_(2)
    decoder.prepare(model.model)
    assert "compiling it anew" in caplog.text


@pytest.mark.skipif(not kernels_fit(torch.device("cpu")), reason="the kernels are for processors with AVX2 or AVX-512")
@torch.no_grad()
def test_int8_is_packed_by_our_kernels(caplog: pytest.LogCaptureFixture, monkeypatch):
    monkeypatch.setattr(logging.getLogger("janus_hf"), "propagate", True)
    model, decoder = load("int8"), CompiledDecoder(torch.device("cpu"))
    layer, x = model.get_submodule(LAYER), torch.randn(3, model.config.text_config.hidden_size)
    for factor in (1, 2):
        layer.weight.scale.mul_(factor)
        decoder.prepare(model.model)
        with decoder.running(model.model):
            found = model.get_submodule(LAYER)(x)
            assert isinstance(model.get_submodule(LAYER), PackedLinear)
        # Torchao multiplies by the scale before it sums, we after: float32 numbers below 10.
        torch.testing.assert_close(found, layer(x), rtol=0, atol=1e-5)
    assert not caplog.messages
    assert not decoder.packs_by_compiler
