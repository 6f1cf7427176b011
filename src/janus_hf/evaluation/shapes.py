"""How well a model of the small world draws and answers, judged exactly.

Drawing follows GenEval: several pictures per prompt, the share that the rules accept per tag, and the unweighted mean
over tags. Answers must be equal to the only right one. Both are also reported on combinations that training never
showed.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..shapes import QUESTION_KINDS, TAGS, ask, detect, make_drawing, picture, random_scene
from .scoring import score


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
        drawing_settings: Passed to the pipeline: `guidance_scale`, `temperature`, ...
    """
    report = ShapesReport()
    sizes = {"prompts": prompts_per_tag, "images": images_per_prompt, "batch_size": batch_size}
    report.drawing = _drawing(pipe, seed, False, drawing_settings, **sizes)
    report.answers = _answers(pipe, seed + 1, False, questions, batch_size)
    if held_out:
        report.drawing_held_out = _drawing(pipe, seed + 2, True, drawing_settings, **sizes)
        report.answers_held_out = _answers(pipe, seed + 3, True, questions, batch_size)
    return report


def _drawing(
    pipe: Any, seed: int, held_out: bool, settings: dict[str, Any], *, prompts: int, images: int, batch_size: int
) -> dict[str, float]:
    rng = np.random.default_rng(seed)
    shares = {}
    for tag in TAGS:
        drawings = [make_drawing(tag, rng, held_out=held_out) for _ in range(prompts)]
        seeds = rng.integers(2**31, size=prompts * images)
        pictures = pipe(
            [drawing.prompt for drawing in drawings],
            num_images_per_prompt=images,
            generator=[torch.Generator().manual_seed(int(s)) for s in seeds],
            batch_size=batch_size,
            **settings,
        ).images
        verdicts = [score(detect(image), drawings[i // images].metadata) for i, image in enumerate(pictures)]
        shares[tag] = float(np.mean([verdict.correct for verdict in verdicts]))
    return shares


def _answers(pipe: Any, seed: int, held_out: bool, count: int, batch_size: int) -> dict[str, float]:
    rng = np.random.default_rng(seed)
    scenes = [random_scene(rng, held_out=held_out) for _ in range(count)]
    asked = [ask(scene, rng) for scene in scenes]
    given = answer(pipe, [picture(scene) for scene in scenes], [q.question for q in asked], batch_size=batch_size)
    correct: dict[str, list[bool]] = {kind: [] for kind in QUESTION_KINDS}
    for question, text in zip(asked, given, strict=True):
        correct[question.kind].append(text == question.answer)
    return {kind: float(np.mean(values)) for kind, values in correct.items() if values}


def answer(pipe: Any, pictures: Iterable[Image.Image], questions: Iterable[str], *, batch_size: int = 64) -> list[str]:
    """Greedy answers to one question per picture, in batches."""
    pairs = list(zip(pictures, questions, strict=True))
    answers: list[str] = []
    for start in range(0, len(pairs), batch_size):
        conversations = [
            [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": question}]}]
            for image, question in pairs[start : start + batch_size]
        ]
        inputs = pipe.processor.apply_chat_template(
            conversations, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        ).to(pipe.device)
        output = pipe.model.generate(**inputs, do_sample=False, max_new_tokens=24)
        new = output[:, inputs["input_ids"].shape[1] :]
        answers += [text.strip() for text in pipe.processor.batch_decode(new, skip_special_tokens=True)]
    return answers


__all__ = ["ShapesReport", "answer", "evaluate_shapes"]
