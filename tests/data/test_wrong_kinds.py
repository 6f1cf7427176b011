"""Arguments of the wrong kind: every function of the package for data names the argument and what it must be."""

import inspect

import pytest
import torch

from janus_hf import JanusProForConditionalGeneration, JanusProProcessor, data
from janus_hf.arguments import COMMON
from janus_hf.training.mixture import load_mixture
from tiny import TINY_MODEL


class Odd:
    """An object of no use anywhere."""


VALUES = (3, 1.5, True, b"b", [3], {"a": 1}, Odd(), torch.ones(2), print)
ROWS = [{"text": "hello"}]
CALLS = {
    "prepare_rows": {"source": ROWS},
    "prepare": {"source": ROWS, "output_dir": "out"},
    "prepare_mixture": {"sources": {"a": ROWS}, "output_dir": "out"},
    "make_plan": {"lengths": {"a": [3, 4]}, "max_length": 16, "epochs": 1},
    "stream_packs": {"folders": {"a": "out"}, "max_length": 16, "ratios": {"a": 1.0}},
    "load_prepared": {"folder": "out"},
    "finish_prepared": {"folder": "out"},
    "JanusProCollator": {},
}
FREE = {"options", "defaults"}  # checked by what they are passed on to
NAMES = [
    (call, name) for call in CALLS for name in inspect.signature(getattr(data, call)).parameters if name not in FREE
]
# Values that are of the right kind after all.
RIGHT = {
    "max_length": (3,),
    "num_packs": (3,),
    **dict.fromkeys(
        (
            "batch_size",
            "num_threads",
            "num_shards",
            "rows_per_shard",
            "rank",
            "world_size",
            "seed",
            "pool_size",
            "pad_to",
        ),
        (3,),
    ),
    "rows_per_shard": (3,),
    "epochs": (3, 1.5),
    "caption_drop": (),
    "ratios": ({"a": 1},),
    "always_picture": (True,),
    "varlen": (True,),
    "return_task_ids": (True,),
}


@pytest.fixture(scope="module")
def parts():
    processor = JanusProProcessor.from_pretrained(TINY_MODEL)
    return {"model": JanusProForConditionalGeneration.from_pretrained(TINY_MODEL), "processor": processor}


@pytest.mark.parametrize(("call", "name"), NAMES)
def test_a_wrong_kind_is_refused_by_name(parts, call, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    function = getattr(data, call)
    takes = inspect.signature(function).parameters
    base = CALLS[call] | {key: part for key, part in parts.items() if key in takes}
    for value in VALUES:
        if not any(value is one or (type(value) is type(one) and value == one) for one in RIGHT.get(name, ())):
            with pytest.raises((TypeError, ValueError), match=f"`{name}`|`source`"):
                function(**base | {name: value})
    assert name in COMMON or name in ("lengths", "folders", "source")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "section", [None, 3, "data", {}, {"sources": []}, {"sources": "x"}, {"sources": [{"name": "a"}]}]
)
def test_a_section_of_a_recipe_is_whole(parts, section):
    with pytest.raises(TypeError, match="`section` must be the section `data` of a recipe"):
        load_mixture(section, None, *parts.values())


def test_the_configuration_of_a_mixture_is_one(parts):
    section = {"sources": [{"name": "a", "path": "b", "ratio": 1}]}
    with pytest.raises(TypeError, match="`args` must be a JanusProSFTConfig"):
        load_mixture(section, {"max_length": 3}, *parts.values())
