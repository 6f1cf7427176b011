"""Trainer tests need the `train` extra, and must not reach for the network."""

import sys
from pathlib import Path

import pytest


sys.path.insert(0, str(Path(__file__).parent))  # for `toy`
pytest.importorskip("trl")


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "1")  # TRL reports its use otherwise
