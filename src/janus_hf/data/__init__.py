"""Functions and classes that turn images, prompts and conversations into batches for training.

They need `pip install janus_hf[train]`. `prepare` (to disk, once) or `prepare_rows` (in memory) tokenizes the rows of
a data set. `make_plan` decides the order of the tokenized rows and groups them into packs; a pack is a list of them
that shares one row of a batch. `PackedDataset` reads the packs of a plan by number, `stream_packs` makes packs without
a plan, and `JanusProCollator` makes a batch of tensors from a list of packs.
"""

from importlib.util import find_spec


if find_spec("datasets") is None:
    raise ImportError("Training data need the datasets library: pip install 'janus_hf[train]'.")

from .collator import JanusProCollator
from .datasets import PackedDataset, stream_packs
from .manifest import finish_prepared
from .planning.plan import PackPlan, make_plan
from .planning.shard_order import ShardShuffle
from .prepare import prepare, prepare_mixture, prepare_rows
from .schema import ADAPTERS, TASKS, RowError, SourceError
from .store import PreparedDataset, load_prepared


__all__ = [
    "ADAPTERS",
    "TASKS",
    "JanusProCollator",
    "PackPlan",
    "PackedDataset",
    "PreparedDataset",
    "RowError",
    "ShardShuffle",
    "SourceError",
    "finish_prepared",
    "load_prepared",
    "make_plan",
    "prepare",
    "prepare_mixture",
    "prepare_rows",
    "stream_packs",
]
