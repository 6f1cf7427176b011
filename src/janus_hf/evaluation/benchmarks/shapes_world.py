"""The shapes benchmark: measure how well a model generates images of coloured shapes and answers questions about them.

The scenes are coloured shapes on a board (`janus_hf.shapes`), so simple that rules can judge every image and every
question has one correct answer. The score of generation follows GenEval: several images per prompt; for each tag (kind
of prompt), the share of images that the rules accept; and the unweighted mean over tags. Generation and answers are
both measured a second time on held-out combinations of colour and shape, which training never showed.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ... import answering
from ...arguments import COMMON, check_values
from ...generation.batch_sizes import BatchSize
from ...protocols import ImagePipeline
from ...rewards.geneval_rules import score
from ...rewards.image_io import open_rgb
from ...rewards.shapes_detector import detect
from ...shapes import QUESTION_KINDS, TAGS, ask, make_drawing, picture, random_scene
from ..generate_run import DrawnRun, draw_run, sample_path
from ..journal import Journal
from ..report import Report, save_once
from ..run_folder import environments, processes
from ..sharing import progress_bar_of, share_answers
from ..sheets import save_sheet


_PROTOCOL = (
    "Fresh prompts, judged exactly by GenEval's rules: shares of images, mean of the tags. Fresh questions: shares of "
    "answers that are equal to the only correct one. Held out are combinations that training never showed."
)


@dataclass
class ShapesWorld:
    """Evaluator of the shapes benchmark. It makes prompts and questions about coloured shapes, and needs no data.

    Args:
        prompts_per_tag: Number of new prompts for each of the six tags (kinds of prompts).
        images_per_prompt: Number of images per prompt, each with a seed of its own.
        questions: Number of new questions; all kinds of questions are about equally frequent.
        held_out: Also measure on held-out combinations of colour and shape, which training never showed, with the same
            numbers of prompts and questions.
        seed: Seed of the prompts, of the scenes that the questions are about, and of the generated images.
        batch_size: Number of images generated, or questions answered, at a time. "auto" generates as many as fit into
            the memory, and answers 64 questions.
        drawing: Arguments of the pipeline's call, such as `guidance_scale` and `temperature`.
    """

    prompts_per_tag: int = 100
    images_per_prompt: int = 4
    questions: int = 600
    held_out: bool = True
    seed: int = 0
    batch_size: BatchSize = 64
    drawing: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_values({name: value for name, value in vars(self).items() if value is not None}, COMMON)

    name = "shapes"
    primary_metric = "overall"

    def __call__(self, pipe: ImagePipeline, folder: str | os.PathLike[str] | None = None) -> Report:
        """Generate images, answer questions, judge both and return the report; see `Evaluator`.

        Args:
            pipe: Pipeline of a model that was trained on images of coloured shapes (`janus_hf.shapes`).
            folder: Folder in which images, answers, the report and `sheet.png` are kept. A run that was stopped
                continues there, and several processes share the work. None keeps nothing on disk, and every process
                generates all images. The numbers are the same.

        Returns:
            The report. Its metrics are shares in [0, 1]: `overall` (primary) and one per tag (kind of prompt) for
            generation; the same with the prefix "held out: "; then `overall` and one per kind of question with the
            prefixes "answers: " and "answers, held out: ". The function `tables` prints them.

        Raises:
            ValueError: If the folder was made with other settings.
        """
        parts = (False, True) if self.held_out else (False,)
        items = [item for part in parts for item in self._items(part)]
        asked = [question for part in parts for question in self._questions(part)]
        run = None if folder is None else self._generate_into(pipe, items, folder)
        if run is None:
            images: Iterable[Image.Image] = self._generate(pipe, items)
            record: dict[str, Any] = {"environments": environments(None)}
            names: list[dict[str, str]] = [{} for item in items for _ in item["seeds"]]
        else:
            paths = [sample_path(run.folder, n, k) for n in range(len(items)) for k in range(self.images_per_prompt)]
            # `map` opens one image at a time, so that memory does not grow with their number.
            images, record = map(open_rgb, paths), run.record
            names = [{"filename": path.relative_to(run.folder).as_posix()} for path in paths]
        image_rows = [name | row for name, row in zip(names, _judge_images(items, images), strict=True)]
        answer_rows = _judge_answers(asked, self._answers(pipe, asked, run))
        report = Report(
            self.name,
            _metrics(image_rows, answer_rows),
            self.primary_metric,
            _PROTOCOL,
            record,
            [*image_rows, *answer_rows],
        )
        if run is not None:
            save_once(report, run.folder)
            if processes().is_main_process:
                _save_sheet(run.folder, image_rows)
        return report

    # Prompts and questions

    def _items(self, held_out: bool) -> list[dict[str, Any]]:
        """Make random prompts of every tag (kind of prompt), with their requirements in GenEval's layout.

        Args:
            held_out: Whether the prompts name combinations of colour and shape that training never showed.

        Returns:
            One dictionary per prompt: GenEval's keys (`tag`, `prompt`, `include`, ...), `held_out`, and `seeds`, one
            per image.
        """
        # Prompts and questions each have two random streams: one for held-out combinations, one for all others.
        rng = np.random.default_rng(self.seed + 2 * held_out)
        items = []
        for tag in TAGS:
            drawings = [make_drawing(tag, rng, held_out=held_out) for _ in range(self.prompts_per_tag)]
            seeds = rng.integers(2**31, size=(self.prompts_per_tag, self.images_per_prompt)).tolist()
            # The seeds are part of the entry, so that runs with and without a folder generate the same images.
            items += [
                drawing.metadata | {"held_out": held_out, "seeds": own}
                for drawing, own in zip(drawings, seeds, strict=True)
            ]
        return items

    def _questions(self, held_out: bool) -> list[dict[str, Any]]:
        """Make random questions about random scenes of coloured shapes.

        Args:
            held_out: Whether the scenes have combinations of colour and shape that training never showed.

        Returns:
            One dictionary per question, with the keys `held_out`, `kind`, `question`, `answer` (the correct one) and
            `scene` (the image that the question is about).
        """
        rng = np.random.default_rng(self.seed + 1 + 2 * held_out)
        scenes = [random_scene(rng, held_out=held_out) for _ in range(self.questions)]
        asked = [ask(scene, rng) for scene in scenes]
        return [
            {
                "held_out": held_out,
                "kind": one.kind,
                "question": one.question,
                "answer": one.answer,
                "scene": picture(scene),
            }
            for scene, one in zip(scenes, asked, strict=True)
        ]

    # Running the model

    def _generate_into(
        self, pipe: ImagePipeline, items: Sequence[Mapping[str, Any]], folder: str | os.PathLike[str]
    ) -> DrawnRun:
        """Generate the images of all prompts into a folder; return the `DrawnRun` that holds folder and settings.

        Args:
            pipe: Pipeline that generates the images.
            items: Prompts with their requirements and seeds, as `_items` returns them.
            folder: Folder of the run.
        """
        return draw_run(
            pipe,
            self.name,
            items,
            folder,
            images_per_prompt=self.images_per_prompt,
            seed=self.seed,
            batch_size=self.batch_size,
            drawing=self.drawing,
            # The folder keeps the answers as well, so the number of questions is one of its settings.
            questions=self.questions,
        )

    @torch.no_grad()
    def _generate(self, pipe: ImagePipeline, items: Sequence[Mapping[str, Any]]) -> list[Image.Image]:
        """Generate the images of all prompts in memory, and return them as one list, prompt by prompt.

        Args:
            pipe: Pipeline that generates the images.
            items: Prompts with their requirements and seeds, as `_items` returns them.
        """
        return pipe(
            [item["prompt"] for item in items],
            num_images_per_prompt=self.images_per_prompt,
            generator=[torch.Generator().manual_seed(seed) for item in items for seed in item["seeds"]],
            batch_size=self.batch_size,
            **{key: value for key, value in self.drawing.items() if value is not None},
        ).images

    def _answers(self, pipe: ImagePipeline, asked: Sequence[Mapping[str, Any]], run: DrawnRun | None) -> list[str]:
        """Have the model answer all questions, and return its answers in the order of the questions.

        Each process of a launch asks its share of the questions.

        Args:
            pipe: Pipeline of the model that answers.
            asked: Questions with their images, as `_questions` returns them.
            run: Run in whose folder the answers are kept as they come. None keeps nothing on disk.
        """
        at_once = 64 if self.batch_size == "auto" else self.batch_size

        def ask_batch(batch: Sequence[Mapping[str, Any]]) -> list[str]:
            scenes, questions = ([one[key] for one in batch] for key in ("scene", "question"))
            return answer(pipe, scenes, questions, batch_size=at_once)

        with progress_bar_of(pipe) as shown:
            answers, _ = share_answers(
                {str(index): one for index, one in enumerate(asked)},
                ask_batch,
                Journal(None if run is None else run.folder),
                batch_size=at_once,
                title="answering",
                unit="question",
                shows_progress=shown,
            )
        return [answers[str(index)] for index in range(len(asked))]


def answer(
    pipe: ImagePipeline, pictures: Iterable[Image.Image], questions: Iterable[str], *, batch_size: int = 64
) -> list[str]:
    """Have a model answer one question about each image, greedily and in batches, and return the answers in order."""
    pairs = list(zip(pictures, questions, strict=True))
    answers: list[str] = []
    for start in range(0, len(pairs), batch_size):
        conversations = [
            [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": question}]}]
            for image, question in pairs[start : start + batch_size]
        ]
        answers += answering.answer(pipe.model, pipe.processor, conversations, max_new_tokens=24)
    return answers


# Scoring


def _judge_images(items: Sequence[Mapping[str, Any]], images: Iterable[Image.Image]) -> list[dict[str, Any]]:
    """Judge generated images by GenEval's rules.

    Args:
        items: Prompts with their requirements and `seeds`, one per image.
        images: The images of all prompts, in the order of prompts and seeds.

    Returns:
        One row of the report per image: `held_out`, `tag`, `prompt`, whether it is `correct`, and the `reason` if not.
    """
    rows = []
    each = (item for item in items for _ in item["seeds"])
    for item, image in zip(each, images, strict=True):
        verdict = score(detect(image), item)
        rows.append(
            {key: item[key] for key in ("held_out", "tag", "prompt")}
            | {"correct": verdict.correct, "reason": "\n".join(verdict.reasons)}
        )
    return rows


def _judge_answers(asked: Sequence[Mapping[str, Any]], given: Sequence[str]) -> list[dict[str, Any]]:
    """Compare a model's answers with the correct ones.

    Args:
        asked: Questions with their correct answers.
        given: The model's answers, in the order of the questions.

    Returns:
        One row of the report per answer: the question's entries without the image, the model's answer (`given`), and
        whether it is `correct`, which means equal to the correct answer.
    """
    return [
        {key: value for key, value in one.items() if key != "scene"}
        | {"given": text, "correct": text == one["answer"]}
        for one, text in zip(asked, given, strict=True)
    ]


def _metrics(image_rows: Sequence[Mapping[str, Any]], answer_rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Compute the metrics of the shapes benchmark from the rows of its report.

    Args:
        image_rows: Rows of generated images, each with `tag` (kind of prompt), `held_out` and `correct`.
        answer_rows: Rows of answers, each with `kind` (of question), `held_out` and `correct`.

    Returns:
        Shares in [0, 1] by name of the metric; `ShapesWorld.__call__` lists the names.
    """
    metrics: dict[str, float] = {}
    for prefix, rows, key, names, held_out in (
        ("", image_rows, "tag", TAGS, False),
        ("held out: ", image_rows, "tag", TAGS, True),
        ("answers: ", answer_rows, "kind", QUESTION_KINDS, False),
        ("answers, held out: ", answer_rows, "kind", QUESTION_KINDS, True),
    ):
        chosen = [row for row in rows if row["held_out"] is held_out]
        groups = {name: [row["correct"] for row in chosen if row[key] == name] for name in names}
        shares = {name: float(np.mean(verdicts)) for name, verdicts in groups.items() if verdicts}
        if shares:
            metrics[f"{prefix}overall"] = float(np.mean(list(shares.values())))
            metrics |= {f"{prefix}{name}": share for name, share in shares.items()}
    return metrics


def tables(report: Report) -> str:
    """Return two Markdown tables of a report of `ShapesWorld`: scores of generation, and scores of answers.

    Each table has a column for combinations of colour and shape that training showed, and a column for held-out ones.
    """
    lines = []
    for title, prefix, names in (("drawing", "", TAGS), ("answering", "answers: ", QUESTION_KINDS)):
        held_out = "held out: " if not prefix else "answers, held out: "
        lines += [f"| {title} | score | never seen together |", "|---|---|---|"]
        for name in names:
            if f"{prefix}{name}" in report.metrics:
                values = [report.metrics.get(f"{part}{name}", float("nan")) for part in (prefix, held_out)]
                lines.append(f"| {name} | {' | '.join(f'{value:.3f}' for value in values)} |")
        means = [report.metrics[key] for part in (prefix, held_out) if (key := f"{part}overall") in report.metrics]
        lines += [f"| **overall** | {' | '.join(f'**{mean:.3f}**' for mean in means)} |", ""]
    return "\n".join(lines)


def _save_sheet(folder: Path, image_rows: Sequence[Mapping[str, Any]]) -> None:
    """Write `sheet.png` into a folder: for each kind of prompt, images that the rules accept and images they reject.

    Args:
        folder: Folder of the run.
        image_rows: Rows of the report, one per generated image.
    """
    save_sheet(
        folder,
        [folder / row["filename"] for row in image_rows],
        [row["prompt"] for row in image_rows],
        [float(row["correct"]) for row in image_rows],
        groups=[f"{row['tag']}{', held out' * row['held_out']}" for row in image_rows],
        pass_mark=1.0,
    )


def make_shapes(name: str, data: str | os.PathLike[str] | None, **options: Any) -> ShapesWorld:
    """Return the evaluator of the shapes benchmark.

    Args:
        name: "shapes".
        data: None, because the benchmark makes its own prompts and questions.
        options: Arguments of `ShapesWorld`.

    Raises:
        ValueError: If `data` is not None.
    """
    if data is not None:
        raise ValueError(f"`data` must be None for {name!r}, got {data}: it makes its own prompts and questions.")
    return ShapesWorld(**options)


__all__ = ["ShapesWorld", "answer", "make_shapes", "tables"]
