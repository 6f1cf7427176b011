"""The function `fuse`, which returns a model whose steps launch about a third of the usual kernels, for GPUs.

A GPU finishes a step of few rows sooner than a CPU can launch its kernels one by one, and every kernel has a fixed
cost even in a CUDA graph. The layers in this file compute what those of transformers compute, with the same weights:

    hidden += o_proj(attention(rotate(q_proj(x)), rotate(k_proj(x)), v_proj(x)))    where x = rms_norm(hidden)
    hidden += down_proj(act(gate_proj(x)) * up_proj(x))                             where x = rms_norm(hidden)

In shapes, `R` is the number of rows (sequences), `n` the number of tokens fed at once, `M` is `R n`, `C` the width of
the language model, `H` the number of query heads, `G` of key and value heads, `D` the width of a head, and `L` the
number of positions that attention reads.
"""

from collections.abc import Iterator

import torch
from torch import nn
from torch.nn import functional as F
from transformers.cache_utils import Cache, StaticLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaDecoderLayer, LlamaModel, LlamaRMSNorm
from transformers.utils import logging

from ....protocols import BareModel
from ...context import context_length
from ...kernels.few_rows import few_row_layer
from ..interface import StepModel
from .joined_linear import JoinedLinear, is_plain
from .why_not_fused import why_not_fused


logger = logging.get_logger(__name__)

# Matrices are joined if their copies take at most this share of the device's total memory. The free memory must not
# decide, because in bfloat16 joined matrices round differently, and the same seed must always give the same image.
_JOINED_SHARE = 1 / 8

# Kinds of RoPE whose rotation of a position depends on nothing but the position.
_FIXED_ROPE = ("default", "linear", "llama3", "yarn")


def fuse(model: BareModel, previous: StepModel | None = None) -> StepModel:
    """Return a model that computes the steps of `model` with few kernels, or `model` itself if that is impossible.

    It is impossible if the language model is no plain Llama (see `why_not_fused`).

    Args:
        model: The model without its text head.
        previous: Earlier result of this function for the same model, or None. If it still fits the model, its copies
            of weights are updated in place and it is returned again, so that captured graphs stay valid.
    """
    if reason := why_not_fused(model.language_model):
        logger.info(f"Steps use the layers of transformers, which launch more kernels: {reason}.")
        return model
    if isinstance(previous, FusedModel) and previous.fits(model):
        previous.refresh()
        return previous
    llama = model.language_model
    assert isinstance(llama, LlamaModel)  # `why_not_fused`
    joined = _may_join(llama, llama.norm.weight.device)
    try:
        return FusedModel(model, joined=joined)
    except torch.cuda.OutOfMemoryError:
        pass
    # Not inside `except`, where the error's traceback still holds the copies that were made.
    logger.warning(
        "The memory of the device does not suffice for joined copies of the matrices that read the same input, so "
        "steps multiply by them one by one, which is slower: generate fewer images at once."
    )
    return FusedModel(model, joined=False)


class FusedModel:
    """A model without its text head whose language model launches few kernels; `decode_step` runs it (`StepModel`).

    Args:
        model: The model; `why_not_fused` must return None for its language model.
        joined: Whether matrices that read the same input are copied into one matrix.
    """

    def __init__(self, model: BareModel, *, joined: bool) -> None:
        assert isinstance(model.language_model, LlamaModel)  # `why_not_fused`
        self._model, self._modules = model, _step_modules(model.language_model)
        self.config, self.generation_head = model.config, model.generation_head
        self.language_model = _FusedLlama(model.language_model, joined=joined)

    def embed_image_ids(self, image_ids: torch.Tensor) -> torch.Tensor:
        """Embed image tokens `(...)` as inputs `(..., C)` of the language model."""
        return self._model.embed_image_ids(image_ids)

    def fits(self, model: BareModel) -> bool:
        """Return whether `model` still has the modules, sizes and dtypes from which this object was made."""
        modules = _step_modules(model.language_model)
        return (
            model is self._model
            and len(modules) == len(self._modules)
            and all(one is other for one, other in zip(modules, self._modules, strict=True))
            and self.generation_head is model.generation_head
            and self.config is model.config
            and self.language_model.fits()
        )

    def refresh(self) -> None:
        """Copy the present weights into the joined matrices, and compute the rotations of RoPE again, in place."""
        self.language_model.refresh()


class _FusedLlama:
    """The language model, for the few positions of a step.

    Args:
        llama: The language model whose weights are used.
        joined: Whether matrices that read the same input are copied into one matrix.
    """

    def __init__(self, llama: LlamaModel, *, joined: bool) -> None:
        self._llama = llama
        self._layers = [_FusedLayer(layer, joined=joined) for layer in _layers(llama)]
        self._rotations = self._all_rotations()

    def __call__(
        self,
        *,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor | None,
        position_ids: torch.Tensor,
        past_key_values: Cache,
        use_cache: bool = True,
    ) -> BaseModelOutputWithPast:
        """Run the language model and append keys and values to the cache, as transformers' Llama does.

        Args:
            inputs_embeds: `(R, n, C)`. The residual stream is added up in this tensor, in place.
            attention_mask: `(R, L)`, 0 on padding; or `(R or 1, 1, n, L)` bool, True where a token may attend; or
                None.
            position_ids: `(R, n)` int64.
            past_key_values: The cache, which holds at least one position.
            use_cache: Must be True.

        Returns:
            An output with `last_hidden_state` `(R, n, C)`.
        """
        assert use_cache
        if inputs_embeds.dtype != self._llama.norm.weight.dtype:
            # Operators differ in how they choose the dtype of their output, so the layers of transformers run.
            return self._llama(
                inputs_embeds=inputs_embeds,
                attention_mask=attention_mask,
                position_ids=position_ids,
                past_key_values=past_key_values,
                use_cache=True,
            )
        rows, fed, width = inputs_embeds.shape
        hidden_MC = inputs_embeds.reshape(rows * fed, width)
        store = _KeyValueStore(past_key_values, fed, inputs_embeds.device)
        cos, sin = self._rotation(inputs_embeds, position_ids)
        bias = store.attention_bias(attention_mask, inputs_embeds.dtype)
        for layer in self._layers:
            layer.add_to(hidden_MC, (rows, fed), (cos, sin), store, bias)
        store.advance()
        hidden = _normalise(hidden_MC, self._llama.norm).view(rows, fed, width)
        return BaseModelOutputWithPast(last_hidden_state=hidden, past_key_values=past_key_values)

    def _rotation(self, hidden: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return cosine and sine `(R, n, 1, D)` of RoPE, the rotation of queries and keys by their positions."""
        if self._rotations is None:
            cos, sin = self._llama.rotary_emb(hidden, position_ids)
        else:
            cos, sin = F.embedding(position_ids, self._rotations).chunk(2, dim=-1)
        return cos.unsqueeze(2), sin.unsqueeze(2)

    def _all_rotations(self) -> torch.Tensor | None:
        """Return cosine and sine of RoPE for every position of the context, side by side: `(positions, 2 D)`.

        Return None if they depend on more than the position.
        """
        rope, weight = self._llama.rotary_emb, self._llama.norm.weight
        if rope.rope_type not in _FIXED_ROPE:
            return None
        positions = torch.arange(context_length(self._llama.config), device=weight.device)
        return torch.cat(rope(weight, positions[None]), dim=-1)[0]

    def fits(self) -> bool:
        """Return whether the copies still have the model's number of layers, sizes, dtypes and devices."""
        rotations, norm = self._rotations, self._llama.norm.weight
        return (
            len(self._layers) == len(_layers(self._llama))
            and all(layer.fits() for layer in self._layers)
            and (rotations is None) is (self._llama.rotary_emb.rope_type not in _FIXED_ROPE)
            and (
                rotations is None
                or (len(rotations), rotations.dtype, rotations.device)
                == (context_length(self._llama.config), norm.dtype, norm.device)
            )
        )

    def refresh(self) -> None:
        """Copy the present weights into the joined matrices, and compute the rotations of RoPE again, in place."""
        for layer in self._layers:
            layer.refresh()
        rotations = self._all_rotations()
        if rotations is not None and self._rotations is not None:
            self._rotations.copy_(rotations)


class _FusedLayer:
    """One layer of the language model: attention, then the MLP.

    Args:
        layer: The layer whose weights are used.
        joined: Whether matrices that read the same input are copied into one matrix.
    """

    def __init__(self, layer: LlamaDecoderLayer, *, joined: bool) -> None:
        self._layer, self._attention, self._mlp = layer, layer.self_attn, layer.mlp
        self._queries_keys_values, self._gate_up = (
            JoinedLinear(group, joined=joined) for group in _matrices_to_join(layer)
        )
        self._output, self._down = (
            few_row_layer(linear) or linear for linear in (self._attention.o_proj, self._mlp.down_proj)
        )
        self._num_queries = self._attention.config.num_attention_heads
        self._num_keys = self._attention.config.num_key_value_heads

    def add_to(
        self,
        hidden_MC: torch.Tensor,
        sizes: tuple[int, int],
        rotation: tuple[torch.Tensor, torch.Tensor],
        store: "_KeyValueStore",
        bias: torch.Tensor | None,
    ) -> None:
        """Add the outputs of attention and MLP to the hidden states, in place.

        Args:
            hidden_MC: Hidden states `(M, C)`.
            sizes: The two numbers `(R, n)`: rows, and tokens fed at once.
            rotation: Cosine and sine `(R, n, 1, D)`.
            store: The cache, to which this layer's keys and values are appended.
            bias: `(R or 1, 1, n, L)`, added to the attention scores; or None.
        """
        attention, mlp = self._attention, self._mlp
        heads = self._queries_keys_values(_normalise(hidden_MC, self._layer.input_layernorm))
        heads = heads.view(*sizes, self._num_queries + 2 * self._num_keys, attention.head_dim)
        rotated = _rotate(heads[:, :, : -self._num_keys], *rotation).transpose(1, 2)
        queries, keys = rotated.split([self._num_queries, self._num_keys], dim=1)
        values = heads[:, :, -self._num_keys :].transpose(1, 2)
        keys, values = store.append(attention.layer_idx, keys, values)
        attended, _ = sdpa_attention_forward(attention, queries, keys, values, bias, scaling=attention.scaling)
        _add_projection(hidden_MC, attended.reshape(len(hidden_MC), -1), self._output)

        gate, up = self._gate_up(_normalise(hidden_MC, self._layer.post_attention_layernorm)).chunk(2, dim=-1)
        _add_projection(hidden_MC, mlp.act_fn(gate) * up, self._down)

    def fits(self) -> bool:
        """Return whether the weights still have the sizes, dtypes and devices of the copies."""
        return self._queries_keys_values.fits() and self._gate_up.fits()

    def refresh(self) -> None:
        """Copy the present weights into the joined matrices, in place."""
        self._queries_keys_values.refresh()
        self._gate_up.refresh()


class _KeyValueStore:
    """The cache during one step; the positions to write to are computed once per step instead of in every layer.

    Args:
        cache: The batch's cache. In a static cache the number of written positions is a tensor on the device, and
            attention reads all positions; in other caches it is a number, and attention reads the written positions.
        fed: Number `n` of tokens fed at once.
        device: Device of the first layer.
    """

    def __init__(self, cache: Cache, fed: int, device: torch.device) -> None:
        self._cache, self._fed = cache, fed
        self._is_static = all(type(layer) is StaticLayer and layer.is_initialized for layer in cache.layers)
        start = cache.layers[0].cumulative_length if self._is_static else cache.get_seq_length()
        self._length, _ = cache.get_mask_sizes(fed, 0)
        # Positions of the fed tokens in the cache; a single token in a growing cache needs none, and no causal mask.
        self._positions: torch.Tensor | None = None
        if fed > 1:
            self._positions = torch.arange(fed, device=device) + start
        elif isinstance(start, torch.Tensor):
            self._positions = start.view(1)  # a view suffices, because the counter is advanced at the end of the step

    def append(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the keys and values `(R, G, n, D)` of the fed tokens, and return all that attention reads."""
        if not self._is_static:
            return self._cache.update(keys, values, layer)
        assert self._positions is not None
        stored = self._cache.layers[layer]
        stored.keys.index_copy_(2, self._positions, keys)
        stored.values.index_copy_(2, self._positions, values)
        return stored.keys, stored.values

    def advance(self) -> None:
        """Count the fed tokens as written, after all layers have written theirs."""
        if self._is_static:
            # `_foreach_add_` advances the counters of all layers with one kernel; there is no public name for it.
            torch._foreach_add_([layer.cumulative_length for layer in self._cache.layers], self._fed)

    def attention_bias(self, mask: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor | None:
        """Return a tensor to add to the attention scores of all layers: 0 where a token may attend, otherwise -inf.

        It is computed once per step, because PyTorch would convert a mask of booleans to it in every layer.

        Args:
            mask: `(R, L)`, 0 on padding; or `(R or 1, 1, n, L)` bool; or None.
            dtype: Dtype of the result.

        Returns:
            `(R or 1, 1, n, L)`, or None if every token may attend to all `L` positions.
        """
        visible = mask
        if mask is not None and mask.ndim == 2:
            visible = mask[:, None, None].bool()
        if (mask is None or mask.ndim == 2) and self._positions is not None:
            not_later = torch.arange(self._length, device=self._positions.device) <= self._positions[:, None]
            visible = not_later[None, None] if visible is None else visible & not_later
        if visible is None:
            return None
        # The logarithms of 1 and 0 are 0 and -inf.
        bias = visible.log().to(dtype)
        # On CUDA rows must start at multiples of 16 values; PyTorch would copy the bias in every layer to align it.
        aligned = F.pad(bias, (0, -self._length % 16)) if self._length % 16 else bias
        return aligned[..., : self._length]


def _normalise(x: torch.Tensor, norm: LlamaRMSNorm) -> torch.Tensor:
    """Return `x` `(M, C)` divided by its root mean square over `C`, times the norm's weight, with one kernel."""
    return F.rms_norm(x, x.shape[-1:], norm.weight, norm.variance_epsilon)


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate queries and keys by their positions (RoPE): `(R, n, heads, D)` -> the same shape.

    The two halves of a head are the two coordinates of `D / 2` points in the plane.
    """
    rotated = x * cos
    (new_1, new_2), (x_1, x_2), (sin_1, sin_2) = (tensor.chunk(2, dim=-1) for tensor in (rotated, x, sin))
    new_1.addcmul_(x_2, sin_1, value=-1)
    new_2.addcmul_(x_1, sin_2)
    return rotated


def _add_projection(hidden_MC: torch.Tensor, x: torch.Tensor, linear: nn.Module) -> None:
    """Add a linear layer's output for `x` `(M, inputs)` to the hidden states, in place."""
    if is_plain(linear) and linear.bias is None:
        hidden_MC.addmm_(x, linear.weight.t())
    else:
        hidden_MC.add_(linear(x))


def _step_modules(language_model: nn.Module) -> list[nn.Module]:
    """Return all modules of the language model that a step runs: all but the embeddings of text."""
    assert isinstance(language_model, LlamaModel)  # `why_not_fused`
    unused = set(language_model.get_input_embeddings().modules())
    return [module for module in language_model.modules() if module not in unused]


def _layers(llama: LlamaModel) -> list[LlamaDecoderLayer]:
    """Return the layers that the language model runs."""
    return list(llama.layers[: llama.config.num_hidden_layers])


def _matrices_to_join(layer: LlamaDecoderLayer) -> Iterator[list[nn.Module]]:
    """Iterate over the groups of linear layers that read the same input."""
    attention: LlamaAttention = layer.self_attn
    yield [attention.q_proj, attention.k_proj, attention.v_proj]
    yield [layer.mlp.gate_proj, layer.mlp.up_proj]


def _may_join(llama: LlamaModel, device: torch.device) -> bool:
    """Return whether `device` is large enough for copies of the matrices that read the same input."""
    if device.type != "cuda":
        return True
    linears = [linear for layer in _layers(llama) for group in _matrices_to_join(layer) for linear in group]
    copied = sum(parameter.nbytes for linear in linears for parameter in linear.parameters())
    return copied <= _JOINED_SHARE * torch.cuda.get_device_properties(device).total_memory


__all__ = ["FusedModel", "fuse"]
