"""Models whose steps are captured in emulated graphs (`graph_emulator.py`)."""

import pytest

from graph_emulator import EmulatedGraph
from janus_hf.generation.decoders import CapturedDecoder


@pytest.fixture
def make_captured(make_model):
    """Function `make_captured(graph_class=EmulatedGraph, **arguments)` for a model with a captured decoder.

    The other arguments are those of `CapturedDecoder`. The weights are those of `tiny_model`.
    """
    EmulatedGraph.reset()

    def make(graph_class=EmulatedGraph, config=None, **arguments):
        model = make_model(config)
        model._decoder = CapturedDecoder(graph_class=graph_class, **arguments)
        return model

    return make
