"""Training of Janus-Pro: stages (named choices of what is trained), trainers, and recipes (YAML files of a run).

Most modules of this package need the `train` extra (trl, peft, datasets). `stages`, `memory` (unless it reads recipe
files) and `trainers.codec` do not. Therefore the public names below are imported only when they are first used.
"""

import importlib
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from ..checkpoints.merge import merge_adapter
    from ..data import JanusProCollator, PackedDataset, stream_packs
    from .callbacks import SampleCallback
    from .memory import estimate_memory, recipe_memory
    from .mixture import TrainingData, load_mixture
    from .recipes import Recipe, load_recipe
    from .recording import newest_checkpoint
    from .run import build_trainer, load_processor, train
    from .stages import STAGES, Stage, apply_stage, base_model, lora_config, trainable_table
    from .trainers.base import JanusProTrainer
    from .trainers.codec import CodecTrainer, CodecTrainingArguments, initialise_codebook
    from .trainers.patch_teacher import PatchTeacher
    from .trainers.sft import JanusProSFTTrainer
    from .trainers.sft_config import JanusProSFTConfig

# Public names that are imported at first access -> the module that defines them.
_LAZY = {
    "STAGES": ".stages",
    "CodecTrainer": ".trainers.codec",
    "CodecTrainingArguments": ".trainers.codec",
    "JanusProCollator": "..data",
    "JanusProSFTConfig": ".trainers.sft_config",
    "JanusProSFTTrainer": ".trainers.sft",
    "JanusProTrainer": ".trainers.base",
    "PackedDataset": "..data",
    "PatchTeacher": ".trainers.patch_teacher",
    "Recipe": ".recipes",
    "SampleCallback": ".callbacks",
    "Stage": ".stages",
    "TrainingData": ".mixture",
    "apply_stage": ".stages",
    "base_model": ".stages",
    "build_trainer": ".run",
    "estimate_memory": ".memory",
    "initialise_codebook": ".trainers.codec",
    "load_mixture": ".mixture",
    "load_processor": ".run",
    "load_recipe": ".recipes",
    "lora_config": ".stages",
    "merge_adapter": "..checkpoints.merge",
    "newest_checkpoint": ".recording",
    "recipe_memory": ".memory",
    "stream_packs": "..data",
    "train": ".run",
    "trainable_table": ".stages",
}

__all__ = [
    "STAGES",
    "CodecTrainer",
    "CodecTrainingArguments",
    "JanusProCollator",
    "JanusProSFTConfig",
    "JanusProSFTTrainer",
    "JanusProTrainer",
    "PackedDataset",
    "PatchTeacher",
    "Recipe",
    "SampleCallback",
    "Stage",
    "TrainingData",
    "apply_stage",
    "base_model",
    "build_trainer",
    "estimate_memory",
    "initialise_codebook",
    "load_mixture",
    "load_processor",
    "load_recipe",
    "lora_config",
    "merge_adapter",
    "newest_checkpoint",
    "recipe_memory",
    "stream_packs",
    "train",
    "trainable_table",
]


if not TYPE_CHECKING:  # a type checker would take every misspelled name for one that this function returns

    def __getattr__(name: str) -> object:
        """Import a public name of this package from its submodule when it is first used, and return the object.

        So the optional libraries of a submodule are needed only if a name of that submodule is used.
        """
        if name in _LAZY:
            return getattr(importlib.import_module(_LAZY[name], __name__), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """Return the public names, for completion in notebooks and shells."""
    return sorted(__all__)
