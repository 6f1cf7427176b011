"""GenEval: draw its prompts, find what is on the pictures, judge by its rules.

Ghosh et al., "GenEval: An Object-Focused Framework for Evaluating Text-to-Image Alignment" (arXiv 2310.11513). The
folder this writes is the official scorer's as well.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.utils import gather_object
from tqdm.auto import tqdm

from ...rewards.detectors import Detector
from ...rewards.geneval_rules import Rules, score
from ...rewards.image_io import UNREADABLE, open_rgb
from ..generate_run import draw_run, sample_path
from ..paper import look_up
from ..report import Report
from ..run_folder import environments, processes
from ..sheets import save_sheet


OFFICIAL_PROMPTS = 553
TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")


def read_prompts(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """GenEval's `evaluation_metadata.jsonl`, or any prompts in its layout.

    Raises:
        FileNotFoundError: If there is no such file; says where to get it.
        ValueError: If a line is not in the layout.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no {path}. GenEval's prompts: {look_up('geneval').data}.")
    items = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            item = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number}: expected a JSON object ({error}).") from error
        if not isinstance(item, dict) or not {"tag", "prompt", "include"} <= item.keys():
            found = sorted(item) if isinstance(item, dict) else type(item).__name__
            raise ValueError(f"{path}, line {number}: expected 'tag', 'prompt' and 'include', found {found}.")
        items.append(item)
    if not items:
        raise ValueError(f"{path} holds no prompts.")
    return items


@dataclass
class GenEval:
    """The benchmark as a callable on a pipeline.

    Args:
        items: Prompts with their requirements (`read_prompts`).
        detector: Finds objects; `Mask2FormerDetector` for photographs.
        images_per_prompt: Pictures per prompt.
        seed: Of the whole run; every picture has its own (`drawing.picture_seed`).
        batch_size: Pictures drawn, and looked at, at a time.
        drawing: Passed to the pipeline: `guidance_scale`, `temperature`, ...
        rules: Thresholds other than the official ones.
        name: What the report calls it: prompts of another world are not to stand beside the papers' numbers.
    """

    items: Sequence[Mapping[str, Any]]
    detector: Detector
    images_per_prompt: int = 4
    seed: int = 0
    batch_size: int = 8
    drawing: Mapping[str, Any] = field(default_factory=dict)
    rules: Rules | None = None
    name: str = "geneval"

    primary_metric = "overall"

    def __call__(self, pipe: Any, folder: str | os.PathLike[str]) -> Report:
        """Draw, look, judge; every process of a launch calls it.

        Args:
            pipe: A `JanusProPipeline`.
            folder: Of this run; one that was stopped goes on.

        Returns:
            The report, also saved in the folder.

        Raises:
            ValueError: If the folder was made with other settings.
        """
        run = draw_run(
            pipe,
            self.name,
            self.items,
            folder,
            images_per_prompt=self.images_per_prompt,
            seed=self.seed,
            batch_size=self.batch_size,
            drawing=self.drawing,
        )
        return self.judge(run.folder, run.record)

    def judge(self, folder: str | os.PathLike[str], settings: Mapping[str, Any] | None = None) -> Report:
        """Judge pictures that lie in the folder already, by whomever they were drawn.

        Returns:
            As `__call__`.
        """
        folder, state = Path(folder), processes()
        for number, item in enumerate(self.items):
            drawn = folder / f"{number:05d}" / "metadata.jsonl"
            if drawn.is_file() and json.loads(drawn.read_text(encoding="utf-8").splitlines()[0]) != dict(item):
                raise ValueError(f"{drawn.parent} was drawn from another prompt than {item['prompt']!r}.")
        pairs = [(n, k) for n in range(len(self.items)) for k in range(self.images_per_prompt)]
        own = pairs[state.process_index :: state.num_processes]
        rows, failures = [], []
        batches = [own[start : start + self.batch_size] for start in range(0, len(own), self.batch_size)]
        for batch in tqdm(batches, desc="judging", unit="batch", disable=not state.is_main_process):
            lines, problems = self._judge(folder, batch)
            rows += lines
            failures += problems
        rows, failures = gather_object(rows), gather_object(failures)
        rows.sort(key=lambda row: row["filename"])
        report = Report(
            benchmark=self.name,
            metrics=summarise(rows),
            primary=self.primary_metric,
            protocol=self._protocol(),
            settings={
                **(settings or {"environments": environments(None)}),
                "detector": self.detector.name,
                "rules": asdict(self.rules or Rules()),
            },
            rows=rows,
            failures=sorted(failures),
        )
        if state.is_main_process:
            report.save(folder)
        if rows and state.is_main_process:
            save_sheet(
                folder,
                [folder / row["filename"] for row in rows],
                [row["prompt"] for row in rows],
                [float(row["correct"]) for row in rows],
                groups=[row["tag"] for row in rows],
                pass_mark=1.0,
            )
        return report

    def _protocol(self) -> str:
        tags = {item["tag"] for item in self.items}
        sentences = [
            f"{len(self.items)} prompts, {self.images_per_prompt} pictures each.",
            f"Objects found by {self.detector.name}; {'GenEval' if self.rules is None else 'changed'} rules; mean of "
            "the tags.",
        ]
        if missing := [tag for tag in TAGS if tag not in tags]:
            sentences.append(f"Without {', '.join(missing)}: not comparable with the whole benchmark.")
        if len(self.items) < OFFICIAL_PROMPTS and self.name == "geneval":
            sentences.append(f"The whole benchmark has {OFFICIAL_PROMPTS} prompts.")
        return " ".join([*sentences, look_up(self.name).remarks]).strip()

    def _judge(self, folder: Path, batch: Sequence[tuple[int, int]]) -> tuple[list[dict[str, Any]], list[str]]:
        failures, seen, images = [], [], []
        for number, picture in batch:
            path = sample_path(folder, number, picture)
            try:
                images.append(open_rgb(path))
            except UNREADABLE:
                failures.append(f"{path.relative_to(folder)} is missing or cannot be read")
            else:
                seen.append((number, path))
        if not images:
            return [], failures
        rows = []
        items = [self.items[number] for number, _ in seen]
        for (_, path), item, found in zip(seen, items, self.detector.detect(images, items), strict=True):
            verdict = score(found, item, self.rules)
            rows.append(
                {
                    "filename": path.relative_to(folder).as_posix(),
                    "tag": item["tag"],
                    "prompt": item["prompt"],
                    "correct": verdict.correct,
                    "reason": "\n".join(verdict.reasons),
                    "metadata": json.dumps(item, ensure_ascii=False),
                    "details": json.dumps(
                        [[d.label, round(d.score, 4), [round(x, 1) for x in d.box], d.color] for d in found]
                    ),
                }
            )
        return rows, failures


def summarise(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Per tag the share of correct pictures, `overall` their unweighted mean; besides, the shares of all pictures and
    of prompts with any correct picture. Empty without rows.
    """
    if not rows:
        return {}
    tags = list(dict.fromkeys([tag for tag in TAGS if any(r["tag"] == tag for r in rows)] + [r["tag"] for r in rows]))
    metrics = {tag: float(np.mean([row["correct"] for row in rows if row["tag"] == tag])) for tag in tags}
    metrics["overall"] = float(np.mean(list(metrics.values())))
    metrics["pictures"] = float(np.mean([row["correct"] for row in rows]))
    prompts: dict[str, bool] = {}
    for row in rows:
        prompts[row["metadata"]] = prompts.get(row["metadata"], False) or row["correct"]
    metrics["prompts"] = float(np.mean(list(prompts.values())))
    return metrics


__all__ = ["TAGS", "GenEval", "read_prompts", "summarise"]


def shapes_items(prompts_per_tag: int, seed: int = 0) -> list[dict[str, Any]]:
    """The small world's prompts in GenEval's layout."""
    rng = np.random.default_rng(seed)
    return [make_drawing(tag, rng).metadata for tag in TAGS for _ in range(prompts_per_tag)]

