"""GenEval, a benchmark of image generation: generate images, detect the objects in them, and check them by rules.

Source: Ghosh et al., "GenEval: An Object-Focused Framework for Evaluating Text-to-Image Alignment" (arXiv 2310.11513).
The official scorer can run on the folder that this benchmark writes.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ...arguments import COMMON, check_values, checked
from ...generation.batch_sizes import BatchSize
from ...protocols import ImagePipeline
from ...rewards.detectors import Detector
from ...rewards.geneval_rules import Rules, score
from ...rewards.image_io import UNREADABLE, open_rgb
from ...rewards.mask2former import Mask2FormerDetector
from ...rewards.shapes_detector import ShapesDetector
from ...shapes import TAGS as SHAPES_TAGS
from ...shapes import make_drawing
from ..data_files import check_keys, read_json_lines
from ..downloads import find_data
from ..generate_run import draw_run, sample_path
from ..paper import look_up
from ..report import Report, save_once
from ..run_folder import environments, processes
from ..sharing import progress_bar_of, share
from ..sheets import save_sheet


OFFICIAL_PROMPTS = 553
# GenEval's kinds of prompts. Each has a metric of its own.
TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")


@checked()
def read_prompts(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Read GenEval's `evaluation_metadata.jsonl`, or a file of other prompts in the same layout.

    Returns:
        One dictionary per prompt, with at least `tag` (kind of prompt), `prompt` (text) and `include` (objects that
        the image must show).

    Raises:
        FileNotFoundError: If there is no such file. The message says where to get it.
        ValueError: If a line is not in this layout, or the file has no lines.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no {path}. GenEval's prompts: {look_up('geneval').data}.")
    items = [
        check_keys(item, ("tag", "prompt", "include"), f"{path}, line {number}")
        for number, item in read_json_lines(path)
    ]
    if not items:
        raise ValueError(f"{path} must hold prompts, got none: get {look_up('geneval').data}.")
    return items


@dataclass
class GenEval:
    """Evaluator of GenEval: generate images, detect the objects in them, and check these by GenEval's rules.

    Args:
        items: Prompts with their requirements, as `read_prompts` returns them.
        detector: Detector that finds the objects in an image; `Mask2FormerDetector` for photographs.
        images_per_prompt: Number of images per prompt.
        seed: Seed of the whole run, from which `generate_run.picture_seed` derives the seed of each image.
        batch_size: Number of images that each process generates, and later judges, at a time. "auto" generates as many
            as fit into the memory, and judges 8.
        drawing: Arguments of the pipeline's call, such as `guidance_scale` and `temperature`.
        rules: Thresholds of GenEval's rules; None stands for the official ones.
        name: Name of the benchmark in the report, a key of `paper.BENCHMARKS`. Prompts other than GenEval's need
            another name than "geneval", because the papers' numbers are not comparable with theirs.
    """

    items: Sequence[Mapping[str, Any]]
    detector: Detector
    images_per_prompt: int = 4
    seed: int = 0
    batch_size: BatchSize = 8
    drawing: Mapping[str, Any] = field(default_factory=dict)
    rules: Rules | None = None
    name: str = "geneval"

    def __post_init__(self) -> None:
        check_values({name: value for name, value in vars(self).items() if value is not None}, COMMON)

    primary_metric = "overall"

    def __call__(self, pipe: ImagePipeline, folder: str | os.PathLike[str] | None) -> Report:
        """Generate the images of all prompts, judge them, and save the report in the folder; see `Evaluator`.

        Raises:
            TypeError: If `folder` is None.
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
        with progress_bar_of(pipe) as shown:
            return self.judge(run.folder, run.record, shows_progress=shown)

    def judge(
        self,
        folder: str | os.PathLike[str],
        settings: Mapping[str, Any] | None = None,
        *,
        shows_progress: bool = True,
    ) -> Report:
        """Judge images that a folder already holds. Save the report and a sheet of the best and worst images there.

        Args:
            folder: Folder of images in GenEval's file layout, written by this package or by another program.
            settings: Settings with which the images were generated; they become part of the report.
            shows_progress: False shows no progress bar.

        Returns:
            The report. Images that are missing or cannot be read are in its `failures`.

        Raises:
            ValueError: If the folder's prompts differ from `items`.
        """
        folder = Path(folder)
        # Refuse images of other prompts, which would silently be judged by the wrong requirements.
        for number, item in enumerate(self.items):
            path = folder / f"{number:05d}" / "metadata.jsonl"
            if path.is_file() and json.loads(path.read_text(encoding="utf-8").splitlines()[0]) != dict(item):
                raise ValueError(
                    f"{path.parent} must hold images of {item['prompt']!r}, got those of another prompt: choose the "
                    "folder, or the prompts, that belong together."
                )
        rows, failures = share(
            [(number, index) for number in range(len(self.items)) for index in range(self.images_per_prompt)],
            lambda batch: self._judge_batch(folder, batch),
            batch_size=8 if self.batch_size == "auto" else self.batch_size,
            title="judging",
            unit="image",
            shows_progress=shows_progress,
        )
        # `share` returns rows process by process; sort them, so that the number of processes does not matter.
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
        save_once(report, folder)
        if rows and processes().is_main_process:
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
        """Return the sentences of GenEval's report that say how its scores were measured."""
        tags = {item["tag"] for item in self.items}
        sentences = [
            f"{len(self.items)} prompts, {self.images_per_prompt} images each.",
            f"Objects found by {self.detector.name}; {'GenEval' if self.rules is None else 'changed'} rules; mean of "
            "the tags.",
        ]
        if missing := [tag for tag in TAGS if tag not in tags]:
            sentences.append(f"Without {', '.join(missing)}: not comparable with the whole benchmark.")
        if len(self.items) < OFFICIAL_PROMPTS and self.name == "geneval":
            sentences.append(f"The whole benchmark has {OFFICIAL_PROMPTS} prompts.")
        return " ".join([*sentences, look_up(self.name).remarks]).strip()

    def _judge_batch(self, folder: Path, batch: Sequence[tuple[int, int]]) -> tuple[list[dict[str, Any]], list[str]]:
        """Judge some images of a folder.

        Args:
            folder: Folder of images in GenEval's file layout.
            batch: Images to judge, each as (number of the prompt, number of the image among those of the prompt).

        Returns:
            One row of the report per judged image, and one line of text per image that is missing or cannot be read.
        """
        failures, names, images, items = [], [], [], []
        for number, index in batch:
            path = sample_path(folder, number, index)
            name = path.relative_to(folder).as_posix()
            # A damaged file says nothing about the model, so count it as a failure and not as an incorrect image.
            try:
                images.append(open_rgb(path))
            except UNREADABLE:
                failures.append(f"{name} is missing or cannot be read")
            else:
                names.append(name)
                items.append(self.items[number])
        if not images:
            return [], failures
        rows = []
        for name, item, detections in zip(names, items, self.detector.detect(images, items), strict=True):
            verdict = score(detections, item, self.rules)
            rows.append(
                {
                    "filename": name,
                    "tag": item["tag"],
                    "prompt": item["prompt"],
                    "correct": verdict.correct,
                    "reason": "\n".join(verdict.reasons),
                    "metadata": json.dumps(item, ensure_ascii=False),
                    "details": json.dumps(
                        [[d.label, round(d.score, 4), [round(x, 1) for x in d.box], d.color] for d in detections]
                    ),
                }
            )
        return rows, failures


def summarise(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Compute GenEval's metrics from the rows of its report.

    Args:
        rows: One row per image, with its `tag` (kind of prompt), its verdict `correct`, and `metadata`, which identify
            the prompt.

    Returns:
        Shares in [0, 1] by name: for each tag, the share of its images that are correct; `overall`, the unweighted
        mean over the tags; `pictures`, the share of all images that are correct; `prompts`, the share of prompts with
        at least one correct image. Empty without rows.
    """
    if not rows:
        return {}
    # List the official tags in their order, then tags of prompts that are not GenEval's.
    tags = list(dict.fromkeys([tag for tag in TAGS if any(r["tag"] == tag for r in rows)] + [r["tag"] for r in rows]))
    metrics = {tag: float(np.mean([row["correct"] for row in rows if row["tag"] == tag])) for tag in tags}
    metrics["overall"] = float(np.mean(list(metrics.values())))
    metrics["pictures"] = float(np.mean([row["correct"] for row in rows]))
    # The metadata identify a prompt, because two prompts may have the same text.
    prompts: dict[str, bool] = {}
    for row in rows:
        prompts[row["metadata"]] = prompts.get(row["metadata"], False) or row["correct"]
    metrics["prompts"] = float(np.mean(list(prompts.values())))
    return metrics


@checked()
def shapes_items(prompts_per_tag: int, seed: int = 0) -> list[dict[str, Any]]:
    """Make random prompts about coloured shapes on a board, with their requirements in GenEval's layout.

    Args:
        prompts_per_tag: Number of prompts for each tag (kind of prompt).
        seed: Seed of all random choices.

    Returns:
        One dictionary per prompt, as `read_prompts` returns them.
    """
    rng = np.random.default_rng(seed)
    return [make_drawing(tag, rng).metadata for tag in SHAPES_TAGS for _ in range(prompts_per_tag)]


def make_geneval(
    name: str,
    data: str | os.PathLike[str] | None,
    *,
    detector: Detector | str | None = None,
    limit: int | None = None,
    prompts_per_tag: int | None = None,
    **options: Any,
) -> GenEval:
    """Return the evaluator of GenEval, or that of prompts about coloured shapes, which GenEval's rules judge as well.

    Args:
        name: "geneval".
        data: Path of a file of prompts. None stands for random prompts about coloured shapes if `detector` is
            "shapes", otherwise for the published prompts, which are downloaded.
        detector: A detector object; the name or folder of a Mask2Former model; "shapes" for the exact detector of
            coloured shapes; or None for a Mask2Former of the official detector's size.
        limit: Use only this number of prompts, the first ones. None uses all.
        prompts_per_tag: Number of random prompts about coloured shapes for each tag (kind of prompt); None is 100.
        options: Further arguments of `GenEval`.

    Raises:
        TypeError: If `prompts_per_tag` is given and the prompts come from a file.
    """
    if detector == "shapes":
        if data is None:
            items = shapes_items(100 if prompts_per_tag is None else prompts_per_tag)
            return GenEval(items[:limit], ShapesDetector(), name="shapes", **options)
        # With data, use this detector for the prompts of the file.
        detector = ShapesDetector()
    if prompts_per_tag is not None:
        raise TypeError(
            f"`prompts_per_tag` must be None for prompts from a file, got {prompts_per_tag}: use `limit` instead."
        )
    items = read_prompts(find_data(name, data))[:limit]
    if detector is None or isinstance(detector, str):
        detector = Mask2FormerDetector(*([detector] if detector else []), device=processes().device)
    return GenEval(items, detector, **options)


__all__ = ["TAGS", "GenEval", "make_geneval", "read_prompts", "shapes_items", "summarise"]
