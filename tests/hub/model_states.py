"""States of the tiny model that a test can tell apart, and changes of its files."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save

from tiny import TINY_MODEL


_MARKED = "model.generation_embeddings.weight"  # the tensor in which the states differ
_MARKED_IN_FILE = "gen_embed.weight"


def slow(value: object) -> object:
    """A parameter of a test whose case is slow, or is much like another case."""
    return pytest.param(value, marks=pytest.mark.slow)


def marked(weight: float, **generation_config: object) -> dict[str, bytes]:
    """The files of the tiny model with one tensor filled with `weight`, and other values in generation_config.json."""
    files = {path.name: path.read_bytes() for path in Path(TINY_MODEL).iterdir()}
    weights = load(files["model.safetensors"])
    weights[_MARKED_IN_FILE] = torch.full_like(weights[_MARKED_IN_FILE], weight)
    files["model.safetensors"] = save(weights, {"format": "pt"})
    return files | {"generation_config.json": renamed(files["generation_config.json"], **generation_config)}


def mark_of(model: torch.nn.Module) -> float:
    """The value in that tensor of a model, by which a test knows which state was loaded."""
    return float(next(value for name, value in model.state_dict().items() if name.endswith(_MARKED)).flatten()[0])


def renamed(config: bytes, **values) -> bytes:
    """A JSON file with other values."""
    return json.dumps(json.loads(config) | values).encode()
