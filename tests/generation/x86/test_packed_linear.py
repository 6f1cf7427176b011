"""Packed layers compute what PyTorch's linear layers compute."""

import pytest
import torch
from torch import nn

from janus_hf.generation.kernels.x86 import cpu_kernels, packed_linear
from janus_hf.generation.kernels.x86.packed_linear import (
    PackedLinear,
    PackedLinears,
    pack_int8_pairs,
    pack_pairs,
    pack_weight,
)


pytestmark = pytest.mark.skipif(
    not cpu_kernels.kernels_fit(torch.device("cpu")), reason="the kernel is for processors with AVX2 or AVX-512"
)
EPSILON = torch.finfo(torch.float32).eps


@pytest.fixture(params=[True, False], ids=["bfloat16 is multiplied", "bfloat16 is converted"], autouse=True)
def multiplies(request, monkeypatch):
    """Run every test as on a processor with instructions that multiply bfloat16, and as on one without them."""
    if request.param and not cpu_kernels.multiplies_pairs(torch.bfloat16):
        pytest.skip("needs a processor with AVX512-BF16")
    monkeypatch.setattr(
        packed_linear, "multiplies_pairs", lambda dtype: request.param and cpu_kernels.multiplies_pairs(dtype)
    )
    return request.param


def make_linear(inputs, outputs, dtype, bias=False):
    """Return a random linear layer, the same at every call."""
    torch.manual_seed(0)
    return nn.Linear(inputs, outputs, bias=bias, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 6, 7, 8, 11, 12, 13, 40])
@pytest.mark.parametrize(
    ("inputs", "outputs"),
    [(16, 32), (1100, 64), (512, 48), (7, 33), (6, 33), (1, 1)],
    ids=["small", "several parts of the inputs", "one part", "odd inputs", "outputs that fill no block", "one weight"],
)
@torch.no_grad()
def test_it_equals_a_linear_layer(dtype, rows, inputs, outputs):
    linear = make_linear(inputs, outputs, dtype, bias=True)
    x = torch.randn(rows, inputs, generator=torch.Generator().manual_seed(rows))
    # Inputs that need no rounding to the weight's dtype. They are float32, so that the output is not rounded either.
    x = x.to(dtype).float()
    expected = nn.functional.linear(x.double(), linear.weight.double(), linear.bias.double())
    # Each of the `inputs` additions rounds a sum that is smaller than the sum of absolute products.
    bound = (x.abs().double() @ linear.weight.abs().double().T).max().item() + 1
    torch.testing.assert_close(PackedLinear(linear)(x).double(), expected, rtol=0, atol=inputs * EPSILON * bound)


@torch.no_grad()
def test_half_precision_is_rounded_once():
    linear = make_linear(300, 64, torch.bfloat16, bias=True)
    x = torch.randn(3, 300).bfloat16()
    packed = PackedLinear(linear)
    found = packed(x)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, packed(x.float()).bfloat16())


def test_the_order_is_that_of_the_processors_instructions(multiplies):
    """bfloat16 weights are packed in pairs of inputs where the processor multiplies pairs, if their number is even."""
    for dtype, inputs, pairs in (
        (torch.bfloat16, 6, multiplies),
        (torch.bfloat16, 7, False),
        (torch.float32, 6, False),
    ):
        linear = make_linear(inputs, 4, dtype)
        layer = PackedLinear(linear)
        assert layer.input_dtype == (torch.bfloat16 if pairs else torch.float32)
        pack = pack_pairs if pairs else pack_weight
        assert torch.equal(layer.packed, pack(linear.weight.detach(), cpu_kernels.block_size()))


def test_pairs_of_inputs_lie_side_by_side():
    weight_NK = torch.arange(12.0).view(3, 4).bfloat16()
    expected = [[[0, 1, 4, 5], [2, 3, 6, 7]], [[8, 9, 0, 0], [10, 11, 0, 0]]]
    assert pack_pairs(weight_NK, 2).view(2, 2, 4).tolist() == expected


def test_int8_pairs_lie_in_the_order_of_two_registers():
    """Of 16 outputs, the second and the fourth group of four lie behind the others; -1 and -2 become -128 and -127."""
    weight_NK = torch.tensor([[n, 100] for n in range(16)], dtype=torch.int8)
    weight_NK[:, 1] = torch.tensor([-1, -2] * 8)
    packed = pack_int8_pairs(weight_NK, 16)
    assert packed.shape == (1, 2, 16)
    pairs = packed.view(16, 2)
    order = [0, 1, 2, 3, 8, 9, 10, 11, 4, 5, 6, 7, 12, 13, 14, 15]
    assert pairs[:, 0].tolist() == order
    assert pairs[:, 1].tolist() == [-128, -127] * 8


@torch.no_grad()
def test_a_row_depends_on_neither_batch_nor_threads():
    """Images generated in a batch therefore equal images generated alone."""
    packed = PackedLinear(make_linear(1100, 200, torch.bfloat16))
    x = torch.randn(29, 1100)
    together = packed(x)
    for rows in (1, 2, 5, 6, 7, 13):
        assert torch.equal(packed(x[:rows]), together[:rows])
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert torch.equal(packed(x), together)
    finally:
        torch.set_num_threads(threads)


@torch.no_grad()
def test_any_leading_dimensions_and_strides():
    linear = make_linear(24, 32, torch.float32)
    x = torch.randn(24, 3, 2).permute(2, 1, 0)
    torch.testing.assert_close(PackedLinear(linear)(x), linear(x), rtol=0, atol=1e-5)
    torch.testing.assert_close(PackedLinear(linear)(x[0, 0]), linear(x[0, 0]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("in_pairs", [False, True])
@pytest.mark.parametrize("rows", [1, 2, 8, 9, 20])
def test_int8_weights_are_computed_exactly(in_pairs, rows):
    if in_pairs and not cpu_kernels.multiplies_pairs(torch.int8):
        pytest.skip("needs a processor with AVX512-BF16 and AVX512-VBMI")
    values = torch.randint(-128, 128, (70, 700), dtype=torch.int8, generator=torch.Generator().manual_seed(0))
    values[0, :2] = torch.tensor([-128, 127])
    packed = (pack_int8_pairs if in_pairs else pack_weight)(values, cpu_kernels.block_size())
    x = torch.randint(-8, 8, (rows, 700)).float()  # sums below 2^23: exact in float32, halves too
    found = cpu_kernels.packed_linear(x.bfloat16() if in_pairs else x, packed)[:, :70]
    assert torch.equal(found, x @ values.float().T)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_a_quantised_layer_takes_inputs_in_the_dtype_in_which_it_computes(dtype, multiplies):
    quantization = pytest.importorskip("torchao.quantization")
    linear = make_linear(64, 40, dtype)
    quantization.quantize_(linear, quantization.Int8WeightOnlyConfig(granularity=quantization.PerRow(), version=2))
    layer = PackedLinear(linear)
    pairs = dtype == torch.bfloat16 and multiplies and cpu_kernels.multiplies_pairs(torch.int8)
    assert layer.input_dtype == (torch.bfloat16 if pairs else torch.float32)
    x = torch.randn(3, 64).to(dtype).float()  # float32, so that the output is not rounded
    weight = linear.weight.qdata.double() * linear.weight.scale.double()
    torch.testing.assert_close(layer(x).double(), x.double() @ weight.T, rtol=0, atol=1e-5)


def make_model(*dtypes):
    """Return a model with one linear layer of each dtype, each in a module of its own."""
    return nn.Sequential(*(nn.Sequential(make_linear(8, 8, dtype)) for dtype in dtypes))


def kinds(model):
    """Return the classes of the layers of `make_model`."""
    return [type(part[0]) for part in model]


def test_packed_layers_replace_those_that_fit():
    model = make_model(torch.float32, torch.float16, torch.bfloat16)
    packed = PackedLinears([model])
    assert not packed.complete
    with packed.in_place():
        assert kinds(model) == [PackedLinear, nn.Linear, PackedLinear]
    assert kinds(model) == [nn.Linear] * 3
    with pytest.raises(RuntimeError), packed.in_place():
        model(torch.ones(8))  # the layer between them has another dtype and fails
    assert kinds(model) == [nn.Linear] * 3
    assert PackedLinears([model[0], model[2]]).complete


@torch.no_grad()
def test_changed_weights_can_be_packed_again():
    model = make_model(torch.float32)
    packed = PackedLinears([model])
    model[0][0].weight.mul_(-1)
    x = torch.randn(2, 8)
    packed.pack_again()
    with packed.in_place():
        torch.testing.assert_close(model(x), x @ model[0][0].weight.T, rtol=0, atol=1e-5)


def test_layers_with_hooks_are_not_packed():
    model = make_model(torch.float32, torch.float32)
    packed = PackedLinears([model])
    assert packed.is_current()
    hook = model[0][0].register_forward_hook(lambda *_: None)
    assert not packed.is_current()
    assert not PackedLinears([model]).complete
    hook.remove()
    assert packed.is_current()
    model[1][0] = nn.Identity()
    assert not packed.is_current()


def test_inputs_of_another_width_are_refused():
    with pytest.raises(ValueError, match=r"must be float32 of shape \(rows, 8\).*got torch.float32 of shape \(2, 9\)"):
        PackedLinear(make_linear(8, 8, torch.float32))(torch.ones(2, 9))
    with pytest.raises(ValueError, match=r"or bfloat16 for a weight packed in pairs.*got torch.bfloat16"):
        cpu_kernels.packed_linear(torch.ones(2, 8).bfloat16(), PackedLinear(make_linear(8, 8, torch.float32)).packed)


def test_packed_weights_are_not_part_of_a_checkpoint():
    linear = make_linear(8, 8, torch.float32)
    assert PackedLinear(linear).state_dict().keys() == linear.state_dict().keys()
