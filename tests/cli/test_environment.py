"""`janus-hf info --environment`: what a bug report needs, in lines that can be pasted into it."""

import platform
import shutil
from importlib import metadata

import pytest
import torch

from janus_hf import __version__
from janus_hf_cli.environment import OTHER_PACKAGES, describe_environment


def facts():
    """Return the described environment as a dictionary from the name of a fact to its value."""
    lines = describe_environment().splitlines()
    assert all(line.startswith("- ") and ": " in line for line in lines)  # a Markdown list
    return dict(line.removeprefix("- ").split(": ", 1) for line in lines)


def test_versions_of_this_package_and_of_its_dependencies():
    found = facts()
    assert found["janus_hf"] == __version__
    assert found["Python"] == platform.python_version()
    for name in ("torch", "transformers", "diffusers", "accelerate", "trl", "peft", "datasets", "torchao", "scipy"):
        try:
            expected = metadata.version(name)
        except metadata.PackageNotFoundError:
            expected = "not installed"
        assert found[name] == expected
    assert set(OTHER_PACKAGES) <= set(found)
    assert "pytest" not in found  # a dependency of this package's developers only


def test_packages_that_are_not_installed_are_named(monkeypatch):
    version = metadata.version

    def without_peft(name):
        if name == "peft":
            raise metadata.PackageNotFoundError
        return version(name)

    monkeypatch.setattr(metadata, "version", without_peft)
    assert facts()["peft"] == "not installed"


def test_machine_without_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    found = facts()
    assert found["GPU"] == "none"
    assert found["CPU"].startswith(f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}, ")
    assert found["CPU"].endswith((" GiB", "unknown memory"))
    assert found["attention kernels"].startswith("sdpa (math), flash_attention_2 (")
    assert "flex_attention (" in found["attention kernels"]


def test_machine_with_a_gpu(monkeypatch):
    class Properties:
        name, total_memory, major, minor = "NVIDIA Test", 80 * 2**30, 9, 0

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: Properties)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (6, 1))
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    found = facts()
    assert found["GPU"] == "; ".join(["NVIDIA Test, 80.0 GiB, capability 9.0"] * 2)
    assert found["CUDA"].startswith("12.8, cuDNN ")
    assert "flash" in found["attention kernels"].split(")")[0]
    assert found["torch.compile"] in (
        "no: triton is not installed",
        "no: triton needs a GPU of capability 7.0 or higher",
    )


@pytest.mark.parametrize("has_compiler", [True, False])
def test_compilers_are_looked_up_and_not_run(monkeypatch, has_compiler):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("os.path.isfile", lambda path: True)
    monkeypatch.setenv("CXX", "/opt/bin/my-c++")
    monkeypatch.setattr(shutil, "which", lambda name: name if has_compiler else None)
    monkeypatch.setattr("subprocess.Popen", None)
    found = facts()
    reason = "the C++ compiler my-c++ is not installed"
    assert found["x86 kernels"].endswith("; can be built" if has_compiler else f"; cannot be built: {reason}")
    assert found["torch.compile"] == ("yes" if has_compiler else f"no: {reason}")


def test_a_python_that_torch_compile_does_not_support(monkeypatch):
    def refuse(function):
        raise RuntimeError("torch.compile is not supported on Python 9.9+\ndetails")

    monkeypatch.setattr(torch, "compile", refuse)
    assert facts()["torch.compile"] == "no: torch.compile is not supported on Python 9.9+"


def test_the_command_prints_the_environment_the_checkpoint_or_both(run, golden_checkpoint):
    status, environment, _ = run("info", "--environment")
    assert (status, environment) == (0, f"{describe_environment()}\n")
    checkpoint = run("info", golden_checkpoint)[1]
    assert run("info", golden_checkpoint, "--environment")[1] == environment + checkpoint
