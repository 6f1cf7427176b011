"""The function `why_not_fused`: the reason why a language model must run with its own layers."""

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaDecoderLayer,
    LlamaMLP,
    LlamaModel,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
)

from .joined_linear import is_called_plainly


def why_not_fused(language_model: PreTrainedModel) -> str | None:
    """Return why the layers in `fused_model.py` cannot replace those of this language model, or None if they can.

    They compute a plain Llama with scaled dot-product attention. Its linear layers may be of any kind, for example
    quantised or with adapters.
    """
    if type(language_model) is not LlamaModel:
        return f"the language model is of the class {type(language_model).__name__}, not LlamaModel"
    # `_attn_implementation`: transformers has a public setter for it, but no public getter.
    if language_model.config._attn_implementation != "sdpa":
        return f"the attention implementation is {language_model.config._attn_implementation!r}, not 'sdpa'"
    if language_model.training:
        return "the model is in training mode"
    weights = [language_model.norm.weight]
    modules: list[tuple[nn.Module, type[nn.Module]]] = [
        (language_model, LlamaModel),
        (language_model.norm, LlamaRMSNorm),
        (language_model.rotary_emb, LlamaRotaryEmbedding),
    ]
    for layer in language_model.layers:
        if type(layer) is not LlamaDecoderLayer:
            return f"a layer is of the class {type(layer).__name__}, not LlamaDecoderLayer"
        norms = [layer.input_layernorm, layer.post_attention_layernorm]
        modules += [(layer, LlamaDecoderLayer), (layer.self_attn, LlamaAttention), (layer.mlp, LlamaMLP)]
        modules += [(norm, LlamaRMSNorm) for norm in norms]
        weights += [norm.weight for norm in norms if isinstance(norm, LlamaRMSNorm)]
    for module, expected in modules:
        if type(module) is not expected:
            return f"a module is of the class {type(module).__name__}, not {expected.__name__}"
        if not is_called_plainly(module):
            return f"a module of the class {expected.__name__} has hooks, is compiled, or has another `forward`"
    if any(type(weight.data) is not torch.Tensor or not weight.numel() for weight in weights):
        return "the weights are sharded or quantised"
    if len({weight.device for weight in weights}) > 1:
        return "the layers are on several devices"
    # With weights of several dtypes, or under autocast, operators differ in how they choose the dtype of their output.
    if len({weight.dtype for weight in weights}) > 1:
        return "the norms have different dtypes"
    if torch.is_autocast_enabled(weights[0].device.type):
        return "autocast is enabled"
    return None


__all__ = ["why_not_fused"]
