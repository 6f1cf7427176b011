"""The packed layers compute what PyTorch's do."""

import copy
import subprocess
import sys

import pytest
import torch
from torch import nn

from janus_hf.generation import packed_linear
from janus_hf.generation.packed_linear import PackedLinear, copy_sharing_weights, pack_linears, packing_pays


pytestmark = pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"), reason="the kernel is for AVX2 and AVX-512"
)
EPSILON = torch.finfo(torch.float32).eps


def make_linear(inputs, outputs, dtype, bias=False):
    torch.manual_seed(0)
    return nn.Linear(inputs, outputs, bias=bias, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 6, 7, 8, 11, 12, 13, 40])
@pytest.mark.parametrize(
    ("inputs", "outputs"),
    [(16, 32), (1100, 64), (512, 48), (7, 33), (1, 1)],
    ids=["small", "several parts of the inputs", "one part", "outputs that fill no block", "a number"],
)
@torch.no_grad()
def test_it_is_a_linear_layer(dtype, rows, inputs, outputs):
    linear = make_linear(inputs, outputs, dtype, bias=True)
    x = torch.randn(rows, inputs, generator=torch.Generator().manual_seed(rows))  # float32: nothing is rounded
    expected = nn.functional.linear(x.double(), linear.weight.double(), linear.bias.double())
    # Each of so many additions rounds a sum that is smaller than the sum of absolute products.
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


@torch.no_grad()
def test_a_row_is_the_same_in_any_company():
    """And so with any number of threads: pictures drawn together are those drawn alone."""
    packed = PackedLinear(make_linear(1100, 64, torch.bfloat16))
    x = torch.randn(29, 1100)
    together = packed(x)
    for rows in (1, 2, 5, 6, 7, 13):
        assert torch.equal(packed(x[:rows]), together[:rows])
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert torch.equal(packed(x), together)
    finally:
        torch.set_num_threads(threads)


@torch.no_grad()
def test_any_leading_dimensions_and_strides():
    linear = make_linear(24, 32, torch.float32)
    x = torch.randn(24, 3, 2).permute(2, 1, 0)
    torch.testing.assert_close(PackedLinear(linear)(x), linear(x), rtol=0, atol=1e-5)
    torch.testing.assert_close(PackedLinear(linear)(x[0, 0]), linear(x[0, 0]), rtol=0, atol=1e-5)


def test_bytes_are_weights_too():
    values = torch.randint(-128, 128, (48, 700), dtype=torch.int8, generator=torch.Generator().manual_seed(0))
    packed = packed_linear._pack(values, packed_linear._kernels().block_size())
    x = torch.randint(-8, 8, (9, 700)).float()  # sums below 2^24: exact in float32
    found = torch.ops.janus_hf.packed_linear(x, packed)[:, :48]
    assert torch.equal(found, x @ values.float().T)


def test_what_fits_is_packed_and_the_rest_stays():
    model = nn.Sequential(make_linear(8, 8, torch.bfloat16), nn.Sequential(make_linear(8, 8, torch.float32)))
    packed = copy_sharing_weights(model)
    assert pack_linears(packed)
    assert [type(module) for module in (packed[0], packed[1][0])] == [PackedLinear, PackedLinear]
    assert packed[0].weight is model[0].weight
    assert [type(module) for module in (model[0], model[1][0])] == [nn.Linear, nn.Linear]
    mixed = nn.Sequential(make_linear(8, 8, torch.float16), make_linear(8, 8, torch.float32))
    assert not pack_linears(mixed)
    assert [type(module) for module in mixed] == [nn.Linear, PackedLinear]


def test_packed_weights_are_not_part_of_a_checkpoint():
    linear = make_linear(8, 8, torch.float32)
    assert PackedLinear(linear).state_dict().keys() == linear.state_dict().keys()
    assert torch.equal(copy.deepcopy(PackedLinear(linear)).packed, PackedLinear(linear).packed)


def test_it_is_for_processors_that_cannot_multiply_bfloat16(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    assert packing_pays(torch.device("cpu"))
    assert not packing_pays(torch.device("cuda"))
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    assert not packing_pays(torch.device("cpu"))


@pytest.mark.slow
def test_it_compiles_for_avx512(tmp_path):
    """Where it cannot be run: by the compiler's command for this machine, with the other instructions."""
    code = (
        "from torch._inductor import cpp_builder, cpu_vec_isa\n"
        "isa = cpu_vec_isa.VecAVX512()\n"
        "options = cpp_builder.CppTorchOptions(vec_isa=isa, warning_all=False)\n"
        f"source = {str(packed_linear.__file__).replace('.py', '.cpp')!r}\n"
        f"builder = cpp_builder.CppBuilder('kernel', source, options, output_dir={str(tmp_path)!r})\n"
        "print(builder.get_command_line().replace('-march=native', '-march=skylake-avx512'))\n"
    )
    command = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert "CPU_CAPABILITY_AVX512" in command
    subprocess.run(command.strip().splitlines()[-1], shell=True, check=True)
    assert list(tmp_path.glob("kernel*"))
