"""Benchmarks that an external judge scores, GenEval 2 and WISE: generate their images, and later save the scores.

The modules `geneval2` and `wise` read the prompts and compute the scores from the judge's verdicts.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...arguments import COMMON, check_values
from ...files import write_atomically
from ...generation.batch_sizes import BatchSize
from ...protocols import ImagePipeline
from ..downloads import find_data
from ..generate_run import draw_run, sample_path
from ..report import Report, save_once
from ..run_folder import processes
from ..sheets import save_sheet
from .geneval2 import read_geneval2
from .wise import read_wise


# By benchmark, two keys of a row of the judged report: the one that identifies the prompt, and that of the score.
_ROWS = {"geneval2": ("prompt", "gm"), "wise": ("prompt_id", "score")}


@dataclass
class PromptSet:
    """Evaluator of GenEval 2 or WISE. It generates the images and does not judge them, because the judge is external.

    Args:
        name: "geneval2" or "wise".
        data: Path of the user's copy of the benchmark's prompts.
        seed: Seed of the whole run, from which the seed of each image is derived.
        batch_size: Number of images that each process generates at a time, or "auto".
        limit: Use only this number of prompts, the first ones. None uses all.
        drawing: Arguments of the pipeline's call, such as `guidance_scale` and `temperature`.
    """

    name: str
    data: str | os.PathLike[str]
    seed: int = 0
    batch_size: BatchSize = 8
    limit: int | None = None
    drawing: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_values({name: value for name, value in vars(self).items() if value is not None}, COMMON)

    primary_metric = "none"

    def __call__(self, pipe: ImagePipeline, folder: str | os.PathLike[str] | None) -> Report:
        """Generate one image per prompt, and write the images where the official judge reads them; see `Evaluator`.

        Returns:
            A report without metrics. Each of its rows names a prompt and the path of its image within the folder.

        Raises:
            TypeError: If `folder` is None.
            ValueError: If the folder was made with other settings.
        """
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
            self._write_for_judge(run.folder, rows)
        protocol = "Drawn, not judged: janus_hf.evaluation.benchmarks.prompt_sets saves the judge's verdicts."
        return save_once(Report(self.name, {}, self.primary_metric, protocol, run.record, rows), run.folder)

    def _write_for_judge(self, folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write the files for the benchmark's official judge into the folder of a run.

        GenEval 2's judge reads `images.json`, which holds the path of each image by prompt. WISE's judge reads images
        that are named after the id of their prompt, so these are copied to `by_id/{prompt_id}.png`.

        Args:
            folder: Folder of the run.
            rows: Rows of the report: the prompt, its `prompt_id` (WISE only) and the path of its image within the
                folder.
        """
        if self.name == "geneval2":
            # Absolute paths, because the judge runs in another folder.
            paths = {row["prompt"]: str((folder / row["image"]).resolve()) for row in rows}
            write_atomically(folder / "images.json", json.dumps(paths, indent=2) + "\n")
        else:
            for row in rows:
                write_atomically(folder / "by_id" / f"{row['prompt_id']}.png", (folder / row["image"]).read_bytes())


def make_prompt_set(name: str, data: str | os.PathLike[str] | None, **options: Any) -> PromptSet:
    """Return the evaluator of GenEval 2 or WISE.

    Args:
        name: "geneval2" or "wise".
        data: Path of the user's copy of the benchmark's prompts.
        options: Further arguments of `PromptSet`.

    Raises:
        FileNotFoundError: If `data` is None or there is nothing at this path. The message says where to get the
            prompts.
    """
    return PromptSet(name, find_data(name, data), **options)


def save_verdicts(report: Report, folder: str | os.PathLike[str]) -> None:
    """Save the report of an external judge's verdicts in the folder of the judged images.

    The files are `report.json`, `report.md`, `results.jsonl`, and `sheet.png` with the best and the worst images.

    Args:
        report: A report of `score_geneval2` or `score_wise`. The settings that the images were generated with are
            added to it.
        folder: Folder of the run that generated the images (`janus-hf eval geneval2` or `janus-hf eval wise`).

    Raises:
        FileNotFoundError: If no run has finished in the folder.
        ValueError: If the report has a prompt for which the run did not generate an image.
    """
    folder = Path(folder)
    key, score = _ROWS[report.benchmark]
    report.settings = Report.load(folder).settings | report.settings
    generated = {}
    for path in sorted(folder.glob("*/metadata.jsonl")):
        item = json.loads(path.read_text(encoding="utf-8"))
        generated[item[key]] = (item["prompt"], path.parent / "samples" / "0000.png")
    if unknown := [row[key] for row in report.rows if row[key] not in generated]:
        raise ValueError(
            f"`report` must be about images of {folder}, but {len(unknown)} of its prompts have none there, such as "
            f"{unknown[0]!r}: name the folder of the judged images."
        )
    report.save(folder)
    if report.rows:
        prompts, images = zip(*(generated[row[key]] for row in report.rows), strict=True)
        save_sheet(folder, images, prompts, [row[score] for row in report.rows], pass_mark=0.5)


__all__ = ["PromptSet", "make_prompt_set", "save_verdicts"]
