"""Benchmarks as callables: `evaluator(pipe, folder)` runs one and returns its report.

    from janus_hf.evaluation.evaluators import make_evaluator
    report = make_evaluator("pope", data="POPE.tsv")(pipe, "runs/pope")
    report.metrics[report.primary]

Every process of an `accelerate launch` makes the same call and takes its share. A run that was stopped goes on in its
folder.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..rewards.detectors import Detector
from ..rewards.mask2former import Mask2FormerDetector
from ..rewards.shapes_detector import ShapesDetector
from ..shapes import TAGS, make_drawing
from .benchmarks.answers import primary_metric
from .benchmarks.dpg import OFFICIAL_JUDGE, Judge, Quirks, evaluate_dpg
from .benchmarks.dpg_data import collect_grids, read_prompts
from .benchmarks.geneval import GenEval
from .benchmarks.geneval import read_prompts as read_geneval
from .benchmarks.image_metrics import PICTURE_METRICS
from .benchmarks.prompt_sets import read_geneval2, read_wise
from .benchmarks.protocol import BENCHMARKS as UNDERSTANDING
from .benchmarks.understanding import run_understanding
from .downloads import find_data
from .generate_run import draw_run, sample_path
from .report import Report
from .run_folder import processes, write_atomically
from .sheets import save_sheet


DRAWN_ONLY = ("geneval2", "wise")  # judged elsewhere, from what is drawn here
KNOWN = ("geneval", "dpg", *UNDERSTANDING, *DRAWN_ONLY)


class Evaluator(Protocol):
    """A benchmark."""

    @property
    def name(self) -> str:
        """A key of `paper.BENCHMARKS`."""
        ...

    @property
    def primary_metric(self) -> str:
        """The key of the report's `metrics`."""
        ...

    def __call__(self, pipe: Any, folder: str | os.PathLike[str]) -> Report:
        """Run it on a `JanusProPipeline`, keep everything in the folder, return the report."""
        ...


@dataclass
class Understanding:
    """POPE, MME, MMBench, SEED-Bench, GQA, MMMU or MM-Vet, with the authors' prompts.

    Args:
        name: The benchmark.
        data: Its file; see `questions.read_questions`.
        images, batch_size, limit: As for `run_understanding`.
        max_new_tokens: The same; None is its default.
    """

    name: str
    data: str | os.PathLike[str]
    images: str | os.PathLike[str] | None = None
    batch_size: int = 8
    limit: int | None = None
    max_new_tokens: int | None = None

    @property
    def primary_metric(self) -> str:
        """What the papers report."""
        return primary_metric(self.name)

    def __call__(self, pipe: Any, folder: str | os.PathLike[str]) -> Report:
        """See `run_understanding`."""
        options = {} if self.max_new_tokens is None else {"max_new_tokens": self.max_new_tokens}
        report = run_understanding(
            pipe,
            self.name,
            self.data,
            images=self.images,
            folder=folder,
            batch_size=self.batch_size,
            limit=self.limit,
            **options,
        )
        return _saved(report, folder)


@dataclass
class DPGBench:
    """DPG-Bench: four pictures per prompt, every proposition asked of each.

    Args:
        data: `dpg_bench.csv`, or the folder that has it.
        judge: Who answers.
        quirks: Habits of the official script to follow; default all.
        seed, batch_size, drawing: As for `GenEval`.
        limit: Only so many prompts, the first of the file.
    """

    data: str | os.PathLike[str]
    judge: Judge
    quirks: Quirks | None = None
    seed: int = 0
    batch_size: int = 8
    limit: int | None = None
    drawing: Mapping[str, Any] = field(default_factory=dict)

    name = "dpg"

    @property
    def primary_metric(self) -> str:
        """Named after the judge, unless it is the official one."""
        return "overall" if self.judge.name == OFFICIAL_JUDGE else f"dpg[{self.judge.name}]"

    def __call__(self, pipe: Any, folder: str | os.PathLike[str]) -> Report:
        """Draw, collect the grids where the official script looks for them (`FOLDER/grids`), judge."""
        prompts = dict(list(read_prompts(self.data).items())[: self.limit])
        run = draw_run(
            pipe,
            self.name,
            [{"prompt": prompt, "item_id": item} for item, prompt in prompts.items()],
            folder,
            images_per_prompt=4,
            seed=self.seed,
            batch_size=self.batch_size,
            drawing=self.drawing,
        )
        if processes().is_main_process:
            collect_grids(run.folder, list(prompts), run.folder / "grids")
        processes().wait_for_everyone()
        report = evaluate_dpg(
            run.folder / "grids",
            self.data,
            self.judge,
            folder=run.folder / f"answers-{self.judge.name}",
            quirks=self.quirks,
            items=list(prompts),
        )
        report.settings |= run.record
        if processes().is_main_process and report.rows:
            drawn = [row["item_id"] for row in report.rows]
            save_sheet(
                run.folder,
                [run.folder / "grids" / f"{item}.png" for item in drawn],
                [prompts[item] for item in drawn],
                [row["score"] for row in report.rows],
                pass_mark=0.5,
            )
        return _saved(report, folder)


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


def shapes_items(prompts_per_tag: int, seed: int = 0) -> list[dict[str, Any]]:
    """The small world's prompts in GenEval's layout."""
    rng = np.random.default_rng(seed)
    return [make_drawing(tag, rng).metadata for tag in TAGS for _ in range(prompts_per_tag)]


def make_evaluator(name: str, data: str | os.PathLike[str] | None = None, **options: Any) -> Evaluator:
    """An evaluator by its name.

    Args:
        name: One of `KNOWN`.
        data: The benchmark's file; None downloads the published one where its licence allows.
        options: Those of the evaluator; for "geneval" also `limit`, and `detector`, a model's name or "shapes": the
            small world's prompts (`prompts_per_tag` of each kind) and its exact detector.

    Raises:
        ValueError: If the name is unknown, naming the known ones, or of `PICTURE_METRICS`.
        FileNotFoundError: If the data are neither there nor to be downloaded; says where to get them.
    """
    if (limit := options.get("limit")) is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}.")
    if name in PICTURE_METRICS:
        raise ValueError(
            f"{name!r} measures pictures that are there: janus_hf.evaluation.benchmarks.image_metrics, or "
            f"janus-hf eval {name}."
        )
    if name not in KNOWN:
        raise ValueError(f"{name!r} is not a benchmark of this package. Known: {', '.join(KNOWN)}.")
    if name == "geneval":
        limit, detector = options.pop("limit", None), options.pop("detector", None)
        if detector == "shapes" and data is None:
            return GenEval(
                shapes_items(options.pop("prompts_per_tag", 100))[:limit], ShapesDetector(), name="shapes", **options
            )
        return GenEval(read_geneval(find_data(name, data))[:limit], _detector(detector), **options)
    path = find_data(name, data)
    if name == "dpg":
        return DPGBench(path, **options)
    return PromptSet(name, path, **options) if name in DRAWN_ONLY else Understanding(name, path, **options)


def _detector(chosen: Detector | str | None) -> Detector:
    if chosen == "shapes":
        return ShapesDetector()
    if chosen is None or isinstance(chosen, str):
        return Mask2FormerDetector(*([chosen] if chosen else []), device=processes().device)
    return chosen


def _saved(report: Report, folder: str | os.PathLike[str]) -> Report:
    if processes().is_main_process:
        report.save(Path(folder))
    return report


__all__ = [
    "DRAWN_ONLY",
    "KNOWN",
    "UNDERSTANDING",
    "DPGBench",
    "Evaluator",
    "PromptSet",
    "Understanding",
    "make_evaluator",
    "shapes_items",
]
