"""How well a model of the small world draws and answers, judged exactly.

Drawing follows GenEval: several pictures per prompt, the share that the rules accept per tag, and the unweighted mean
over tags. Answers must be equal to the only right one. Both are also reported on combinations that training never
showed.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from PIL import Image

from ... import answering
from ...rewards.geneval_rules import score
from ...rewards.image_io import open_rgb
from ...rewards.shapes_detector import detect
from ...shapes import QUESTION_KINDS, TAGS, ask, make_drawing, picture, random_scene
from ..generate_run import DrawnRun, draw_run, sample_path
from ..journal import Journal
from ..report import Report
from ..run_folder import processes
from ..sheets import save_sheet


@dataclass
class ShapesReport:
    """Shares in [0, 1]. `overall` is the primary metric of drawing, `answers_overall` that of understanding."""

    drawing: dict[str, float] = field(default_factory=dict)  # per tag
    drawing_held_out: dict[str, float] = field(default_factory=dict)
    answers: dict[str, float] = field(default_factory=dict)  # per kind of question
    answers_held_out: dict[str, float] = field(default_factory=dict)

    @property
    def overall(self) -> float:
        """Unweighted mean over the tags."""
        return float(np.mean(list(self.drawing.values())))

    @property
    def answers_overall(self) -> float:
        """Unweighted mean over the kinds of question."""
        return float(np.mean(list(self.answers.values())))

    def to_markdown(self) -> str:
        """Two tables, with the held-out combinations beside."""
        lines = []
        for title, seen, held_out in (
            ("drawing", self.drawing, self.drawing_held_out),
            ("answering", self.answers, self.answers_held_out),
        ):
            lines += [f"| {title} | score | never seen together |", "|---|---|---|"]
            lines += [f"| {name} | {seen[name]:.3f} | {held_out.get(name, float('nan')):.3f} |" for name in seen]
            means = [float(np.mean(list(values.values()))) for values in (seen, held_out) if values]
            lines += [f"| **overall** | {' | '.join(f'**{mean:.3f}**' for mean in means)} |", ""]
        return "\n".join(lines)


@torch.no_grad()
def evaluate_shapes(
    pipe: Any,
    *,
    prompts_per_tag: int = 100,
    images_per_prompt: int = 4,
    questions: int = 600,
    held_out: bool = True,
    seed: int = 0,
    batch_size: int = 64,
    folder: str | os.PathLike[str] | None = None,
    **drawing_settings: Any,
) -> ShapesReport:
    """Draw fresh prompts and ask fresh questions.

    Args:
        pipe: A `JanusProPipeline` of a model of the small world.
        prompts_per_tag: Fresh prompts for each of the six tags.
        images_per_prompt: Pictures per prompt, each with a seed of its own.
        questions: Fresh questions in all; kinds are about equally frequent.
        held_out: Also judge combinations that training never showed.
        seed: Of prompts, scenes and pictures.
        batch_size: Pictures drawn, or questions answered, at a time.
        folder: Where pictures, answers, a `Report` and `sheet.png` are kept; a run that was stopped goes on there, and
            several processes share the work. None keeps nothing, and every process does everything. The numbers are
            the same.
        drawing_settings: Passed to the pipeline: `guidance_scale`, `temperature`, ...

    Raises:
        ValueError: If the folder was made with other settings; says which differ.
    """
    parts = (False, True) if held_out else (False,)
    items = [item for part in parts for item in _items(seed + 2 * part, part, prompts_per_tag, images_per_prompt)]
    asked = [one for part in parts for one in _questions(seed + 1 + 2 * part, part, questions)]
    if folder is None:
        images = _draw(pipe, items, images_per_prompt, batch_size, drawing_settings)
        scenes, texts = ([one[key] for one in asked] for key in ("scene", "question"))
        given = answer(pipe, scenes, texts, batch_size=batch_size)
        return _summarise(_judge_pictures(items, images), _judge_answers(asked, given))
    run = draw_run(
        pipe,
        "shapes",
        items,
        folder,
        images_per_prompt=images_per_prompt,
        seed=seed,
        batch_size=batch_size,
        drawing=drawing_settings,
        questions=questions,
    )
    paths = [sample_path(run.folder, number, k) for number in range(len(items)) for k in range(images_per_prompt)]
    drawn = _judge_pictures(items, map(open_rgb, paths))
    answered = _judge_answers(asked, _shared_answers(pipe, run.folder, asked, batch_size))
    report = _summarise(drawn, answered)
    if processes().is_main_process:
        _save(run, report, paths, drawn, answered)
    return report


# What is asked for


def _items(seed: int, held_out: bool, prompts: int, images: int) -> list[dict[str, Any]]:
    """Prompts of every tag in GenEval's layout, with the seeds of their pictures."""
    rng = np.random.default_rng(seed)
    items = []
    for tag in TAGS:
        drawings = [make_drawing(tag, rng, held_out=held_out) for _ in range(prompts)]
        seeds = rng.integers(2**31, size=(prompts, images)).tolist()
        items += [
            drawing.metadata | {"held_out": held_out, "seeds": own}
            for drawing, own in zip(drawings, seeds, strict=True)
        ]
    return items


def _questions(seed: int, held_out: bool, count: int) -> list[dict[str, Any]]:
    """Questions with the pictures they are about."""
    rng = np.random.default_rng(seed)
    scenes = [random_scene(rng, held_out=held_out) for _ in range(count)]
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


# What comes


def _draw(
    pipe: Any, items: Sequence[Mapping[str, Any]], images: int, batch_size: int, settings: Mapping[str, Any]
) -> list[Image.Image]:
    return list(
        pipe(
            [item["prompt"] for item in items],
            num_images_per_prompt=images,
            generator=[torch.Generator().manual_seed(seed) for item in items for seed in item["seeds"]],
            batch_size=batch_size,
            **settings,
        ).images
    )


def _shared_answers(pipe: Any, folder: Path, asked: Sequence[Mapping[str, Any]], batch_size: int) -> list[str]:
    """As `answer`, kept in the folder as they come and shared among the processes."""
    state, journal = processes(), Journal(folder)
    done = {int(index): entry["answer"] for index, entry in journal.read().items()}
    own = [n for n in range(len(asked)) if n not in done][state.process_index :: state.num_processes]
    new: list[tuple[int, str]] = []
    for start in range(0, len(own), batch_size):
        batch = own[start : start + batch_size]
        scenes, questions = ([asked[n][key] for n in batch] for key in ("scene", "question"))
        given = list(zip(batch, answer(pipe, scenes, questions, batch_size=batch_size), strict=True))
        journal.append(*({"index": str(n), "answer": text} for n, text in given))
        new += given
    done |= dict(gather_object(new))
    return [done[n] for n in range(len(asked))]


# What it is worth


def _judge_pictures(items: Sequence[Mapping[str, Any]], images: Iterable[Image.Image]) -> list[dict[str, Any]]:
    """A row per picture."""
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
    """A row per answer."""
    return [
        {key: value for key, value in one.items() if key != "scene"}
        | {"given": text, "correct": text == one["answer"]}
        for one, text in zip(asked, given, strict=True)
    ]


def _summarise(drawn: Sequence[Mapping[str, Any]], answered: Sequence[Mapping[str, Any]]) -> ShapesReport:
    def shares(rows: Sequence[Mapping[str, Any]], key: str, names: Sequence[str], held_out: bool) -> dict[str, float]:
        groups = {
            name: [row["correct"] for row in rows if row[key] == name and row["held_out"] is held_out]
            for name in names
        }
        return {name: float(np.mean(values)) for name, values in groups.items() if values}

    return ShapesReport(
        *(shares(drawn, "tag", TAGS, held_out) for held_out in (False, True)),
        *(shares(answered, "kind", QUESTION_KINDS, held_out) for held_out in (False, True)),
    )


def _save(
    run: DrawnRun,
    report: ShapesReport,
    paths: Sequence[Path],
    drawn: Sequence[Mapping[str, Any]],
    answered: Sequence[Mapping[str, Any]],
) -> None:
    """Report and sheet. The metrics are those of both tables, one after the other."""
    metrics = {"overall": report.overall}
    for title, shares in (
        ("", report.drawing),
        ("held out: ", report.drawing_held_out),
        ("answers: ", report.answers),
        ("answers, held out: ", report.answers_held_out),
    ):
        if shares and title:
            metrics[f"{title}overall"] = float(np.mean(list(shares.values())))
        metrics |= {f"{title}{name}": value for name, value in shares.items()}
    protocol = (
        "Fresh prompts, judged exactly by GenEval's rules: shares of pictures, mean of the tags. Fresh questions: "
        "shares of answers that are equal to the only right one. Held out are combinations that training never showed."
    )
    named = [
        {"filename": path.relative_to(run.folder).as_posix(), **row} for path, row in zip(paths, drawn, strict=True)
    ]
    Report("shapes", metrics, "overall", protocol, run.record, [*named, *map(dict, answered)]).save(run.folder)
    save_sheet(
        run.folder,
        paths,
        [row["prompt"] for row in drawn],
        [float(row["correct"]) for row in drawn],
        groups=[f"{row['tag']}{', held out' * row['held_out']}" for row in drawn],
        pass_mark=1.0,
    )


# Asking


def answer(pipe: Any, pictures: Iterable[Image.Image], questions: Iterable[str], *, batch_size: int = 64) -> list[str]:
    """Greedy answers to one question per picture, in batches."""
    pairs = list(zip(pictures, questions, strict=True))
    answers: list[str] = []
    for start in range(0, len(pairs), batch_size):
        conversations = [
            [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": question}]}]
            for image, question in pairs[start : start + batch_size]
        ]
        answers += answering.answer(pipe.model, pipe.processor, conversations, max_new_tokens=24)
    return answers


__all__ = ["ShapesReport", "answer", "evaluate_shapes"]
