"""Where the kernels are for, and that they can be built there."""

import subprocess
import sys

import pytest
import torch

from janus_hf.generation import cpu_kernels


CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("capability", "fits"), [("AVX2", True), ("AVX512", True), ("DEFAULT", False), ("SVE", False)]
)
def test_they_are_for_processors_with_wide_vectors(capability, fits, monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert cpu_kernels.kernels_fit(CPU) is fits
    assert not cpu_kernels.kernels_fit(torch.device("cuda"))


@pytest.mark.parametrize(("avx512", "amx"), [(False, False), (True, False), (False, True)])
def test_processors_that_multiply_bfloat16(avx512, amx, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert cpu_kernels.multiplies_bfloat16() is (avx512 or amx)


@pytest.mark.slow
def test_it_compiles_for_avx512(tmp_path):
    """Where it cannot be run: by the compiler's command for this machine, with the other instructions."""
    code = (
        "from torch._inductor import cpp_builder, cpu_vec_isa\n"
        "isa = cpu_vec_isa.VecAVX512()\n"
        "options = cpp_builder.CppTorchOptions(vec_isa=isa, warning_all=False)\n"
        f"source = {str(cpu_kernels.__file__).replace('.py', '.cpp')!r}\n"
        f"builder = cpp_builder.CppBuilder('kernel', source, options, output_dir={str(tmp_path)!r})\n"
        "print(builder.get_command_line().replace('-march=native', '-march=skylake-avx512'))\n"
    )
    command = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert "CPU_CAPABILITY_AVX512" in command
    subprocess.run(command.strip().splitlines()[-1], shell=True, check=True)
    assert list(tmp_path.glob("kernel*"))
