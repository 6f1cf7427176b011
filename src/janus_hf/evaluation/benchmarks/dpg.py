"""DPG-Bench: a judge answers yes or no to every proposition about a picture; a proposition whose parent fails, fails.

The arithmetic is that of TencentQQGYLab/ELLA (dpg_bench/compute_dpg_bench.py), whose habits that move the scores are
in `Quirks`. The official judge, mPLUG, lives in modelscope only and runs as a process of its own
(`rewards.mplug.MplugJudge`); every other judge gives other numbers, and the metrics then bear its name.
"""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Protocol

from accelerate.utils import gather_object
from PIL import Image
from tqdm.auto import tqdm

from ...rewards.image_io import UNREADABLE, open_rgb
from ..journal import Journal
from ..report import Report
from ..run_folder import environments, open_run, processes
from .dpg_data import Proposition, read_propositions, split_grid


OFFICIAL_JUDGE = "mplug"
OFFICIAL_PROMPTS = 1065

_PICTURES = (".png", ".jpg", ".jpeg", ".webp")


class Judge(Protocol):
    """Answers questions about a picture.

    `name` labels the metrics; only the judge named "mplug" is the official one.
    """

    name: str

    def __call__(self, image: Image.Image, questions: Sequence[str]) -> list[str]:
        """One answer per question, in lower case; "yes" is a yes and anything else is none. "" is no answer."""
        ...



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

# Running it


def evaluate_dpg(
    grids: str | os.PathLike[str],
    data: str | os.PathLike[str],
    judge: Judge,
    *,
    folder: str | os.PathLike[str] | None = None,
    quirks: Quirks | None = None,
    items: Sequence[str] | None = None,
) -> Report:
    """Judge pictures that have been drawn.

    Under several processes each judges its share; all get the same report.

    Args:
        grids: Folder of `{item_id}.png`, 2x2 pictures each (`dpg_data.collect_grids`).
        data: The folder `dpg_bench`, or `dpg_bench.csv`.
        judge: Who answers. Unless it is mPLUG, the metrics are named `dpg[judge]`, `entity[judge]` and so on: they are
            not comparable with published ones.
        folder: Where the answers are kept as they come; a run that was stopped goes on there. None keeps nothing.
        quirks: Which habits of the official script to follow; default all.
        items: Judge only these prompts, by `item_id`; default all.

    Returns:
        `overall` (or `dpg[judge]`) is the primary metric; rows are the prompts that could be scored. Missing,
        unreadable and unknown pictures and answers that the judge did not give are in `failures`.

    Raises:
        FileNotFoundError: Data or pictures are not there.
        ValueError: The data have not the layout expected, or `folder` was made with other settings.
    """
    quirks = quirks or Quirks()
    known = read_propositions(data, skip_first_row=quirks.skip_first_row)
    wanted = {item: known[item] for item in (known if items is None else items) if item in known}
    found = _grid_files(Path(grids))
    settings = {
        "benchmark": "dpg",
        "judge": getattr(judge, "source", judge.name),
        "grids_sha256": _hash_files([found[item] for item in sorted(wanted.keys() & found.keys())]),
        "propositions_sha256": hashlib.sha256(repr(wanted).encode()).hexdigest(),
        "quirks": asdict(quirks),
    }
    opened = open_run(folder, settings) if folder is not None else None
    answers, problems = _ask_all(judge, wanted, found, Journal(opened))

    scores: list[PromptScore] = []
    zeros: list[PromptScore] = []
    failures = [f"{item}: no propositions are asked of it" for item in items or () if item not in known]
    for item, propositions in wanted.items():
        try:
            if item in problems:
                raise ValueError(problems[item])
            scores.append(score_prompt(item, propositions, answers[item], quirks))
        except ValueError as error:
            failures.append(f"{item}: {error}")
            if not quirks.drop_failed:
                parentless = [replace(proposition, parents=()) for proposition in propositions]
                zeros.append(score_prompt(item, parentless, [["no"] * len(parentless)] * 4, quirks))
    if items is None:
        failures += [f"{name}: no prompt of this name" for name in sorted(found.keys() - known.keys())]
    metrics, primary = _labelled(summarise(scores + zeros), judge)
    return Report(
        "dpg",
        metrics,
        primary,
        _protocol(judge, quirks, len(wanted)),
        settings | {"environments": environments(opened)},
        [{"item_id": s.item_id, "score": s.score, "pictures": list(s.pictures)} for s in scores],
        failures,
        failures_counted=len(zeros),
    )


def _labelled(metrics: dict[str, float], judge: Judge) -> tuple[dict[str, float], str]:
    """Metrics, and the primary one."""
    if judge.name == OFFICIAL_JUDGE:
        return metrics, "overall"
    names = {name: f"{'dpg' if name == 'overall' else name}[{judge.name}]" for name in metrics}
    return {names[name]: value for name, value in metrics.items()}, f"dpg[{judge.name}]"


def _protocol(judge: Judge, quirks: Quirks, prompts: int) -> str:
    official = judge.name == OFFICIAL_JUDGE
    answerer = "mPLUG-large" if official else judge.name
    sentences = [
        f"{prompts} prompts, 4 pictures each in a 2x2 grid; {answerer} answers yes or no to every proposition; a "
        "proposition whose parent failed counts as failed; mean over prompts, times 100."
    ]
    if prompts < OFFICIAL_PROMPTS:
        sentences.append(f"The whole benchmark has {OFFICIAL_PROMPTS} prompts.")
    if quirks != Quirks():
        sentences.append(f"Other than officially: {quirks}.")
    if not official:
        sentences.append(f"Judged by {judge.name} instead of mPLUG: not comparable with published scores.")
    return " ".join(sentences)


def _grid_files(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise FileNotFoundError(
            f"Expected a folder of 2x2 grids, {{item_id}}.png, at {folder}. Draw the prompts first."
        )
    return {path.stem: path for path in sorted(folder.iterdir()) if path.suffix.lower() in _PICTURES}


def _hash_files(paths: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def _ask_all(
    judge: Judge, items: Mapping[str, Sequence[Proposition]], grids: Mapping[str, Path], journal: Journal
) -> tuple[dict[str, list[list[str]]], dict[str, str]]:
    """Answers by prompt and picture, and what hindered the others."""
    state = processes()
    done = {item: entry["answers"] for item, entry in journal.read().items() if item in items}
    missing = [item for item in items if item not in done]
    problems: dict[str, str] = {}
    new: dict[str, list[list[str]]] = {}
    own = missing[state.process_index :: state.num_processes]
    for item in tqdm(own, desc="judging", unit="prompt", disable=not state.is_main_process):
        try:
            if item not in grids:
                raise ValueError("no picture of this name")
            pictures = split_grid(_open(grids[item]))
            new[item] = [judge(picture, [p.question for p in items[item]]) for picture in pictures]
        except ValueError as error:
            problems[item] = str(error)
            continue
        if all(len(given) == len(items[item]) and all(given) for given in new[item]):
            journal.append({"index": item, "answers": new[item]})
    for item, given in gather_object(list(new.items())):
        done[item] = given
    return done, dict(gather_object(list(problems.items())))


def _open(path: Path) -> Image.Image:
    try:
        return open_rgb(path)
    except UNREADABLE as error:
        raise ValueError(f"{path.name} cannot be read ({error})") from error


__all__ = [
    "Judge",
    "PromptScore",
    "Quirks",
    "evaluate_dpg",
    "score_image",
    "score_prompt",
    "summarise",
]
