"""What a run states about itself: in its checkpoints, so that no other run goes on from them, and in its card."""

import json
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard


FACTS_FILE = "janus_training.json"
_MUST_AGREE = ("stage", "plan_hash")

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


def check_same_run(checkpoint: Any, facts: dict[str, Any]) -> None:
    """Refuse to go on from a checkpoint of another run.

    Raises:
        ValueError: If the stage or the data plan differs, or the folder is no checkpoint of this trainer.
    """
    file = Path(checkpoint) / FACTS_FILE
    if not file.is_file():
        raise ValueError(f"{checkpoint} has no {FACTS_FILE}: it is not a checkpoint of this trainer.")
    found = json.loads(file.read_text(encoding="utf-8"))
    for name in _MUST_AGREE:
        if found.get(name) != facts.get(name):
            raise ValueError(
                f"{checkpoint} was trained with {name} {found.get(name)!r}, this run has {facts.get(name)!r}: the "
                "rows would not continue where they stopped. Resume with the same data, ratios, seed, stage, "
                "max_steps and batch size (a plan holds as many packs as the steps use), or start a new run from its "
                "weights."
            )


def training_card(card: ModelCard, trainer: Any) -> ModelCard:
    """`card` with the stage, the mixture, the plan and the hyper-parameters."""
    args, state = trainer.args, trainer.state
    names = _HYPER_PARAMETERS + (_LORA if args.stage.startswith("lora_") else ())
    batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    facts = {**trainer.facts, "steps": state.global_step, "packs per step": batch}
    facts |= {name: getattr(args, name) for name in names}
    rows = "\n".join(f"| {name} | {_plain(value)} |" for name, value in facts.items())
    card.text = card.text.rstrip() + "\n" + _SECTION.format(rows=rows, table=trainer.trainable_table)
    card.data.tags = sorted({*(card.data.tags or []), *trainer._tag_names})
    if args.stage.startswith("lora_"):
        card.data.library_name = "peft"
        base = trainer.model.peft_config["default"].base_model_name_or_path
        card.data.base_model = base if base and not Path(base).exists() else None
    return card


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}: {entry}" for key, entry in value.items()) or "-"
    return str(getattr(value, "value", value)).replace("|", "\\|").replace("\n", " ")


__all__ = ["FACTS_FILE", "check_same_run", "training_card"]
