"""`Journal`, which writes the answers of a model or judge to disk as they come, so that a stopped run can continue."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .run_folder import processes


class Journal:
    """Answers on disk: lines `{"index": ..., FIELD: answer}` in the files `answers.rank{k}.jsonl` of a run's folder.

    Each process appends to its own file. It reads the files of all processes, also those of an earlier launch with
    another number of processes.

    Args:
        folder: Folder of the run, which `open_run` has created or checked. None keeps nothing on disk: `append` does
            nothing, and `read` finds no answers.
        field: Key under which a line holds the answer.
    """

    def __init__(self, folder: Path | None, field: str = "answer") -> None:
        self.folder, self.field = folder, field

    def read(self) -> dict[str, Any]:
        """Return the recorded answers by index of their question.

        Every process must call this before any process appends, and the call waits for all of them. A line that was
        cut off because its process was killed is ignored.
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
        """Append answers to the file of this process.

        Args:
            answers: Answers by index of their question; JSON values.
        """
        if self.folder is None or not answers:
            return
        path = self.folder / f"answers.rank{processes().process_index}.jsonl"
        with path.open("ab+") as file:
            # If the last line was cut off, end it; otherwise the first new answer would become part of it.
            if file.tell():
                file.seek(-1, 2)
                if file.read(1) != b"\n":
                    file.write(b"\n")
            for index, answer in answers.items():
                line = json.dumps({"index": index, self.field: answer}, ensure_ascii=False)
                file.write(f"{line}\n".encode())


__all__ = ["Journal"]
