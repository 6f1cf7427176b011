"""Devices without bfloat16 and with little memory, stood in for by functions that describe them."""

import logging
from types import SimpleNamespace

import pytest
import torch

from janus_hf import JanusProConfig, JanusProForConditionalGeneration, JanusProPipeline
from janus_hf.generation.batch_sizes import bytes_per_image, codec_bytes
from janus_hf.generation.devices import devices_of, free_memory, has_bfloat16, has_float8
from janus_hf.modeling.quantisation.weight_memory import warn_if_too_large, weight_bytes
from janus_hf.modeling.quantisation.weight_only import weight_only_config
from tiny import TINY_MODEL


GIB = 2**30
CUDA = torch.device("cuda:0")


@pytest.fixture
def gpu(monkeypatch):
    """A CUDA GPU that a test describes: its compute capability, and its memory, free and reserved."""
    card = SimpleNamespace(capability=(7, 5), free=0, reserved=0, allocated=0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: card.capability)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device=None: (card.free, 16 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device=None: card.reserved)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device=None: card.allocated)
    return card


@pytest.fixture
def no_bfloat16(monkeypatch):
    """Make the CPU a device without bfloat16."""
    for module in ("modeling.pretrained", "pipelines.offloading"):
        monkeypatch.setattr(f"janus_hf.{module}.has_bfloat16", lambda device: False)


# --- what a device can do


@pytest.mark.parametrize(
    ("capability", "expected"),
    [((7, 0), False), ((7, 5), False), ((8, 0), True), ((8, 6), True), ((8, 9), True), ((9, 0), True)],
)
def test_nvidias_gpus_have_bfloat16_from_ampere_on(gpu, capability, expected):
    gpu.capability = capability
    assert has_bfloat16(CUDA) is expected


@pytest.mark.parametrize(
    ("capability", "expected"), [((7, 5), False), ((8, 0), False), ((8, 6), False), ((8, 9), True), ((9, 0), True)]
)
def test_nvidias_gpus_have_float8_from_ada_on(gpu, capability, expected):
    gpu.capability = capability
    assert has_float8(CUDA) is expected


def test_other_devices_have_both(gpu, monkeypatch):
    for has in (has_bfloat16, has_float8):
        assert all(has(torch.device(kind)) for kind in ("cpu", "mps", "xpu"))
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert has_bfloat16(CUDA)
    assert has_float8(CUDA)


def test_reserved_memory_that_is_not_used_is_free(gpu):
    gpu.free, gpu.reserved, gpu.allocated = 5 * GIB, 3 * GIB, 1 * GIB
    assert free_memory(CUDA) == 7 * GIB


def test_memory_of_other_devices(monkeypatch):
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 12 * GIB)
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: 2 * GIB)
    assert free_memory(torch.device("mps")) == 10 * GIB
    assert free_memory(torch.device("meta")) is None
    free = free_memory(torch.device("cpu"))
    assert free is None or free > 0


@pytest.mark.parametrize(
    ("device_map", "expected"),
    [
        (None, ["cpu"]),
        ("cpu", ["cpu"]),
        ("cuda:1", ["cuda:1"]),
        (torch.device("mps"), ["mps"]),
        ({"model": 0, "lm_head": "cuda:1", "model.vqmodel": "cuda:1"}, ["cuda:0", "cuda:1"]),
        ({"": "cpu", "lm_head": "disk"}, ["cpu"]),
    ],
)
def test_devices_of_a_device_map(device_map, expected):
    assert [str(device) for device in devices_of(device_map)] == expected


def test_a_strategy_means_all_devices(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    assert [str(device) for device in devices_of("auto")] == ["cuda:0", "cuda:1"]
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: None)
    assert devices_of("balanced") == [torch.device("cpu")]


# --- dtypes


def test_half_precision_becomes_float16_with_a_codec_in_float32(no_bfloat16, caplog):
    with caplog.at_level(logging.WARNING, logger="janus_hf"):
        model = JanusProForConditionalGeneration.from_pretrained(TINY_MODEL, dtype="auto", device_map="cpu")
    assert "cpu has no bfloat16, so the model is loaded in float16, and its image codec in float32" in caplog.text
    for name, parameter in model.named_parameters():
        assert parameter.dtype == (torch.float32 if "vqmodel." in name else torch.float16), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, "float32", torch.float16])
def test_a_dtype_that_the_caller_names_is_kept(no_bfloat16, dtype):
    model = JanusProForConditionalGeneration.from_pretrained(TINY_MODEL, dtype=dtype, device_map="cpu")
    expected = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    assert {parameter.dtype for parameter in model.parameters()} == {expected}


def test_both_dtypes_work_in_one_model(no_bfloat16, tmp_path):
    """Every way between the language model and the codec: draw, encode, continue, decode, ask, save and load."""
    pipe = JanusProPipeline.from_pretrained(TINY_MODEL, device_map="cpu")
    pipe.set_progress_bar_config(disable=True)
    drawn = pipe("a red fox", generator=[torch.Generator().manual_seed(0)])
    codes = pipe.encode(drawn.images)
    continued = pipe("a red fox", image_ids=codes[:, :5], generator=[torch.Generator().manual_seed(0)])
    assert torch.equal(continued.image_ids[:, :5], codes[:, :5])
    assert pipe.decode(codes, "pt").dtype == torch.float32
    assert isinstance(pipe.ask(drawn.images[0], "What is it?", max_new_tokens=2), str)
    ids = torch.cat([torch.tensor([[1, 2]]), codes + pipe.model.config.text_config.vocab_size], dim=1)
    assert pipe.model(input_ids=ids, labels=ids.masked_fill(ids < 3, -100)).loss.isfinite()
    pipe.save_pretrained(tmp_path)
    again = JanusProPipeline.from_pretrained(tmp_path, device_map="cpu")
    for (name, first), second in zip(pipe.model.named_parameters(), again.model.parameters(), strict=True):
        assert first.dtype == second.dtype, name
        assert torch.equal(first, second), name


def test_a_model_in_bfloat16_is_told_once_that_it_is_slow(no_bfloat16, caplog):
    pipe = JanusProPipeline.from_pretrained(TINY_MODEL, dtype="bfloat16")
    with caplog.at_level(logging.WARNING, logger="janus_hf"):
        for _ in range(2):
            pipe.decode(torch.zeros(1, 64, dtype=torch.long))
    assert caplog.text.count("cpu has no bfloat16 and computes it by conversions") == 1


def test_int4_needs_bfloat16(gpu):
    pytest.importorskip("torchao")
    with pytest.raises(ValueError, match="must be 'int8' on a GPU without bfloat16, got 'int4'"):
        weight_only_config("int4", "cuda")


@pytest.mark.parametrize(
    ("capability", "device_map", "message"),
    [
        ((7, 5), "cuda", r"must be 'int8' on cuda \(compute capability 7\.5\), got 'fp8', which needs 8\.9 "),
        ((8, 0), "cuda:1", r"must be 'int8' or 'int4' on cuda:1 \(compute capability 8\.0\), .* take 'int8', which "),
        ((8, 6), {"model": 0, "lm_head": "cpu"}, r"on cuda:0 \(compute capability 8\.6\)"),
        ((9, 0), "mps", r"device_map must name a CPU or CUDA for fp8 weights, got \['mps'\]: .* or use 'int8'"),
        ((9, 0), "xpu", r"device_map must name a CPU or CUDA for fp8 weights, got \['xpu'\]"),
        ((8, 9), "cuda", None),
        ((9, 0), torch.device("cuda", 0), None),
        ((7, 5), "cpu", None),
        ((7, 5), None, None),
    ],
)
def test_fp8_needs_float8(gpu, monkeypatch, capability, device_map, message):
    pytest.importorskip("torchao")
    gpu.capability = capability
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: torch.device("cuda"))
    if message is None:
        assert type(weight_only_config("fp8", device_map).quant_type).__name__ == "Float8WeightOnlyConfig"
    else:
        with pytest.raises(ValueError, match=message):
            weight_only_config("fp8", device_map)


# --- values that are not finite


def overflow(module):
    """Make the outputs of a module what they are after an overflow in float16."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(float("inf"))


@pytest.fixture
def half():
    pipe = JanusProPipeline.from_pretrained(TINY_MODEL, dtype="float16")
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize(
    ("part", "named"),
    [
        ("model.language_model.layers.0.mlp", "the language model: layer 0, or the keys and values of layer 1"),
        ("model.generation_head", "the last layer of the language model, or the image head"),
    ],
)
def test_the_part_that_overflows_is_named_when_drawing(half, part, named):
    overflow(half.model.get_submodule(part))
    with pytest.raises(FloatingPointError, match=rf"image logits .* first in {named} \(float16\): load the model"):
        half("a red fox")


def test_the_codec_is_named_when_decoding_and_encoding(half, image):
    overflow(half.model.model.vqmodel.post_quant_conv)
    overflow(half.model.model.vqmodel.quant_conv)
    with pytest.raises(FloatingPointError, match=r"codec's pixels are not finite.*the image codec \(float16\): set"):
        half.decode(torch.zeros(1, 64, dtype=torch.long))
    with pytest.raises(FloatingPointError, match=r"codec's latents are not finite.*the image codec \(float16\): set"):
        half.encode(image)


@pytest.mark.parametrize(
    ("part", "named"),
    [
        ("model.aligner", "the vision tower, or its aligner"),
        ("model.language_model.layers.0.mlp", "the language model"),
    ],
)
def test_the_part_that_overflows_is_named_when_asking(half, image, part, named):
    overflow(half.model.get_submodule(part))
    with pytest.raises(FloatingPointError, match=rf"text logits are not finite.*first in {named} \(float16\)"):
        half.ask(image, "What is it?", max_new_tokens=2)


def test_other_dtypes_hear_of_broken_weights(half):
    half.model.float()
    overflow(half.model.model.generation_head)
    with pytest.raises(FloatingPointError, match=r"\(float32\): check its weights"):
        half("a red fox")


@pytest.fixture
def image():
    from PIL import Image

    return Image.new("RGB", (40, 30), "red")


# --- memory


@pytest.fixture(scope="module")
def sizes(released, tmp_path_factory):
    """Configs and models without memory of the released 1B and 7B."""
    import json

    found = {}
    for name, config in released.items():
        folder = tmp_path_factory.mktemp(name)
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
        found[name] = JanusProConfig.from_pretrained(folder)
    with torch.device("meta"):
        return {name: (JanusProForConditionalGeneration(config), config) for name, config in found.items()}


def test_weights_are_counted_exactly():
    model = JanusProForConditionalGeneration.from_pretrained(TINY_MODEL)
    held = sum(parameter.nbytes for parameter in model.parameters())
    assert weight_bytes(model, torch.bfloat16) == held
    codec = sum(parameter.nbytes for parameter in model.model.vqmodel.parameters())
    assert weight_bytes(model, torch.float16, None, torch.float32) == held + codec


@pytest.mark.parametrize("bits", ["int8", "fp8"])
def test_quantised_weights_are_counted(bits):
    pytest.importorskip("torchao")
    model = JanusProForConditionalGeneration.from_pretrained(TINY_MODEL, quantization_config=bits)
    held = 0
    for parameter in model.parameters():
        names = parameter.__tensor_flatten__()[0] if hasattr(parameter, "__tensor_flatten__") else []
        held += sum(getattr(parameter, name).nbytes for name in names) if names else parameter.nbytes
    plain = JanusProForConditionalGeneration.from_pretrained(TINY_MODEL)
    assert weight_bytes(plain, torch.bfloat16, bits) == pytest.approx(held, rel=0.05)


def test_the_cache_of_an_image_is_counted(sizes):
    """The cache of the released models, two rows of 704 positions: 0.26 GiB (1B) and 0.64 GiB (7B)."""
    for name, layers, width, expected in (("1b", 24, 2048, 0.26), ("7b", 30, 4096, 0.64)):
        cache = 2 * 2 * layers * width * 704 * 2
        assert cache / GIB == pytest.approx(expected, abs=0.005)
        assert cache < bytes_per_image(sizes[name][1], torch.bfloat16) < 1.4 * cache
    assert codec_bytes(sizes["1b"][1], torch.float32) / GIB == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(
    ("size", "free", "dtype", "bits", "said"),
    [
        ("1b", 8, torch.bfloat16, None, None),
        ("1b", 8, torch.float32, None, "pass dtype='bfloat16' ("),
        ("7b", 24, torch.bfloat16, None, None),
        ("7b", 12, torch.bfloat16, None, "pass dtype='bfloat16', quantization_config='int8' ("),
        ("7b", 8, torch.bfloat16, "int8", "pass dtype='bfloat16', quantization_config='int4' ("),
        ("7b", 8, torch.bfloat16, "fp8", "pass dtype='bfloat16', quantization_config='int4' ("),
        ("7b", 4, torch.bfloat16, "int4", "run out of memory: load it without `device_map`"),
    ],
)
def test_a_model_that_does_not_fit_is_told_before_loading(sizes, gpu, caplog, size, free, dtype, bits, said):
    gpu.capability, gpu.free = (8, 6), free * GIB
    with caplog.at_level(logging.WARNING, logger="janus_hf"):
        warn_if_too_large(*sizes[size], "cuda:0", dtype, bits)
    if said is None:
        assert caplog.text == ""
    else:
        assert said in caplog.text
        assert f"cuda:0 has {free:.1f} GiB free" in caplog.text


@pytest.mark.parametrize("device_map", ["cpu", None, {"": "cuda:0", "lm_head": "cuda:1"}])
def test_nothing_is_said_where_nothing_is_known(sizes, gpu, caplog, device_map):
    with caplog.at_level(logging.WARNING, logger="janus_hf"):
        warn_if_too_large(*sizes["7b"], device_map, torch.float32)
    assert caplog.text == ""


def test_loading_says_it(gpu, caplog):
    """The check comes before anything is loaded to the GPU, which this machine need not have."""
    gpu.capability, gpu.free = (8, 0), 1000
    with caplog.at_level(logging.WARNING, logger="janus_hf"), pytest.raises((RuntimeError, AssertionError)):
        JanusProForConditionalGeneration.from_pretrained(TINY_MODEL, device_map="cuda:0")
    assert "The model and one image need about" in caplog.text
