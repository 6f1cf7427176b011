"""GenEval 2 and WISE: their prompts from files that the user has, and what their judges' verdicts add up to.

Neither is part of this package (GenEval 2 is CC-BY-NC-4.0), and neither judge is run here: Soft-TIFA takes the
probabilities that a vision-language model gives to the right answers, WiScore the marks that a judge gives to
pictures. WISE means its first release, as in the leaderboards; a later one asks for a single verdict of 0 or 1.
"""

import json

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..generate_run import draw_run, sample_path
from ..report import Report
from ..run_folder import processes, write_atomically
from ..sheets import save_sheet
from .geneval2 import read_geneval2
from .wise import read_wise


_ROWS = {"geneval2": ("prompt", "gm"), "wise": ("prompt_id", "score")}  # what a row is about, and its score


@dataclass
class PromptSet:
    """Pictures of a benchmark whose judge runs elsewhere: GenEval 2, WISE.

    Args:
        name: The benchmark.
        data: The user's copy of its prompts.
        seed, batch_size, limit, drawing: As for `GenEval`.
    """

    name: str
    data: str | os.PathLike[str]
    seed: int = 0
    batch_size: int = 8
    limit: int | None = None
    drawing: Mapping[str, Any] = field(default_factory=dict)

    primary_metric = "none"

    def __call__(self, pipe: Any, folder: str | os.PathLike[str]) -> Report:
        """Draw one picture per prompt; the report has no metrics and says where the pictures lie."""
        if self.name == "geneval2":
            items: list[dict[str, Any]] = [{"prompt": item.prompt} for item in read_geneval2(self.data)]
        else:
            items = [{"prompt": item.prompt, "prompt_id": item.prompt_id} for item in read_wise(self.data)]
        items = items[: self.limit]
        run = draw_run(
            pipe,
            self.name,
            items,
            folder,
            images_per_prompt=1,
            seed=self.seed,
            batch_size=self.batch_size,
            drawing=self.drawing,
        )
        rows = [item | {"image": str(sample_path(Path(), n, 0))} for n, item in enumerate(items)]
        if processes().is_main_process:
            self._hand_over(run.folder, rows)
        protocol = "Drawn, not judged: janus_hf.evaluation.benchmarks.prompt_sets adds up the judge's verdicts."
        return _saved(Report(self.name, {}, self.primary_metric, protocol, run.record, rows), folder)

    def _hand_over(self, folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
        """What the official judges take: GenEval 2 a file of prompts and paths, WISE pictures by their prompt's id."""
        if self.name == "geneval2":
            paths = {row["prompt"]: str((folder / row["image"]).resolve()) for row in rows}
            write_atomically(folder / "images.json", (json.dumps(paths, indent=2) + "\n").encode())
        else:
            for row in rows:
                write_atomically(folder / "by_id" / f"{row['prompt_id']}.png", (folder / row["image"]).read_bytes())


def save_verdicts(report: Report, folder: str | os.PathLike[str]) -> None:
    """Put what the judge's verdicts add up to beside the pictures: `report.json`, `report.md`, `results.jsonl`, and
    `sheet.png` with the best and the worst.

    Args:
        report: Of `score_geneval2` or `score_wise`. It gets the settings that the pictures were drawn with.
        folder: Where they were drawn (`janus-hf eval geneval2`, `wise`).

    Raises:
        FileNotFoundError: If no drawing has finished there.
        ValueError: If a prompt of the report was not drawn there.
    """
    folder = Path(folder)
    key, score = _ROWS[report.benchmark]
    report.settings = Report.load(folder).settings | report.settings
    drawn = {}
    for path in sorted(folder.glob("*/metadata.jsonl")):
        item = json.loads(path.read_text(encoding="utf-8"))
        drawn[item[key]] = (item["prompt"], path.parent / "samples" / "0000.png")
    if strange := [row[key] for row in report.rows if row[key] not in drawn]:
        raise ValueError(
            f"Expected verdicts about what was drawn in {folder}; {len(strange)} prompts were not, such as "
            f"{strange[0]!r}. Name the folder that the judged pictures are from."
        )
    report.save(folder)
    if report.rows:
        prompts, pictures = zip(*(drawn[row[key]] for row in report.rows), strict=True)
        save_sheet(folder, pictures, prompts, [row[score] for row in report.rows], pass_mark=0.5)


__all__ = ["PromptSet", "save_verdicts"]
