"""Prompts shared by the tests of generation."""

import pytest
import torch
from image_prompts import LONG, OTHER, SHORT, left_padded


@pytest.fixture
def prompts() -> torch.Tensor:
    """Two prompts `(2, 7)` of equal length."""
    return torch.tensor([LONG, OTHER])


@pytest.fixture
def mixed() -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask `(3, 7)` of three prompts, the first of which is shorter."""
    return left_padded(SHORT, LONG, OTHER)
