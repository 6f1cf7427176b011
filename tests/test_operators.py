"""Operators that generation, answering, encoding and training run, looked up in the table that torch ships.

An operator without a kernel for Apple's GPUs (MPS) raises an error there. The test runs on the CPU.
"""

from pathlib import Path

import pytest
import torch
import torchgen
import yaml
from torch.utils._python_dispatch import TorchDispatchMode

from janus_hf import JanusProPipeline
from tiny import TINY_MODEL


# Operators that torch 2.6 to 2.9, which this package allows, lack on MPS and later versions have.
MISSING_BEFORE = {"aten::unique_dim"}
# What `scaled_dot_product_attention` chooses on a CPU; on other devices it chooses kernels of theirs.
CHOSEN_BY_DEVICE = "aten::_scaled_dot_product_flash_attention_for_cpu"


class Recorder(TorchDispatchMode):
    """Records the full names of all operators, and whether a float64 tensor was computed."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.in_float64: set[str] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        schema = function._schema
        self.names.add(f"{schema.name}.{schema.overload_name}" if schema.overload_name else schema.name)
        if isinstance(result, torch.Tensor) and result.dtype == torch.float64:
            self.in_float64.add(schema.name)
        return result


@pytest.fixture(scope="module")
def kernels() -> dict[str, set[str]]:
    """Name of each operator -> the devices, or kinds of kernels for all devices, that it has."""
    table = Path(torchgen.__file__).parent / "packaged" / "ATen" / "native" / "native_functions.yaml"
    entries = {
        "aten::" + entry["func"].split("(")[0]: entry for entry in yaml.safe_load(table.read_text(encoding="utf-8"))
    }

    def devices(entry) -> set[str]:
        keys = {key.strip() for names in entry.get("dispatch", {}) for key in names.split(",")}
        if delegate := entry.get("structured_delegate"):
            keys |= devices(entries["aten::" + delegate])
        return keys or {"CompositeImplicitAutograd"}

    return {name: devices(entry) for name, entry in entries.items()}


@pytest.fixture(scope="module")
def recorded() -> Recorder:
    pipe = JanusProPipeline.from_pretrained(TINY_MODEL, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    with Recorder() as recorder:
        image = pipe(["a red circle", "two blue squares and a star"], top_k=8, top_p=0.9, temperature=0.9).images[0]
        pipe.ask(image, ["what is it?", "what colour is it?"], max_new_tokens=2)
        ids = torch.cat([torch.arange(5), pipe.encode(image)[0] + pipe.model.config.text_config.vocab_size])[None]
        pipe.model.train()
        pipe.model(input_ids=ids, labels=ids).loss.backward()
    assert len(recorder.names) > 50
    return recorder


def test_every_operator_has_a_kernel_for_apples_gpus(recorded, kernels):
    everywhere = {
        "MPS",
        "CompositeImplicitAutograd",
        "CompositeExplicitAutograd",
        "CompositeExplicitAutogradNonFunctional",
    }
    missing = {
        name
        for name in recorded.names
        if not name.startswith(CHOSEN_BY_DEVICE) and not everywhere & kernels.get(name, set())
    }
    assert not missing


def test_no_operator_is_missing_in_older_releases(recorded):
    assert not {name.split(".")[0] for name in recorded.names} & MISSING_BEFORE


def test_the_table_tells_operators_apart(kernels):
    assert "MPS" in kernels["aten::add.Tensor"]
    assert not kernels["aten::_cudnn_rnn"] & {"MPS", "CompositeImplicitAutograd"}


def test_float64_stays_off_the_device(recorded):
    """Apple's GPUs have no float64."""
    assert not recorded.in_float64
