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


@dataclass(frozen=True)
class Quirks:
    """Habits of the official script, on by default for the sake of comparison.

    Args:
        skip_first_row: The first proposition of the file is not asked. If others of its prompt depend on it, that
            prompt cannot be scored.
        last_crop_categories: Scores of categories come from the last picture of a grid only, and parents do not matter
            to them. Otherwise from all pictures, with parents.
        drop_failed: Prompts that could not be scored are left out of the mean. Otherwise every answer to them was no.
            They are reported either way, which the official script does not do.
    """

    skip_first_row: bool = True
    last_crop_categories: bool = True
    drop_failed: bool = True


@dataclass(frozen=True)
class PromptScore:
    """What a prompt's pictures scored.

    Args:
        item_id: The prompt.
        pictures: Share of propositions that hold, per picture; in [0, 1].
        categories: Scores (0 or 1) that count for each category.
    """

    item_id: str
    pictures: tuple[float, ...]
    categories: Mapping[str, Sequence[float]]

    @property
    def score(self) -> float:
        """Mean over the pictures."""
        return sum(self.pictures) / len(self.pictures)


class Judge(Protocol):
    """Answers questions about a picture.

    `name` labels the metrics; only the judge named "mplug" is the official one.
    """

    name: str

    def __call__(self, image: Image.Image, questions: Sequence[str]) -> list[str]:
        """One answer per question, in lower case; "yes" is a yes and anything else is none. "" is no answer."""
        ...


# Arithmetic


def score_image(answers: Mapping[int, str], dependencies: Mapping[int, Sequence[int]]) -> dict[int, float]:
    """Scores of one picture's propositions, with parents: 1 if the answer is exactly "yes" and no parent is at 0.

    Propositions are gone through in the order of `dependencies`, and parents are looked up as they are by then: a
    child that stands before its parent sees the parent's own answer only, not what the parent's parents make of it.

    Args:
        answers: By number.
        dependencies: Parents by number; 0 is no parent.

    Raises:
        ValueError: If a proposition depends on one that was not asked.
    """
    scores = {number: float(answers[number] == "yes") for number in dependencies}
    for number, parents in dependencies.items():
        for parent in parents:
            if parent == 0:
                continue
            if parent not in scores:
                raise ValueError(f"proposition {number} depends on {parent}, which was not asked")
            if scores[parent] == 0:
                scores[number] = 0.0
                break
    return scores


def score_prompt(
    item_id: str,
    propositions: Sequence[Proposition],
    answers: Sequence[Sequence[str]],
    quirks: Quirks | None = None,
) -> PromptScore:
    """Score a prompt's pictures.

    Args:
        item_id: The prompt.
        propositions: What was asked.
        answers: Per picture, in the order of the propositions.
        quirks: Only `last_crop_categories` matters.

    Raises:
        ValueError: As in `score_image`, or there is not one answer per proposition, or one is empty.
    """
    if not answers:
        raise ValueError("expected at least one picture; got none")
    dependencies = {proposition.id: proposition.parents for proposition in propositions}
    pictures = []
    counted: dict[str, list[float]] = {}
    for picture, given in enumerate(answers):
        if len(given) != len(propositions) or not all(given):
            raise ValueError(
                f"the judge answered {sum(map(bool, given))} of {len(propositions)} questions about picture {picture}"
            )
        by_number = {proposition.id: answer for proposition, answer in zip(propositions, given, strict=True)}
        scores = score_image(by_number, dependencies)
        pictures.append(sum(scores.values()) / len(scores))
        if (quirks or Quirks()).last_crop_categories:
            scores, counted = {number: float(answer == "yes") for number, answer in by_number.items()}, {}
        for proposition in propositions:
            counted.setdefault(proposition.category, []).append(scores[proposition.id])
    return PromptScore(item_id, tuple(pictures), counted)


def summarise(scores: Sequence[PromptScore]) -> dict[str, float]:
    """Mean over prompts, and over the propositions of each broad and each detailed category; all times 100.

    Returns:
        `overall`, then the broad categories ("entity", "relation", ...), then the detailed ones.
    """
    detailed: dict[str, list[float]] = {}
    broad: dict[str, list[float]] = {}
    for score in scores:
        for category, values in score.categories.items():
            detailed.setdefault(category, []).extend(values)
            broad.setdefault(category.split("-")[0].strip(), []).extend(values)
    if not scores:
        return {}
    groups = (
        {"overall": [score.score for score in scores]} | dict(sorted(broad.items())) | dict(sorted(detailed.items()))
    )
    return {name: 100 * sum(values) / len(values) for name, values in groups.items()}


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
