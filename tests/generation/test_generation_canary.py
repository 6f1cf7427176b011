"""Private names of torch, transformers, accelerate and torchao that `generation/` relies on.

A failure means: read what changed there before changing `generation/`.
"""

import ctypes
import gc
import sys
import types
import weakref

import accelerate
import pytest
import torch
from accelerate.utils import has_offloaded_params
from torch import nn
from torch._inductor import config as inductor_config
from torch._inductor.codecache import CppCodeCache, PyCodeCache
from transformers import LlamaConfig, LlamaModel
from transformers.cache_utils import StaticCache


# --- torch inductor: `decoders/compiled.py`


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("freezing", True),
        ("max_autotune", True),
        ("max_autotune_gemm_backends", "CPP"),
        ("autotune_num_choices_displayed", 0),
    ],
)
def test_inductor_has_these_options(option, value):
    before = getattr(inductor_config, option)
    with inductor_config.patch({option: value}):
        assert getattr(inductor_config, option) == value
    assert getattr(inductor_config, option) == before


def test_inductor_lists_the_modes_of_torch_compile():
    """`generation_arguments.py` checks `mode` against it; `torch.compile` names the function in its documentation."""
    assert {"default", "reduce-overhead", "max-autotune"} <= set(torch._inductor.list_mode_options())


@pytest.mark.slow
@pytest.mark.parametrize("displayed", [10, 0])
def test_inductor_writes_its_tables_to_stderr_unless_0_are_displayed(displayed, capsys):
    """If 10 writes nothing, `autotune_num_choices_displayed` is no longer needed."""
    linear = nn.Linear(64, 64, bias=False).eval()
    options = {
        "freezing": True,
        "max_autotune": True,
        "max_autotune_gemm_backends": "ATEN,CPP",
        "autotune_num_choices_displayed": displayed,
        "force_disable_caches": True,
    }
    with torch.no_grad(), inductor_config.patch(options):
        torch.compile(lambda x: linear(x))(torch.randn(4, 64))
    assert ("AUTOTUNE" in capsys.readouterr().err) is (displayed > 0)


@pytest.mark.slow
def test_inductor_compiles_and_loads_a_library():
    """As `x86/cpu_kernels.py` does."""
    library = CppCodeCache.load('extern "C" long twice(long x) { return 2 * x; }')
    assert isinstance(library, ctypes.CDLL)
    assert library.twice(21) == 42


@pytest.mark.slow
@torch.no_grad()
def test_inductor_keeps_the_modules_of_constants():
    """If no module has constants, `keeping_constants_out_of_tables` is no longer needed."""
    linear = nn.Linear(64, 64, bias=False).eval()
    known = len(PyCodeCache.modules)
    with inductor_config.patch(freezing=True):
        torch.compile(lambda x: linear(x))(torch.randn(4, 64))
    added = [m for m in PyCodeCache.modules[known:] if any(isinstance(x, torch.Tensor) for x in vars(m).values())]
    assert added
    assert all(sys.modules[module.__name__] is module for module in added)
    for module in added:
        PyCodeCache.modules.remove(module)
        del sys.modules[module.__name__]


# --- torch dynamo: `decoders/step_graph.py`


@pytest.mark.parametrize("reset", [False, True])
def test_dynamo_keeps_a_graph_until_its_code_is_reset(reset):
    """If a graph is freed without, `compile_step` no longer needs `reset_code`."""

    def scale(x):
        return x + 1

    code = scale.__code__.replace()
    function = types.FunctionType(code, dict(scale.__globals__))
    seen = []

    def backend(module, inputs):
        seen.append(weakref.ref(module))
        return module.forward

    torch.compile(function, backend=backend)(torch.ones(2))
    if reset:
        torch._dynamo.reset_code(code)
    del function, code
    gc.collect()
    assert (seen[0]() is None) is reset


# --- torch


def test_tensors_count_their_versions():
    weight = nn.Parameter(torch.ones(2))
    before = weight._version
    with torch.no_grad():
        weight.mul_(2)
    assert weight._version > before
    before = weight._version
    weight.data += 1
    assert weight._version == before, "changes through `.data` count now: sums of rows may no longer be needed"


def test_modules_keep_children_and_hooks_in_these_dictionaries():
    parent = nn.Sequential(nn.Linear(2, 2))
    child = parent[0]
    assert parent._modules["0"] is child
    parent._modules["0"] = nn.Identity()
    assert isinstance(parent[0], nn.Identity)
    child.register_forward_hook(lambda *_: None)
    child.register_forward_pre_hook(lambda *_: None)
    assert len(child._forward_hooks) == len(child._forward_pre_hooks) == 1


def test_modules_know_whether_they_are_compiled():
    """`fused_layers/` leaves compiled modules alone."""
    module = nn.Linear(2, 2)
    assert module._compiled_call_impl is None
    module.compile(backend="eager")
    assert module._compiled_call_impl is not None


def test_counters_are_advanced_together():
    """`fused_layers/` uses `_foreach_add_`, which has no public name."""
    counters = [torch.tensor(3), torch.tensor(5)]
    torch._foreach_add_(counters, 2)
    assert [int(counter) for counter in counters] == [5, 7]


# --- transformers


def test_hooks_that_collect_hidden_states_are_recognised_and_stay():
    """If they are removed after the call, `is_called_plainly` no longer needs to know them."""
    config = LlamaConfig(
        num_hidden_layers=1, num_attention_heads=1, hidden_size=8, intermediate_size=8, vocab_size=4, pad_token_id=0
    )
    model = LlamaModel(config)
    model(torch.zeros(1, 2, dtype=torch.long), output_hidden_states=True)
    hooks = list(model.layers[0]._forward_hooks.values())
    assert [hook.__module__ for hook in hooks] == ["transformers.utils.output_capturing"] * len(hooks)
    assert hooks


def test_a_language_model_reads_its_attention_at_every_call():
    config = LlamaConfig(
        num_hidden_layers=1, num_attention_heads=1, hidden_size=8, intermediate_size=8, vocab_size=4, pad_token_id=0
    )
    model = LlamaModel(config)
    assert model.config._attn_implementation == "sdpa"
    model.config._attn_implementation = "no such attention"
    with pytest.raises(KeyError, match="no such attention"):
        model(torch.zeros(1, 2, dtype=torch.long))


def test_a_static_cache_keeps_its_length_in_a_tensor():
    """`CompiledDecoder.rewind` lowers it in place, because a static cache has no `crop`."""
    config = LlamaConfig(num_hidden_layers=1, num_attention_heads=2, hidden_size=8, vocab_size=4)
    cache = StaticCache(config=config, max_cache_len=6)
    cache.update(torch.ones(1, 2, 3, 4), torch.ones(1, 2, 3, 4), 0)
    cache.layers[0].cumulative_length.sub_(2)
    assert int(cache.get_seq_length()) == 1
    with pytest.raises((AttributeError, NotImplementedError, ValueError)):
        cache.crop(-1)


# --- accelerate


def test_accelerate_marks_an_offloaded_model():
    """If `has_offloaded_params` is True too, it can replace `_hf_hook`."""
    model = nn.Linear(2, 2)
    accelerate.cpu_offload_with_hook(model, execution_device="cpu")
    assert hasattr(model, "_hf_hook")
    assert not has_offloaded_params(model)


# --- torchao


@pytest.mark.slow
@pytest.mark.parametrize("bits", ["int8", "int4"])
def test_torchao_names_its_weights_and_their_parts(bits):
    quantization = pytest.importorskip("torchao.quantization")
    from janus_hf.modeling.quantisation.weight_only import weight_only_config

    linear = nn.Sequential(nn.Linear(256, 64, bias=False))
    quantization.quantize_(linear, weight_only_config(bits, torch.device("cpu")).get_apply_tensor_subclass())
    weight = linear[0].weight
    assert weight.__tensor_flatten__()[0]
    if bits == "int4":
        assert type(weight).__name__ == "Int4OpaqueTensor"
    else:
        assert type(weight).__name__ == "Int8Tensor"
        assert list(weight.block_size) == [1, 256]
        assert (weight.zero_point is None) or not weight.zero_point.any()
        assert (weight.act_quant_kwargs, weight.act_pre_scale) == (None, None)
        assert weight.qdata.shape == (64, 256)
        assert weight.scale.numel() == 64
