"""Steps on a CPU whose quantised layers run as they do on a GPU, with the operator's implementation for the CPU."""

import pytest

from janus_hf.generation.kernels.few_rows import few_row_layers


@pytest.fixture
def few_rows_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let quantised layers be computed by `few_row_linear` on a CPU too."""
    monkeypatch.setattr(few_row_layers, "few_rows_pay", lambda device: True)
