"""Resume a trainer from its checkpoints, and keep its loss log."""

import json
from pathlib import Path

from transformers import Trainer


def last_checkpoint(folder: Path) -> str | None:
    """Return the path of the trainer's last checkpoint in `folder`, None if there is none."""
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    return str(found[-1]) if found else None


def record_log(folder: Path, trainer: Trainer) -> None:
    """Write the trainer's log history to `log.json` in `folder`, from which `draw_figures` plots the loss curves."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "log.json").write_text(json.dumps(trainer.state.log_history, indent=1) + "\n")
