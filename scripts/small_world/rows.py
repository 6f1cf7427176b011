"""Make and prepare the training data, in the columns of a user's own data (see `janus_hf.data`)."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch

from janus_hf import JanusProForConditionalGeneration, JanusProProcessor
from janus_hf.data import prepare
from janus_hf.shapes import Scene, ask, describe, make_drawing, picture, random_scene

from .settings import LENGTH, SEED


# Shares of GenEval's tags among the prompts. Numbers, positions and the binding of colours are learned last
# (measured), so their prompts are more frequent.
TAG_WEIGHTS = {
    "single_object": 0.04,
    "two_object": 0.08,
    "counting": 0.26,
    "colors": 0.08,
    "position": 0.30,
    "color_attr": 0.24,
}
HARD_TAG_WEIGHTS = {
    "single_object": 0.03,
    "two_object": 0.05,
    "counting": 0.36,
    "colors": 0.05,
    "position": 0.36,
    "color_attr": 0.15,
}
# Probability that a random question is kept, by kind of question, for the same reason.
HARD_QUESTIONS = {"where": 1.0, "count": 1.0, "describe": 0.8, "exists": 0.5, "colour": 0.25, "shape": 0.2}
PLACE_QUESTIONS = {"where": 1.0, "count": 0.1, "describe": 0.1, "exists": 0.05, "colour": 0.05, "shape": 0.05}


def drawing_rows(count: int, weights: dict[str, float], seed: int) -> Iterator[dict[str, Any]]:
    """Yield rows `{"prompt", "image"}` for image generation; half of the prompts name the colour of every object.

    Args:
        count: Number of rows.
        weights: Probability of every tag.
        seed: Seed of the rows.
    """
    rng = np.random.default_rng(seed)
    for _ in range(count):
        tag = str(rng.choice(list(weights), p=list(weights.values())))
        drawing = make_drawing(tag, rng, detailed=bool(rng.random() < 0.5))
        yield {"prompt": drawing.prompt, "image": picture(drawing.scene)}


def caption_rows(count: int) -> Iterator[dict[str, Any]]:
    """Yield rows `{"messages", "images"}`: an image and the question for a caption of all objects, with the answer."""
    rng = np.random.default_rng(SEED + 8)
    for _ in range(count):
        scene = random_scene(rng)
        question = {"role": "user", "content": "<image>\nWhat is where?"}
        answer = {"role": "assistant", "content": describe(scene)}
        yield {"messages": [question, answer], "images": [picture(scene)]}


def question_rows(count: int, kept: dict[str, float] | None, seed: int) -> Iterator[dict[str, Any]]:
    """Yield rows `{"messages", "images"}`: an image and up to eight different questions about it, with the answers.

    Args:
        count: Number of scenes; a scene without any question that is kept gives no row.
        kept: Probability that a question is kept, by kind; None keeps all.
        seed: Seed of the rows.
    """
    rng = np.random.default_rng(seed)
    for _ in range(count):
        scene = random_scene(rng)
        messages = dialogue(scene, rng, 8, kept, opening="<image>\n")
        if messages:
            yield {"messages": messages, "images": [picture(scene)]}


def text_rows(count: int) -> Iterator[dict[str, Any]]:
    """Yield rows `{"messages"}` without images: a scene in words and up to five different questions about it."""
    rng = np.random.default_rng(SEED + 6)
    for _ in range(count):
        scene = random_scene(rng, most=3)
        yield {"messages": dialogue(scene, rng, 5, opening=f"There is {describe(scene)}. ")}


def dialogue(
    scene: Scene, rng: np.random.Generator, most: int, kept: dict[str, float] | None = None, *, opening: str
) -> list[dict[str, str]]:
    """Return up to `most` different questions and their answers as the messages of one conversation.

    Args:
        scene: The scene that the questions are about.
        rng: Source of all random choices.
        most: Largest number of questions.
        kept: Probability that a question is kept, by kind; None keeps all.
        opening: Text in front of the first question.
    """
    asked: dict[str, str] = {}
    # A kind that is rarely kept takes more attempts; a scene with few possible questions must not loop forever.
    for _ in range(most if kept is None else 6 * most):
        question = ask(scene, rng)
        if kept is None or rng.random() < kept[question.kind]:
            asked[question.question] = question.answer
        if len(asked) == most:
            break
    messages = []
    for number, (text, answer) in enumerate(asked.items()):
        messages.append({"role": "user", "content": text if number else opening + text})
        messages.append({"role": "assistant", "content": answer})
    return messages


# Name of a data source -> the function that yields its rows, and the arguments of the function.
ROWS: dict[str, tuple[Callable[..., Iterator[dict[str, Any]]], dict[str, Any]]] = {
    "drawing": (drawing_rows, {"count": 60_000, "weights": TAG_WEIGHTS, "seed": SEED + 4}),
    "hard_drawing": (drawing_rows, {"count": 60_000, "weights": HARD_TAG_WEIGHTS, "seed": SEED + 104}),
    "questions": (question_rows, {"count": 24_000, "kept": None, "seed": SEED + 5}),
    "hard_questions": (question_rows, {"count": 18_000, "kept": HARD_QUESTIONS, "seed": SEED + 105}),
    "place_questions": (question_rows, {"count": 5_000, "kept": PLACE_QUESTIONS, "seed": SEED + 205}),
    "captions": (caption_rows, {"count": 16_000}),
    "text": (text_rows, {"count": 16_000}),
}


def prepare_data(folder: Path) -> None:
    """Prepare every data source in a folder of its own below `folder`, as `janus-hf prepare` does."""
    model = JanusProForConditionalGeneration.from_pretrained(folder.parent / "start", dtype=torch.float32)
    processor = JanusProProcessor.from_pretrained(folder.parent / "start")
    for name, (make_rows, arguments) in ROWS.items():
        rows = datasets.Dataset.from_generator(make_rows, gen_kwargs=arguments, cache_dir=str(folder / "cache"))
        prepare(rows, folder / name, model, processor, max_length=LENGTH, batch_size=64)
