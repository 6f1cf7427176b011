"""DPG-Bench, a benchmark of image generation: a judge answers yes-or-no questions about every statement of a prompt.

The statements are called propositions; the module `propositions` computes the scores. The official judge, the model
mPLUG, exists only in the library modelscope, so it runs in a process of its own (`rewards.mplug.MplugJudge`). Other
judges give other numbers, so their name is part of the names of the metrics.
"""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from ...arguments import COMMON, check_values, checked
from ...generation.batch_sizes import BatchSize
from ...protocols import ImagePipeline
from ...rewards.image_io import UNREADABLE, open_rgb
from ..downloads import find_data
from ..generate_run import draw_run
from ..journal import Journal
from ..report import Report, save_once
from ..run_folder import environments, open_run, processes
from ..sharing import progress_bar_of, share_answers
from ..sheets import save_sheet
from .dpg_data import collect_grids, read_prompts, read_propositions, split_grid
from .propositions import PromptScore, Proposition, Quirks, check_answers, score_prompt, summarise


OFFICIAL_JUDGE = "mplug"
OFFICIAL_PROMPTS = 1065

_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


class Judge(Protocol):
    """Interface of judges, which answer questions about an image.

    The `name` of a judge is part of the names of the metrics; only the judge named "mplug" is the official one.
    """

    name: str

    def __call__(self, image: Image.Image, questions: Sequence[str]) -> list[str]:
        """Answer questions about an image.

        Returns:
            One answer per question, in lower case. Only "yes" counts as a yes. "" means that the judge gave no answer.
        """
        ...


@dataclass
class DPGBench:
    """Evaluator of DPG-Bench: generate four images per prompt, and have every proposition about each of them judged.

    A proposition is one statement of a prompt, such as "there is a dog".

    Args:
        data: Path of `dpg_bench.csv`, or of the folder that has it.
        judge: Judge that answers the questions about the images.
        quirks: Habits of the official script to follow; None follows all of them.
        seed: Seed of the whole run, from which the seed of each image is derived.
        batch_size: Number of images that each process generates at a time, or "auto".
        limit: Use only this number of prompts, the first ones of the file. None uses all.
        drawing: Arguments of the pipeline's call, such as `guidance_scale` and `temperature`.
    """

    data: str | os.PathLike[str]
    judge: Judge
    quirks: Quirks | None = None
    seed: int = 0
    batch_size: BatchSize = 8
    limit: int | None = None
    drawing: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_values({name: value for name, value in vars(self).items() if value is not None}, COMMON)

    name = "dpg"

    @property
    def primary_metric(self) -> str:
        """Name of the main metric: "overall" for the official judge, otherwise "dpg[NAME OF THE JUDGE]"."""
        return "overall" if self.judge.name == OFFICIAL_JUDGE else f"dpg[{self.judge.name}]"

    def __call__(self, pipe: ImagePipeline, folder: str | os.PathLike[str] | None) -> Report:
        """Generate four images per prompt, collect their 2x2 grids in `FOLDER/grids`, judge them and save the report.

        See `Evaluator` for the arguments and `evaluate_dpg` for the report.

        Raises:
            TypeError: If `folder` is None.
            ValueError: If the folder was made with other settings.
        """
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
        grids = run.folder / "grids"
        # Every process judges some of these grids, so all wait until they are complete.
        if processes().is_main_process:
            collect_grids(run.folder, list(prompts), grids)
        processes().wait_for_everyone()
        with progress_bar_of(pipe) as shown:
            report = evaluate_dpg(
                grids,
                self.data,
                self.judge,
                # Use one folder per judge, because the answers of two judges to the same images must not mix.
                folder=run.folder / f"answers-{self.judge.name}",
                quirks=self.quirks,
                items=list(prompts),
                shows_progress=shown,
            )
        report.settings |= run.record
        if processes().is_main_process and report.rows:
            scored = [row["item_id"] for row in report.rows]
            save_sheet(
                run.folder,
                [grids / f"{item}.png" for item in scored],
                [prompts[item] for item in scored],
                [row["score"] for row in report.rows],
                pass_mark=0.5,
            )
        return save_once(report, run.folder)


def make_dpg(name: str, data: str | os.PathLike[str] | None, **options: Any) -> DPGBench:
    """Return the evaluator of DPG-Bench.

    Args:
        name: "dpg".
        data: Path of the benchmark's data, as for `DPGBench`. None downloads the published file.
        options: Further arguments of `DPGBench`.
    """
    return DPGBench(find_data(name, data), **options)


@checked()
def evaluate_dpg(
    grids: str | os.PathLike[str],
    data: str | os.PathLike[str],
    judge: Judge,
    *,
    folder: str | os.PathLike[str] | None = None,
    quirks: Quirks | None = None,
    items: Sequence[str] | None = None,
    shows_progress: bool = True,
) -> Report:
    """Judge existing images of DPG-Bench's prompts, and return the report.

    In a launch of several processes, each process judges its share of the prompts, and all return the same report.

    Args:
        grids: Folder of image files `{item_id}.png`, one per prompt, each a grid of 2x2 images; `collect_grids` makes
            it.
        data: Path of the folder `dpg_bench`, or of `dpg_bench.csv`.
        judge: Judge that answers the questions about the images. Unless it is mPLUG, the metrics are named
            `dpg[judge]`, `entity[judge]` and so on, because they are not comparable with published ones.
        folder: Folder in which answers are kept as they come, and in which a run that was stopped continues. None
            keeps nothing on disk.
        quirks: Habits of the official script to follow; None follows all of them.
        items: Identifiers (`item_id`) of the prompts to judge. None judges all.
        shows_progress: False shows no progress bar.

    Returns:
        The report. Its primary metric is `overall` (or `dpg[judge]`); its rows are the prompts that could be scored.
        Its `failures` list images that are missing or cannot be read, images that belong to no prompt, and prompts
        without all their answers.

    Raises:
        FileNotFoundError: If data or images are missing.
        ValueError: If the data are not in the expected layout, or `folder` was made with other settings.
    """
    quirks = quirks or Quirks()
    known = read_propositions(data, skip_first_row=quirks.skip_first_row)
    wanted = {item: known[item] for item in (known if items is None else items) if item in known}
    found = _grid_files(Path(grids))
    # Record hashes of the content, because answers must not be reused after images or propositions have changed.
    settings = {
        "benchmark": "dpg",
        "judge": getattr(judge, "source", judge.name),
        "grids_sha256": _hash_files([found[item] for item in sorted(wanted.keys() & found.keys())]),
        "propositions_sha256": hashlib.sha256(repr(wanted).encode()).hexdigest(),
        "quirks": asdict(quirks),
    }
    opened = open_run(folder, settings) if folder is not None else None
    answers, problems = share_answers(
        {item: (found.get(item), propositions) for item, propositions in wanted.items()},
        lambda batch: [_ask(judge, grid, propositions) for grid, propositions in batch],
        Journal(opened, "answers"),
        # One prompt makes a whole batch: four images, each with all questions of the prompt.
        batch_size=1,
        title="judging",
        unit="prompt",
        shows_progress=shows_progress,
    )

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
                # Remove the parents, because the failure may be due to a parent that the judge was not asked about.
                parentless = [replace(proposition, parents=()) for proposition in propositions]
                zeros.append(score_prompt(item, parentless, [["no"] * len(parentless)] * 4, quirks))
    # If only some prompts are judged, grids of other prompts are not failures.
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


def _ask(judge: Judge, grid: Path | None, propositions: Sequence[Proposition]) -> list[list[str]] | ValueError:
    """Ask the judge the questions of all propositions about each of the four images in a grid.

    Args:
        judge: Judge that answers the questions.
        grid: Image file of the 2x2 grid; None if there is no such file.
        propositions: Propositions of the prompt.

    Returns:
        One list of answers per image, in the order of the propositions. If there is no grid, it cannot be read, or
        answers are missing, the error is returned (not raised).
    """
    try:
        if grid is None:
            raise ValueError("no image of this name")
        images = split_grid(_open(grid))
        answers = [judge(image, [proposition.question for proposition in propositions]) for image in images]
        check_answers(propositions, answers)
    except ValueError as error:
        return error
    return answers


def _open(path: Path) -> Image.Image:
    """Open an image file and return it in RGB; raise ValueError if it cannot be read."""
    try:
        return open_rgb(path)
    except UNREADABLE as error:
        raise ValueError(f"{path.name} cannot be read ({error})") from error


def _labelled(metrics: dict[str, float], judge: Judge) -> tuple[dict[str, float], str]:
    """Add the judge's name to the names of the metrics, as in "entity[JUDGE]", unless it is the official judge.

    The metric `overall` is then called "dpg[JUDGE]".

    Returns:
        The metrics by new name, and the name of the primary one.
    """
    if judge.name == OFFICIAL_JUDGE:
        return metrics, "overall"
    names = {name: f"{'dpg' if name == 'overall' else name}[{judge.name}]" for name in metrics}
    return {names[name]: value for name, value in metrics.items()}, f"dpg[{judge.name}]"


def _protocol(judge: Judge, quirks: Quirks, prompts: int) -> str:
    """Return the sentences of the report that say how the scores were measured.

    Args:
        judge: Judge that answered the questions.
        quirks: Habits of the official script that were followed.
        prompts: Number of judged prompts.
    """
    official = judge.name == OFFICIAL_JUDGE
    answerer = "mPLUG-large" if official else judge.name
    sentences = [
        f"{prompts} prompts, 4 images each in a 2x2 grid; {answerer} answers yes or no to every proposition; a "
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
    """Return the image files of a folder by their name without suffix, which is the `item_id` of a prompt.

    Raises:
        FileNotFoundError: If there is no such folder.
    """
    if not folder.is_dir():
        raise FileNotFoundError(
            f"`grids` must be a folder of 2x2 grids, {{item_id}}.png, got {folder}: generate the images first."
        )
    return {path.stem: path for path in sorted(folder.iterdir()) if path.suffix.lower() in _SUFFIXES}


def _hash_files(paths: Sequence[Path]) -> str:
    """Return one SHA-256, in hexadecimal, over the names and contents of all files.

    A run records this hash in `settings.json`. If it were computed in another way, earlier runs could not be
    continued.
    """
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


__all__ = ["DPGBench", "Judge", "evaluate_dpg", "make_dpg"]
