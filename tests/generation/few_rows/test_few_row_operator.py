"""The operator `few_row_linear`, its Triton kernel as far as that runs without a GPU, and what happens if it fails."""

import importlib.util
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from janus_hf.generation.kernels.few_rows import few_row_linear, few_row_operator
from janus_hf.generation.kernels.few_rows.few_row_operator import few_rows_pay, kernel_works


CPU = torch.device("cpu")
CHECKS = Path(__file__).with_name("triton_checks.py")


@pytest.mark.parametrize("kind", [torch.int8, torch.float8_e4m3fn])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("with_bias", [False, True])
def test_it_rounds_once(kind: torch.dtype, dtype: torch.dtype, with_bias: bool):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 40, generator=generator).to(dtype)
    weight = (20 * torch.randn(24, 40, generator=generator)).round().to(kind)
    scale = torch.rand(24, generator=generator)
    bias = torch.randn(24, generator=generator).to(dtype) if with_bias else None
    found = few_row_linear(x, weight, scale, bias)
    expected = F.linear(x.double(), weight.double()) * scale + (0 if bias is None else bias.double())
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), expected, rtol=torch.finfo(dtype).eps, atol=1e-4)


def test_it_can_be_traced():
    x, weight, scale = torch.randn(2, 8), torch.ones(4, 8, dtype=torch.int8), torch.ones(4)
    traced = torch.compile(few_row_linear, fullgraph=True, backend="eager")
    assert torch.equal(traced(x, weight, scale), few_row_linear(x, weight, scale))


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch):
    """The log of this package, with nothing known about any device."""
    monkeypatch.setattr(logging.getLogger("janus_hf"), "propagate", True)
    kernel_works.cache_clear()
    yield caplog
    kernel_works.cache_clear()


def test_the_example_is_right_on_a_cpu_where_torchaos_layers_stay(log):
    assert kernel_works(CPU)
    assert not few_rows_pay(CPU)
    assert not log.messages


def raising(*args: object) -> torch.Tensor:
    raise RuntimeError("no such instruction\nmore lines")


@pytest.mark.parametrize(
    ("operator", "reason"),
    [
        (raising, "no such instruction"),
        (lambda x, weight, scale: 1.05 * few_row_linear(x, weight, scale), "int8 weights are off by 5"),
        (lambda x, weight, scale: few_row_linear(x, weight, scale) * torch.nan, "are off by nan"),
    ],
)
def test_a_kernel_that_fails_is_not_used_and_says_why_once(operator, reason, log, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(few_row_operator, "few_row_linear", operator)
    assert not kernel_works(CPU)
    assert not kernel_works(CPU)
    assert len(log.messages) == 1
    assert reason in log.text
    assert "so torchao's are used" in log.text
    assert "more lines" not in log.text


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton, as on any machine with a GPU")
@pytest.mark.parametrize(
    ("what", "variables", "expected"), [("interpret", {"TRITON_INTERPRET": "1"}, "right"), ("compile", {}, "compiled")]
)
def test_the_triton_kernel(what: str, variables: dict[str, str], expected: str):
    done = subprocess.run([sys.executable, CHECKS, what], env=os.environ | variables, capture_output=True, text=True)
    assert done.stdout.strip() == expected, done.stderr


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_kernel_works_on_this_gpu(log):
    assert few_rows_pay(torch.device("cuda", torch.cuda.current_device())), log.text
