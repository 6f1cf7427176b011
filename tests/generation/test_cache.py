"""The preallocated cache holds what transformers' growing cache holds."""

import pytest
import torch
from transformers import LlamaConfig
from transformers.cache_utils import DynamicCache

from janus_hf.generation.cache import PreallocatedCache


CONFIG = LlamaConfig(num_hidden_layers=2, num_attention_heads=2, hidden_size=8, vocab_size=4)


def states(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return random keys and values of `count` positions."""
    return torch.randn(3, 2, count, 4), torch.randn(3, 2, count, 4)


def test_it_equals_a_growing_cache():
    torch.manual_seed(0)
    found, expected = PreallocatedCache(CONFIG, 10), DynamicCache(config=CONFIG)
    for count, removed in ((4, 0), (1, 0), (3, 2), (3, 0), (1, 0)):
        for layer in range(2):
            given = states(count)
            for ours, theirs in zip(found.update(*given, layer), expected.update(*given, layer), strict=True):
                assert torch.equal(ours, theirs)
            assert found.get_mask_sizes(1, layer) == expected.get_mask_sizes(1, layer)
        found.crop(-removed)
        expected.crop(-removed)
        assert found.get_seq_length() == expected.get_seq_length()
    assert found.get_seq_length() == 10


def test_appending_copies_nothing():
    cache = PreallocatedCache(CONFIG, 5)
    before, _ = cache.update(*states(2), 0)
    after, _ = cache.update(*states(3), 0)
    assert after.data_ptr() == before.data_ptr()


def test_a_full_cache_is_refused():
    cache = PreallocatedCache(CONFIG, 5)
    cache.update(*states(4), 0)
    with pytest.raises(ValueError, match="room for 2 more positions, got 5 with 4 of them written"):
        cache.update(*states(2), 0)
