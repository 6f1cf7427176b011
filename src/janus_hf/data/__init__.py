"""From images, prompts and conversations to training batches. Needs `pip install janus_hf[train]`.

`prepare` (once, to disk) or `prepare_rows` (in memory) makes rows of ids. `make_plan` orders them and groups them into
packs, each of which fills one row of a batch. `PackedDataset` reads the packs, and `JanusProCollator` makes batches.
"""

from importlib.util import find_spec


if find_spec("datasets") is None:
    raise ImportError("Training data need the datasets library: pip install 'janus_hf[train]'.")

from .collator import JanusProCollator
from .datasets import PackedDataset, stream_packs
from .manifest import finish_prepared
from .planning.plan import PackPlan, make_plan
from .prepare import prepare, prepare_mixture, prepare_rows
from .schema import ADAPTERS, TASKS, RowError
from .store import PreparedDataset, load_prepared


__all__ = [
    "ADAPTERS",
    "TASKS",
    "JanusProCollator",
    "PackPlan",
    "PackedDataset",
    "PreparedDataset",
    "RowError",
    "finish_prepared",
    "load_prepared",
    "make_plan",
    "prepare",
    "prepare_mixture",
    "prepare_rows",
    "stream_packs",
]
