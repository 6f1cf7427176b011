"""The kernels are used on the processors that they are written for, and compile there."""

import logging
import subprocess
import sys
import tomllib
from pathlib import Path, PurePath

import pytest
import torch

from janus_hf.generation.kernels.x86 import cpu_kernels


CPU = torch.device("cpu")
CHECKS = ("test_schema", "test_faketensor")


@pytest.mark.parametrize(
    ("capability", "fits"), [("AVX2", True), ("AVX512", True), ("DEFAULT", False), ("SVE", False)]
)
def test_kernels_fit_processors_with_wide_vectors(capability, fits, monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert cpu_kernels.kernels_fit(CPU) is fits
    assert not cpu_kernels.kernels_fit(torch.device("cuda"))


@pytest.mark.skipif(not cpu_kernels.kernels_fit(CPU), reason="the kernels are for processors with AVX2 or AVX-512")
def test_the_kernels_know_whether_the_processor_multiplies_bfloat16():
    """The C++ compiler asks the processor that it runs on; Linux lists the same instructions in /proc/cpuinfo."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists() or "flags" not in cpuinfo.read_text():
        pytest.skip("needs Linux's list of the processor's instructions")
    flags = set(cpuinfo.read_text().split())
    assert cpu_kernels.multiplies_pairs(torch.bfloat16) is ("avx512_bf16" in flags)
    assert cpu_kernels.multiplies_pairs(torch.int8) is ({"avx512_bf16", "avx512vbmi"} <= flags)
    assert not cpu_kernels.multiplies_pairs(torch.float32)


def test_without_kernels_the_compilers_are_used(monkeypatch, caplog):
    def fail():
        raise OSError("no compiler\nsecond line")

    monkeypatch.setattr(cpu_kernels, "load_kernels", fail)
    cpu_kernels.kernels_can_be_built.cache_clear()
    monkeypatch.setattr(logging.getLogger("janus_hf"), "propagate", True)
    try:
        assert not cpu_kernels.kernels_can_be_built()
    finally:
        cpu_kernels.kernels_can_be_built.cache_clear()
    assert "do not compile here, so the compiler's are used: no compiler" in caplog.text
    assert "second line" not in caplog.text


@pytest.mark.skipif(not cpu_kernels.kernels_fit(CPU), reason="the kernels are for processors with AVX2 or AVX-512")
def test_operators_have_the_shapes_that_the_compiler_is_given():
    """`opcheck` compares each operator with its schema and its shape function."""
    x, packed = torch.randn(3, 6), torch.randn(2, 6, cpu_kernels.block_size())
    pairs = [dtype for dtype in (torch.bfloat16, torch.int8) if cpu_kernels.multiplies_pairs(dtype)]
    inputs = [(x, packed), *((x.bfloat16(), packed.to(dtype)) for dtype in pairs)]
    for arguments in inputs:
        torch.library.opcheck(torch.ops.janus_hf.packed_linear.default, arguments, test_utils=CHECKS)
    query, key, value = torch.randn(2, 4, 3, 64), torch.randn(2, 2, 7, 64), torch.randn(2, 2, 7, 64)
    arguments = (query, key, value, torch.ones(2, 3, 7, dtype=torch.bool), 0.5)
    torch.library.opcheck(torch.ops.janus_hf.masked_attention.default, arguments, test_utils=CHECKS)


def test_the_source_is_part_of_the_package():
    """A built package must contain the source; an editable installation always does."""
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = project["tool"]["setuptools"]["package-data"]["janus_hf"]
    source = Path(cpu_kernels.__file__).with_suffix(".cpp")
    assert source.exists()
    assert any(PurePath(*source.parts[-4:]).match(pattern) for pattern in patterns)


@pytest.mark.slow
@pytest.mark.skipif(not cpu_kernels.kernels_fit(CPU), reason="the kernels are for processors with AVX2 or AVX-512")
@pytest.mark.parametrize(
    ("processor", "kernels"),
    [
        ("skylake-avx512", []),
        ("cooperlake", ["linear_bfloat16_pairs"]),
        ("sapphirerapids", ["linear_bfloat16_pairs", "linear_int8_pairs"]),
    ],
)
def test_it_compiles_for_avx512(tmp_path, processor, kernels):
    """Compile with this machine's command and another instruction set, because not every machine can run AVX-512."""
    code = (
        "from torch._inductor import cpp_builder, cpu_vec_isa\n"
        "isa = cpu_vec_isa.VecAVX512()\n"
        "options = cpp_builder.CppTorchOptions(vec_isa=isa, warning_all=False)\n"
        f"source = {str(cpu_kernels.__file__).replace('.py', '.cpp')!r}\n"
        f"builder = cpp_builder.CppBuilder('kernel', source, options, output_dir={str(tmp_path)!r})\n"
        f"print(builder.get_command_line().replace('-march=native', '-march={processor}'))\n"
    )
    command = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert "CPU_CAPABILITY_AVX512" in command
    command = command.strip().splitlines()[-1].replace("-mavx512bf16", "")
    subprocess.run(command, shell=True, check=True, capture_output=True)
    (library,) = tmp_path.glob("kernel*")
    names = ["linear_bfloat16_pairs", "linear_int8_pairs"]
    assert [name for name in names if name.encode() in library.read_bytes()] == kernels
