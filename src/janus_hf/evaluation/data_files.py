"""Reading the files that benchmarks are published in."""

import json
import os
from pathlib import Path
from typing import Any

from .paper import look_up


def _existing(path: str | os.PathLike[str], benchmark: str) -> Path:
    if not Path(path).exists():
        raise FileNotFoundError(f"Expected the data at {path}; there is nothing. Get {look_up(benchmark).data}.")
    return Path(path)


def _json_lines(path: Path) -> list[dict[str, Any]]:
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines if line.strip()]


def _found(row: Any) -> str:
    return f"{sorted(row)}" if isinstance(row, dict) else type(row).__name__

