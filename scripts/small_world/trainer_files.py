"""Checkpoints and logs of a trainer."""

import json
from pathlib import Path
from typing import Any


def last_checkpoint(folder: Path) -> str | None:
    """The trainer's last checkpoint, if it wrote one."""
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    return str(found[-1]) if found else None


def record_log(folder: Path, trainer: Any) -> None:
    """Keep the loss curve."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "log.json").write_text(json.dumps(trainer.state.log_history, indent=1) + "\n")
