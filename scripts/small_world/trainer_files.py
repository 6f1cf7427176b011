"""Functions that find the last checkpoint of a trainer and save its log of losses."""

import json
from pathlib import Path

from transformers import Trainer


def last_checkpoint(folder: Path) -> str | None:
    """Return the path of the last checkpoint (`checkpoint-STEP`) in a trainer's folder, or None if there is none."""
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    return str(found[-1]) if found else None


def record_log(folder: Path, trainer: Trainer) -> None:
    """Write the trainer's log history to `log.json` in `folder`; the script plots the loss curves from this file."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "log.json").write_text(json.dumps(trainer.state.log_history, indent=1) + "\n")
