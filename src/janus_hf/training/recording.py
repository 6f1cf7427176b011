"""Functions that find a run's checkpoints, read their state, and describe the run on its model card.

Every checkpoint contains the file `janus_training.json` with facts about its run, such as the training stage, and with
its settings; `resuming` compares them with those of the run that resumes the checkpoint.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import ModelCard
from transformers import TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..files import write_atomically
from ..hub.cards import CARD_FILE, finish_card, repository_of
from .stages import find_stage


if TYPE_CHECKING:
    from .trainers.sft_config import JanusProSFTConfig

FACTS_FILE = "janus_training.json"

_SECTION = """
## Training

| | |
|---|---|
{rows}

{table}
"""
_HYPER_PARAMETERS = (
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "optim",
    "adam_beta1",
    "adam_beta2",
    "weight_decay",
    "max_grad_norm",
    "max_length",
    "caption_drop",
    "bf16",
    "seed",
)
_LORA = ("lora_r", "lora_alpha", "lora_dropout", "lora_vision_tower")


def newest_checkpoint(folder: str | Path) -> str | None:
    """Return the path of a run's newest complete checkpoint (`checkpoint-N` with the highest N), or None without any.

    A checkpoint is complete if it contains `trainer_state.json`, which transformers writes last.

    Args:
        folder: The run's output folder; it need not exist.
    """
    complete = [path.parent for path in Path(folder).glob(f"{PREFIX_CHECKPOINT_DIR}-*/{TRAINER_STATE_NAME}")]
    # Compared by number, because as text checkpoint-10 would come before checkpoint-2.
    return str(max(complete, key=lambda path: int(path.name.split("-")[-1]))) if complete else None


def read_state(checkpoint: str | os.PathLike[str]) -> TrainerState:
    """Return the state of transformers' Trainer (number of steps, log history) from a checkpoint's folder."""
    return TrainerState.load_from_json(str(Path(checkpoint) / TRAINER_STATE_NAME))


def training_card(
    card: ModelCard,
    args: "JanusProSFTConfig",
    facts: Mapping[str, Any],
    *,
    steps: int,
    table: str,
    tags: Sequence[str],
    adapter_base: str | None,
) -> ModelCard:
    """Add a section on the training to a model card, and complete the card's metadata.

    Args:
        card: Card of the trained model; changed in place.
        args: The run's configuration; its hyper-parameters are listed in the section.
        facts: Further entries of the section, such as the training stage, the ratios of the data and the plan hash.
        steps: Number of optimizer steps of the training.
        table: Markdown table of the numbers of the model's parameters.
        tags: Tags to add to the card's metadata.
        adapter_base: Folder or Hub repository of the model on which LoRA adapters were trained; None if unknown. Only
            a repository is stated on the card, because a folder means nothing to its readers. Ignored in stages
            without adapters.

    Returns:
        The same card.
    """
    lora = find_stage(args.stage).lora
    names = _HYPER_PARAMETERS + (_LORA if lora else ())
    entries = {**facts, "steps": steps, "packs per step": args.packs_per_step}
    entries |= {name: getattr(args, name) for name in names}
    rows = "\n".join(f"| {name} | {_cell(value)} |" for name, value in entries.items())
    card.text = card.text.rstrip() + "\n" + _SECTION.format(rows=rows, table=table)
    # Tags are sorted, so that the same run always writes the same card.
    card.data.tags = sorted({*(card.data.tags or []), *tags})
    if lora:
        card.data.library_name = "peft"
        card.data.base_model = repository_of(adapter_base)
    return card


def write_card(folder: str | os.PathLike[str], generated: ModelCard, found: Iterable[str]) -> None:
    """Write README.md into a folder: the first of the cards `found` that was edited by hand, completed, or a new one.

    Args:
        folder: Folder to write to.
        generated: The generated card, which also has the metadata that a card edited by hand may lack.
        found: Texts of the cards that exist already in the folder or on the Hub.
    """
    text = finish_card(generated, found)
    write_atomically(Path(folder) / CARD_FILE, text.encode("utf-8", errors="surrogateescape"))


def _cell(value: Any) -> str:
    """Return a value as text for one cell of a Markdown table.

    A dict becomes `key: value` pairs, or "-" if it is empty; an enum member becomes its value.
    """
    if isinstance(value, dict):
        return ", ".join(f"{key}: {entry}" for key, entry in value.items()) or "-"
    return str(getattr(value, "value", value)).replace("|", "\\|").replace("\n", " ")


__all__ = [
    "FACTS_FILE",
    "newest_checkpoint",
    "read_state",
    "training_card",
    "write_card",
]
