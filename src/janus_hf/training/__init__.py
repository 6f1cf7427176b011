"""Training: stages, trainers and recipes.

Most of it needs the `train` extra (trl, peft, datasets); `stages`, `memory` (without recipe files) and
`trainers.codec` do not. The names below are imported when they are first used.
"""

import importlib
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from ..checkpoints.merge import merge_adapter
    from .callbacks import SampleCallback
    from .recipes import load_recipe
    from .run import train
    from .stages import STAGES, apply_stage, lora_config
    from .trainers.sft import JanusProSFTTrainer
    from .trainers.sft_config import JanusProSFTConfig

_LAZY = {
    "STAGES": ".stages",
    "JanusProSFTConfig": ".trainers.sft_config",
    "JanusProSFTTrainer": ".trainers.sft",
    "SampleCallback": ".callbacks",
    "apply_stage": ".stages",
    "load_recipe": ".recipes",
    "lora_config": ".stages",
    "merge_adapter": "..checkpoints.merge",
    "train": ".run",
}

__all__ = [
    "STAGES",
    "JanusProSFTConfig",
    "JanusProSFTTrainer",
    "SampleCallback",
    "apply_stage",
    "load_recipe",
    "lora_config",
    "merge_adapter",
    "train",
]


def __getattr__(name: str) -> Any:
    """Import a public name from its module when it is first used, so that each part needs only its own libraries."""
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
