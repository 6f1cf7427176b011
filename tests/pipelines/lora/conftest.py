"""A pipeline to load adapters into, and folders of adapters."""

import copy

import pytest
from lora_adapters import MLP, WHOLE, train
from tiny_pipes import copy_of, load


@pytest.fixture(scope="session")
def base():
    """The tiny model without adapters. Tests share it and must not change it."""
    return load()


@pytest.fixture
def pipe(base):
    """A copy of the tiny model that the test loads adapters into."""
    return copy_of(base)


@pytest.fixture(scope="session")
def adapters(base, tmp_path_factory):
    """The folder of four adapters: `a` and `b` on the attention, `m` on the MLP, `w` on the attention and on whole
    modules (`modules_to_save`).
    """
    root = tmp_path_factory.mktemp("adapters")
    for seed, (name, settings) in enumerate(
        {"a": {}, "b": {}, "m": {"target": MLP}, "w": {"modules_to_save": WHOLE}}.items()
    ):
        train(copy.deepcopy(base.model), root / name, seed, **settings)
    return root
