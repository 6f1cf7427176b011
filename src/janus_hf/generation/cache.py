"""A cache of keys and values that is allocated at once and attended as far as it is written.

A growing cache is copied for every code; a static one is attended over its whole length, most of which is empty for
most of a picture. Here a step appends in place, and attention gets a view of what is there. The lengths are numbers of
Python, so this is for steps that are not compiled.

`R` rows, `G` heads of keys and values, `n` new positions, `D` width of a head.
"""

from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer


class _PreallocatedLayer(DynamicLayer):
    """One layer's keys and values `(R, G, positions so far, D)`, views of tensors of `capacity` positions.

    Rows stay as they are: what reorders, repeats or selects them, as beam search does, would act on the views alone.
    """

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity = capacity

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Allocate for rows and heads like these."""
        self.dtype, self.device = key_states.dtype, key_states.device
        rows, heads = key_states.shape[:2]
        self._key_store = key_states.new_empty(rows, heads, self.capacity, key_states.shape[-1])
        self._value_store = value_states.new_empty(rows, heads, self.capacity, value_states.shape[-1])
        self.keys, self.values = self._key_store[:, :, :0], self._value_store[:, :, :0]
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append `(R, G, n, D)`; returns all keys and values so far.

        Raises:
            ValueError: If there is no room.
        """
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        if end > self.capacity:
            raise ValueError(f"The cache holds {self.capacity} positions, {start} of them taken; {end - start} came.")
        self._key_store[:, :, start:end] = key_states
        self._value_store[:, :, start:end] = value_states
        self.keys, self.values = self._key_store[:, :, :end], self._value_store[:, :, :end]
        return self.keys, self.values

    def get_max_length(self) -> int:
        """Positions there is room for."""
        return self.capacity


class PreallocatedCache(Cache):
    """Keys and values of all layers.

    Args:
        config: Of the language model; all its layers attend to everything before.
        capacity: Positions to allocate.
    """

    def __init__(self, config: Any, capacity: int) -> None:
        super().__init__(layers=[_PreallocatedLayer(capacity) for _ in range(config.num_hidden_layers)])


__all__ = ["PreallocatedCache"]
