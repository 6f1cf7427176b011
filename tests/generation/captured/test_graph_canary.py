"""Private names and behaviour of other libraries that captured steps rely on.

A failure means: read what changed there before changing `generation/decoders/`.
"""

import inspect

import pytest
import torch
from diffusers.hooks import HookRegistry
from torch import nn
from transformers import LlamaConfig, LlamaModel
from transformers.cache_utils import StaticCache


CONFIG = {"num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 8, "intermediate_size": 8, "vocab_size": 4}


def test_torch_captures_with_these_arguments():
    assert {"pool", "stream", "capture_error_mode"} <= inspect.signature(torch.cuda.graph).parameters.keys()
    assert hasattr(torch.cuda.CUDAGraph, "pool")


def test_operators_say_whether_they_wait():
    aten = torch.ops.aten
    assert torch.Tag.data_dependent_output in aten._local_scalar_dense.default.tags
    assert torch.Tag.data_dependent_output in aten.equal.default.tags
    for function in (aten.nonzero.default, aten.masked_select.default, aten.index.Tensor):
        assert torch.Tag.dynamic_output_shape in function.tags
    assert isinstance(aten.nonzero.default, torch._ops.OpOverload)
    assert aten._to_copy.default.name() == "aten::_to_copy"


def test_modules_keep_weights_and_settings_in_these_dictionaries():
    linear = nn.Linear(2, 2)
    assert list(linear._parameters) == ["weight", "bias"]
    assert linear._buffers == linear._modules == {}
    assert {"in_features", "out_features"} == vars(linear).keys() - vars(nn.Module()).keys()


def test_transformers_leaves_hooks_that_collect_hidden_states():
    model = LlamaModel(LlamaConfig(**CONFIG, pad_token_id=0))
    model(torch.zeros(1, 2, dtype=torch.long), output_hidden_states=True)
    hooks = [hook for module in model.modules() for hook in module._forward_hooks.values()]
    assert {hook.__module__ for hook in hooks} == {"transformers.utils.output_capturing"}


def test_transformers_takes_a_mask_of_four_dimensions_as_it_is():
    model = LlamaModel(LlamaConfig(**CONFIG, pad_token_id=0)).eval()
    hidden = torch.randn(1, 3, 8)
    mask = torch.ones(1, 1, 3, 3, dtype=torch.bool).tril()
    mask[..., 0] = False
    mask[..., 0, 0] = True
    first, second = (
        model(inputs_embeds=hidden * torch.tensor([scale, 1, 1])[:, None], attention_mask=mask).last_hidden_state
        for scale in (1.0, 3.0)
    )
    torch.testing.assert_close(first[:, 1:], second[:, 1:])


def test_a_static_cache_has_one_dtype():
    """If it takes keys and values of two, as autocast makes them, steps under autocast can be captured."""
    cache = StaticCache(config=LlamaConfig(**CONFIG), max_cache_len=4)
    with pytest.raises(RuntimeError, match="same dtype"):
        cache.update(torch.ones(1, 2, 1, 4), torch.ones(1, 2, 1, 4, dtype=torch.bfloat16), 0)


def test_libraries_mark_offloaded_and_sharded_models():
    from torch.distributed.fsdp import fully_sharded_data_parallel
    from torch.distributed.tensor import DTensor

    module = nn.Linear(2, 2)
    HookRegistry.check_if_exists_or_initialize(module)
    assert "_diffusers_hook" in vars(module)
    assert fully_sharded_data_parallel.FSDP_WRAPPED_MODULE == "_fsdp_wrapped_module"
    assert hasattr(DTensor, "device_mesh")
