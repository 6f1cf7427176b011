"""Answers on disk as they come, so that a run that was stopped continues with the questions that are still open."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .run_folder import processes


class Journal:
    """Lines `{"index": ..., FIELD: answer}` in the files `answers.rank{k}.jsonl` of a folder, one file per process.

    Each process appends to its own file and reads the files of all processes, whatever number of processes wrote them.

    Args:
        folder: Folder of the run, opened by `open_run`. None keeps nothing: `read` finds no answers.
        field: Key of the answer in a line.
    """

    def __init__(self, folder: Path | None, field: str = "answer") -> None:
        self.folder, self.field = folder, field

    def read(self) -> dict[str, Any]:
        """Return the recorded answers by index. Every process must call it before any process appends.

        A line that was cut off when a process was killed is ignored.
        """
        found: dict[str, Any] = {}
        for path in sorted(self.folder.glob("answers.rank*.jsonl")) if self.folder else []:
            for line in path.read_bytes().split(b"\n"):
                try:
                    entry = json.loads(line)
                except ValueError:
                    continue
                found[entry["index"]] = entry[self.field]
        processes().wait_for_everyone()
        return found

    def append(self, answers: Mapping[str, Any]) -> None:
        """Write answers by index to the end of this process's file."""
        if self.folder is None or not answers:
            return
        path = self.folder / f"answers.rank{processes().process_index}.jsonl"
        with path.open("ab+") as file:
            # If the last line was cut off, end it, or the first new answer would be part of it.
            if file.tell():
                file.seek(-1, 2)
                if file.read(1) != b"\n":
                    file.write(b"\n")
            for index, answer in answers.items():
                line = json.dumps({"index": index, self.field: answer}, ensure_ascii=False)
                file.write(f"{line}\n".encode())


__all__ = ["Journal"]
