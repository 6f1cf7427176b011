"""The parts of a captured step: the graph with the tensors that it reads and writes, and copies of a cache's state.

A graph always reads its input from the same tensors. The fields of a `StepInput`, and of the dataclasses in it, are
tensors, whose values are copied to these tensors before each replay, and settings, which are part of the graph.
"""

import dataclasses
from collections.abc import Hashable, Iterator
from typing import TypeVar

import torch
from transformers.cache_utils import StaticCache

from .cuda_graph import Graph
from .interface import StepInput, StepOutput


_Inputs = TypeVar("_Inputs")


class CapturedStep:
    """A graph with the tensors that it reads and writes.

    Args:
        graph: The captured graph.
        cache: Cache that the graph appends to.
        inputs: Input whose tensors the graph reads.
        output: Tensors that a replay writes to.

    Attributes:
        checked: Whether a replay has agreed with a plain step.
    """

    def __init__(self, graph: Graph, cache: StaticCache, inputs: StepInput, output: StepOutput) -> None:
        self.graph, self.cache, self._inputs, self._output = graph, cache, inputs, output
        self.checked = False
        # If a replay wrote nothing, plausible values of the capture must not be taken for its output.
        for tensor in output:
            tensor.fill_(-1)

    def replay(self, step: StepInput) -> StepOutput:
        """Copy the input of a step to the tensors that the graph reads, replay the graph, and return its output."""
        for target, source in zip(_tensors(self._inputs), _tensors(step), strict=True):
            target.copy_(source)
        self.graph.replay()
        return self._output


class CacheState:
    """Copy of the lengths of a static cache, and on demand of its written positions, from which they can be restored.

    Args:
        cache: A static cache that has been written to.
        with_contents: Whether to copy keys and values of all written positions as well.
    """

    def __init__(self, cache: StaticCache, with_contents: bool = False) -> None:
        self._layers = cache.layers
        self._lengths = [layer.cumulative_length.clone() for layer in cache.layers]
        self._contents: list[tuple[torch.Tensor, torch.Tensor]] = []
        if with_contents:
            written = int(self._lengths[0])
            self._contents = [
                (layer.keys[:, :, :written].clone(), layer.values[:, :, :written].clone()) for layer in cache.layers
            ]

    def restore(self) -> None:
        """Write the copied lengths, and keys and values if they were copied, back to the cache."""
        for layer, length in zip(self._layers, self._lengths, strict=True):
            layer.cumulative_length.copy_(length)
        for layer, (keys, values) in zip(self._layers, self._contents, strict=False):
            layer.keys[:, :, : keys.shape[2]] = keys
            layer.values[:, :, : values.shape[2]] = values

    def agrees_with(self, cache: StaticCache) -> bool:
        """Return whether the cache has the copied lengths, and up to rounding the copied keys and values.

        This method waits for the device.
        """
        return all(
            torch.equal(layer.cumulative_length, length)
            for layer, length in zip(cache.layers, self._lengths, strict=True)
        ) and all(
            _close(store[:, :, : copy.shape[2]], copy, cache)
            for layer, copies in zip(cache.layers, self._contents, strict=False)
            for store, copy in zip((layer.keys, layer.values), copies, strict=True)
        )


def visible_positions(step: StepInput, cache: StaticCache) -> torch.Tensor:
    """Return a mask `(R, 1, n, L)` bool that is True at the positions of the cache to which each fed token attends.

    `R` is the number of rows (sequences), `n` the number of tokens fed at once, and `L` the length of the cache.
    transformers computes the same mask from a mask `(R, L)`, but first waits for the device to find out whether a mask
    is needed, which a graph cannot record.
    """
    assert step.mask is not None  # `CapturedDecoder.make_mask`
    device = step.mask.device
    fed = cache.layers[0].cumulative_length + torch.arange(step.tokens.shape[1], device=device)
    not_later = torch.arange(step.mask.shape[1], device=device) <= fed[:, None]
    return step.mask.bool()[:, None, None] & not_later


def agree(plain: StepOutput, replayed: StepOutput, cache: StaticCache) -> bool:
    """Return whether a plain step and a replay sampled the same tokens from logits that are equal up to rounding."""
    return _close(replayed.logits, plain.logits, cache) and torch.equal(replayed.tokens, plain.tokens)


def _close(replayed: torch.Tensor, plain: torch.Tensor, cache: StaticCache) -> bool:
    """Return whether a tensor that a replay computed equals that of a plain step up to rounding.

    Both launch the same kernels, so most often they are equal. But matrix kernels may add in another order, for
    example because a capture has a workspace of its own. Each of the `2 N` sums that `N` layers add to the hidden
    state is then rounded differently, by about one unit in the last place of the model's dtype. `2 N` independent
    errors add up to about the square root of `2 N` units, and the largest error among many values is about four times
    that. In contrast, an input or a position that the graph failed to read changes values by about their own size.
    """
    unit = torch.finfo(cache.layers[0].keys.dtype).eps
    largest = plain.abs().nan_to_num().max().item()
    tolerance = 4 * (2 * len(cache.layers)) ** 0.5 * unit * largest
    # The caller of the step reports logits that are not finite.
    return torch.allclose(replayed, plain, rtol=0, atol=tolerance, equal_nan=True)


def _tensors(inputs: object) -> Iterator[torch.Tensor]:
    """Iterate over all tensors in a dataclass and in the dataclasses that it contains."""
    if isinstance(inputs, torch.Tensor):
        yield inputs
    elif dataclasses.is_dataclass(inputs):
        for field in dataclasses.fields(inputs):
            yield from _tensors(getattr(inputs, field.name))


def with_copied_tensors(inputs: _Inputs) -> _Inputs:
    """Return a dataclass with copies of all its tensors, and of those in the dataclasses that it contains."""
    if isinstance(inputs, torch.Tensor):
        return inputs.clone(memory_format=torch.contiguous_format)  # type: ignore[return-value]
    if dataclasses.is_dataclass(inputs) and not isinstance(inputs, type):
        fields = {field.name: getattr(inputs, field.name) for field in dataclasses.fields(inputs)}
        return dataclasses.replace(inputs, **{name: with_copied_tensors(value) for name, value in fields.items()})
    return inputs


def size_of(inputs: object) -> Hashable:
    """Return the shapes and dtypes of all tensors in a (nested) dataclass, and the values of its other fields."""
    if isinstance(inputs, torch.Tensor):
        return inputs.shape, inputs.dtype
    if dataclasses.is_dataclass(inputs):
        return tuple(size_of(getattr(inputs, field.name)) for field in dataclasses.fields(inputs))
    assert isinstance(inputs, Hashable)  # a number, a flag or None
    return inputs


__all__ = ["CacheState", "CapturedStep", "agree", "size_of", "visible_positions", "with_copied_tensors"]
