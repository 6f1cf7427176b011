"""Functions that generate the training data and prepare it like a user's own data (see `janus_hf.data`)."""

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


# Shares of GenEval's tags (categories of prompts) among the prompts. Counting, positions and which object has which
# colour are learned last (measured), so prompts about them are more frequent.
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
# Kind of question -> probability that a random question of this kind is kept. Kinds that are learned last are kept
# more often.
HARD_QUESTIONS = {"where": 1.0, "count": 1.0, "describe": 0.8, "exists": 0.5, "colour": 0.25, "shape": 0.2}
PLACE_QUESTIONS = {"where": 1.0, "count": 0.1, "describe": 0.1, "exists": 0.05, "colour": 0.05, "shape": 0.05}


def drawing_rows(count: int, weights: dict[str, float], seed: int) -> Iterator[dict[str, Any]]:
    """Yield training rows for image generation, each a dict with the keys "prompt" and "image" (a PIL image).

    Half of the prompts name the colour of every object.

    Args:
        count: Number of rows.
        weights: Probability of each tag (GenEval's category of prompt).
        seed: Seed of the rows.
    """
    rng = np.random.default_rng(seed)
    for _ in range(count):
        tag = str(rng.choice(list(weights), p=list(weights.values())))
        drawing = make_drawing(tag, rng, detailed=bool(rng.random() < 0.5))
        yield {"prompt": drawing.prompt, "image": picture(drawing.scene)}


def caption_rows(count: int) -> Iterator[dict[str, Any]]:
    """Yield `count` training rows for image understanding: an image, a request for a caption, and the caption.

    A row is a dict with the keys "messages" (a conversation of two chat messages) and "images" (a list of one PIL
    image). The caption names all objects of the image and their positions.
    """
    rng = np.random.default_rng(SEED + 8)
    for _ in range(count):
        scene = random_scene(rng)
        question = {"role": "user", "content": "<image>\nWhat is where?"}
        answer = {"role": "assistant", "content": describe(scene)}
        yield {"messages": [question, answer], "images": [picture(scene)]}


def question_rows(count: int, kept: dict[str, float] | None, seed: int) -> Iterator[dict[str, Any]]:
    """Yield training rows for image understanding: an image and up to eight different questions with their answers.

    A row is a dict with the keys "messages" (a conversation of chat messages) and "images" (a list of one PIL image).

    Args:
        count: Number of images; an image of which no question is kept gives no row.
        kept: Kind of question -> probability that a question of this kind is kept; None keeps all questions.
        seed: Seed of the rows.
    """
    rng = np.random.default_rng(seed)
    for _ in range(count):
        scene = random_scene(rng)
        messages = dialogue(scene, rng, 8, kept, opening="<image>\n")
        if messages:
            yield {"messages": messages, "images": [picture(scene)]}


def text_rows(count: int) -> Iterator[dict[str, Any]]:
    """Yield `count` training rows without images: a scene described in words and up to five questions with answers.

    A row is a dict with the key "messages", a conversation of chat messages. Its first message describes the scene.
    """
    rng = np.random.default_rng(SEED + 6)
    for _ in range(count):
        scene = random_scene(rng, most=3)
        yield {"messages": dialogue(scene, rng, 5, opening=f"There is {describe(scene)}. ")}


def dialogue(
    scene: Scene, rng: np.random.Generator, most: int, kept: dict[str, float] | None = None, *, opening: str
) -> list[dict[str, str]]:
    """Return different random questions about a scene and their answers as the chat messages of one conversation.

    Args:
        scene: The scene that the questions are about.
        rng: Source of all random choices.
        most: Largest number of questions.
        kept: Kind of question -> probability that a question of this kind is kept; None keeps all questions.
        opening: Text in front of the first question.

    Returns:
        Messages with the keys "role" and "content", of user and assistant in turn; an empty list if no question is
        kept.
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


# Name of a data source -> the function that yields its rows, and the keyword arguments of that function.
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
    """Tokenize the rows of every data source in `ROWS` and write them below `folder`, as `janus-hf prepare` does.

    Each source gets a folder of its name. The model and the processor are those in the folder `start` beside `folder`.
    """
    model = JanusProForConditionalGeneration.from_pretrained(folder.parent / "start", dtype=torch.float32)
    processor = JanusProProcessor.from_pretrained(folder.parent / "start")
    for name, (make_rows, arguments) in ROWS.items():
        rows = datasets.Dataset.from_generator(make_rows, gen_kwargs=arguments, cache_dir=str(folder / "cache"))
        prepare(rows, folder / name, model, processor, max_length=LENGTH, batch_size=64)
