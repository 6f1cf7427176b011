"""Training of Janus-Pro: stages (named choices of what is trained), trainers, and recipes (YAML files of a run).

Most modules of this package need the `train` extra (trl, peft, datasets). `stages`, `memory` (unless it reads recipe
files) and `trainers.codec` do not. Therefore the public names below are imported only when they are first used.
"""

import importlib
from typing import TYPE_CHECKING


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


if not TYPE_CHECKING:  # a type checker would take every misspelled name for one that this function returns

    def __getattr__(name: str) -> object:
        """Import a public name of this package from its submodule when it is first used, and return the object.

        So the optional libraries of a submodule are needed only if a name of that submodule is used.
        """
        if name in _LAZY:
            return getattr(importlib.import_module(_LAZY[name], __name__), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
