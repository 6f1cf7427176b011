"""The class `PreallocatedCache`: a key-value cache that is allocated at once and whose unwritten part is never read.

transformers' growing cache (`DynamicCache`) copies itself for every token. Its `StaticCache` is attended over its
whole length, most of which is empty while most of an image is generated. Here a step writes in place, and attention
gets a view of the positions written so far. The lengths are Python numbers, so this cache suits steps that are not
compiled.

In shapes, `R` is the number of rows (sequences), `G` the number of key and value heads, `n` the number of new
positions, and `D` the width of a head.
"""

import torch
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache, DynamicLayer


class _PreallocatedLayer(DynamicLayer):
    """Cache of one layer: its `keys` and `values` are views of tensors that have room for `capacity` positions.

    The views are `(R, G, positions written so far, D)` for `R` rows (sequences) and `G` key and value heads of width
    `D`. Only `update` and `crop` are supported. Inherited methods that reorder, repeat or select rows, which beam
    search uses, would change the views but not the tensors behind them.
    """

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity = capacity

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Allocate tensors of `capacity` positions; other sizes, dtype and device are those of the first keys."""
        self.dtype, self.device = key_states.dtype, key_states.device
        rows, heads = key_states.shape[:2]
        # Memory without values is enough, because a position is written before attention gets a view of it.
        self._key_store = key_states.new_empty(rows, heads, self.capacity, key_states.shape[-1])
        self._value_store = value_states.new_empty(rows, heads, self.capacity, value_states.shape[-1])
        self.keys, self.values = self._key_store[:, :, :0], self._value_store[:, :, :0]
        self.is_initialized = True

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        *args: object,
        **kwargs: object,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append keys and values of `n` new positions, both `(R, G, n, D)`, and return all keys and all values so far.

        `R` is the number of rows (sequences), `G` the number of key and value heads, `D` the width of a head.

        Raises:
            ValueError: If fewer than `n` positions are free.
        """
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        if end > self.capacity:
            raise ValueError(
                f"The cache must have room for {end - start} more positions, got {self.capacity} with {start} of them "
                "written: make it with a larger capacity."
            )
        self._key_store[:, :, start:end] = key_states
        self._value_store[:, :, start:end] = value_states
        self.keys, self.values = self._key_store[:, :, :end], self._value_store[:, :, :end]
        return self.keys, self.values

    def get_max_length(self) -> int:
        """Return the number of positions for which memory is allocated."""
        return self.capacity


class PreallocatedCache(Cache):
    """Key-value cache of all layers of a language model, which allocates its memory once and is filled in place.

    Args:
        config: Config of the language model. All its layers must attend to every earlier position (no sliding
            windows).
        capacity: Number of positions to allocate.
    """

    def __init__(self, config: PreTrainedConfig, capacity: int) -> None:
        super().__init__(layers=[_PreallocatedLayer(capacity) for _ in range(config.num_hidden_layers)])


__all__ = ["PreallocatedCache"]
