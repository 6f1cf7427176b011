"""`torch_dtype` and `dtype` of `JanusProPipeline.from_pretrained`."""

import pytest
import torch

from janus_hf import JanusProForConditionalGeneration, JanusProPipeline
from tiny import TINY_MODEL


@pytest.mark.parametrize("name", ["torch_dtype", "dtype"])
@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (torch.bfloat16, torch.bfloat16),
        ({"model": torch.bfloat16, "default": torch.float16}, torch.bfloat16),
        ({"default": torch.float16}, torch.float16),
        ({"processor": torch.float16}, torch.float32),
    ],
)
def test_a_dtype_for_each_component(name, value, expected):
    assert JanusProPipeline.from_pretrained(TINY_MODEL, **{name: value}).model.dtype == expected


def test_a_component_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="must name the components 'model' or 'default', got \\['vae'\\] too"):
        JanusProPipeline.from_pretrained(TINY_MODEL, torch_dtype={"vae": torch.float16})


@pytest.mark.parametrize("name", ["torch_dtype", "dtype"])
def test_the_model_alone_has_one_dtype(name):
    """transformers takes only the key "" and would load float32 for every other."""
    load = JanusProForConditionalGeneration.from_pretrained
    for value in ({"model": torch.float16}, {"default": torch.float16}, {"text_config": torch.float16, "": "float16"}):
        with pytest.raises(ValueError, match=f"`{name}` must be one dtype for the whole model"):
            load(TINY_MODEL, **{name: value})
    assert load(TINY_MODEL, **{name: {"": torch.float16}}).dtype == torch.float16
