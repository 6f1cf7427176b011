"""Results on disk as they come: one JSON line each, one file per process, so that a run that was stopped goes on."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .run_folder import processes


class Journal:
    """Lines `{"index": ..., ...}` in `answers.rank{k}.jsonl` of a folder; without a folder nothing is kept.

    Each process appends to its own file and reads everybody's, whatever number of processes wrote them.

    Args:
        folder: Opened by `open_run`, or None.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def read(self) -> dict[str, dict[str, Any]]:
        """What is there, by index. A line that was cut off when a process was killed is as if it were not there.

        All processes must call it, before any of them appends.
        """
        found: dict[str, dict[str, Any]] = {}
        for path in sorted(self.folder.glob("answers.rank*.jsonl")) if self.folder else []:
            for line in path.read_bytes().split(b"\n"):
                try:
                    entry = json.loads(line)
                except ValueError:
                    continue
                found[entry["index"]] = entry
        processes().wait_for_everyone()
        return found

    def append(self, *entries: Mapping[str, Any]) -> None:
        """Write this process's new entries."""
        if self.folder is None:
            return
        path = self.folder / f"answers.rank{processes().process_index}.jsonl"
        with path.open("ab+") as file:
            if file.tell():
                file.seek(-1, 2)
                if file.read(1) != b"\n":
                    file.write(b"\n")
            for entry in entries:
                file.write((json.dumps(dict(entry), ensure_ascii=False) + "\n").encode())


__all__ = ["Journal"]
