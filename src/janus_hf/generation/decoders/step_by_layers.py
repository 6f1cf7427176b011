"""The class `StepByLayers`, a step of the generation loop whose layers share one compiled graph.

The layers of a language model are alike, so the compiler would do the same work for each of them if the step were one
graph. The graph of one layer is compiled once instead and called for all layers. It pays where starting a graph costs
little compared with a layer: on a CPU.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, StaticLayer
from transformers.models.llama.modeling_llama import LlamaModel

from ...protocols import BareModel
from ..sampling import Draw
from .interface import StepOutput
from .plain import draw_from, run_tokens
from .step_graph import compile_alone


class StepByLayers:
    """A compiled step for one size of batches, called with the arguments of `decode_step`.

    Two functions are compiled at their first call: a layer of the language model, and the image head with sampling.
    The rest of a step (embedding, mask, rotations, last norm) is a few small operators, which run as they are.
    """

    def __init__(self) -> None:
        self._run_layer = compile_alone(_run_layer)
        self._draw_from = compile_alone(draw_from)

    def __call__(
        self,
        model: BareModel,
        cache: Cache,
        tokens: torch.Tensor,
        mask: torch.Tensor | None,
        lengths: torch.Tensor,
        positions: torch.Tensor,
        draw: Draw,
    ) -> StepOutput:
        """Run the step; arguments and result are those of `decode_step`, and the cache is static and not empty."""
        language_model = model.language_model
        # Layers that differ (by adapters, or by quantised weights) get graphs of their own, and PyTorch allows only
        # eight graphs per function.
        limit = 8 * len(language_model.layers)
        with self._shared_graph(language_model, cache), torch._dynamo.config.patch(recompile_limit=limit):
            hidden = run_tokens(model, cache, tokens, mask, lengths, positions, draw)
            return self._draw_from(model, hidden, positions, draw)

    @contextmanager
    def _shared_graph(self, language_model: PreTrainedModel, cache: Cache) -> Iterator[None]:
        """Make the layers of the language model run as the shared graph inside the context."""
        layers: dict[str, nn.Module | None] = language_model.layers._modules
        before = dict(layers)
        try:
            for (name, layer), stored in zip(before.items(), cache.layers, strict=False):
                layers[name] = _SharedLayer(self._run_layer, layer, _without_marks(stored))
            yield
        finally:
            try:
                layers.update(before)
            except KeyboardInterrupt:
                layers.update(before)
                raise


class _SharedLayer(nn.Module):
    """Stand-in for a layer of the language model, which runs it as a graph that all layers share.

    Args:
        run: `_run_layer`, compiled.
        layer: The layer.
        stored: The layer's part of the cache.
    """

    def __init__(self, run: Callable[..., torch.Tensor], layer: nn.Module | None, stored: StaticLayer) -> None:
        super().__init__()
        # In a tuple, the layer does not become a submodule, which would change the names of the model's weights.
        self._call = (run, layer, stored)

    def forward(self, hidden_states: torch.Tensor, *, past_key_values: Cache, **inputs: object) -> torch.Tensor:
        """Run the layer; it gets its own part of the cache, so that no graph knows the layer's number."""
        run, layer, stored = self._call
        return run(layer, hidden_states, past_key_values=stored, **inputs)


def _run_layer(layer: nn.Module, hidden_states: torch.Tensor, **inputs: object) -> torch.Tensor:
    """Call a layer of the language model with hidden states `(R, n, C)` and return its output of the same shape."""
    output: torch.Tensor = layer(hidden_states, **inputs)
    return output


def _without_marks(stored: StaticLayer) -> StaticLayer:
    """Return one layer of a static cache as another object with the same memory.

    transformers marks the tensors of a static cache for the compiler, which would make them constants of a graph.
    """
    other = copy.copy(stored)
    other.keys, other.values = stored.keys.detach(), stored.values.detach()
    other.cumulative_length = stored.cumulative_length.detach()
    return other


def has_layers_alike(language_model: PreTrainedModel) -> bool:
    """Return whether `StepByLayers` can run a language model: its layers are in a list and called as in Llama."""
    return isinstance(language_model, LlamaModel)


__all__ = ["StepByLayers", "has_layers_alike"]
