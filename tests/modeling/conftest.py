"""Fixtures of the tests of the models."""

import pytest
import torch


@pytest.fixture(scope="session")
def golden_inputs(golden: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Arguments of `forward` and `generate` for the golden conversation with one image."""
    return {
        "input_ids": golden["und.single.input_ids"],
        "pixel_values": golden["und.single.pixel_values"].flatten(0, 1),
    }
