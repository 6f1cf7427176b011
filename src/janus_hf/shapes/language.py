"""Prompts with GenEval-style requirements, captions, and questions with their answers, all about `Scene`s.

A kind is a combination of colour and shape. A tag is one of GenEval's six categories of prompts.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from .scenes import COLORS, HELD_OUT, SHAPES, Scene, Thing, place, place_in_order


T = TypeVar("T")
NUMBERS = {2: "two", 3: "three", 4: "four"}
RELATIONS = ("left of", "right of", "above", "below")
PLURALS = {shape: "crosses" if shape == "cross" else f"{shape}s" for shape in SHAPES}
Kind = tuple[str, str]  # color, shape

TRAINED_KINDS: tuple[Kind, ...] = tuple((c, s) for c in COLORS for s in SHAPES if (c, s) not in HELD_OUT)


@dataclass(frozen=True)
class Drawing:
    """A prompt, the requirements on its images, and one scene that meets them.

    `metadata` holds the requirements in the form of a line of GenEval's metadata file.
    """

    prompt: str
    metadata: dict[str, Any]
    scene: Scene


@dataclass(frozen=True)
class Question:
    """A question about a scene, its only correct answer, and its kind, which is one of `QUESTION_KINDS`."""

    question: str
    answer: str
    kind: str


def _pick(rng: np.random.Generator, items: Sequence[T]) -> T:
    """Return a random item."""
    return items[int(rng.integers(len(items)))]


def _two_kinds(rng: np.random.Generator, kinds: tuple[Kind, ...]) -> tuple[Kind, Kind]:
    """Return two random kinds of different shape, because GenEval's two-object prompts name different classes."""
    first = _pick(rng, kinds)
    return first, _pick(rng, [kind for kind in TRAINED_KINDS if kind[1] != first[1]])


def _clause(kind: Kind, *, color: bool = False, count: int = 1) -> dict[str, Any]:
    """Return GenEval's requirement of `count` objects of a shape, with `color` also of the colour."""
    return {"class": kind[1], "count": count} | ({"color": kind[0]} if color else {})


def _named(kind: Kind, color: bool) -> str:
    """Return an object with its article for a prompt: "a circle", or with `color` "a red circle"."""
    return _article(f"{kind[0]} {kind[1]}" if color else kind[1])


# One function per tag. It takes the random generator, the kinds to choose the first object from, and whether the
# prompt names colours that its tag does not require. Objects that a prompt only lists are placed in the order in which
# it names them, because a person who looks at the image would name them in that order.


def _single_object(rng: np.random.Generator, kinds: tuple[Kind, ...], color: bool) -> Drawing:
    kind = _pick(rng, kinds)
    return _drawing("single_object", _named(kind, color), [_clause(kind)], place([kind], rng))


def _two_object(rng: np.random.Generator, kinds: tuple[Kind, ...], color: bool) -> Drawing:
    first, second = _two_kinds(rng, kinds)
    what = f"{_named(first, color)} and {_named(second, color)}"
    return _drawing("two_object", what, [_clause(first), _clause(second)], place_in_order([first, second], rng))


def _counting(rng: np.random.Generator, kinds: tuple[Kind, ...], color: bool) -> Drawing:
    kind, count = _pick(rng, kinds), _pick(rng, list(NUMBERS))
    # GenEval's "include" accepts more objects than `count`; "exclude" makes the number exact.
    exclude = [{"class": kind[1], "count": count + 1}]
    what = f"{NUMBERS[count]} {kind[0] + ' ' if color else ''}{PLURALS[kind[1]]}"
    return _drawing("counting", what, [_clause(kind, count=count)], place([kind] * count, rng), exclude)


def _colors(rng: np.random.Generator, kinds: tuple[Kind, ...], color: bool) -> Drawing:
    kind = _pick(rng, kinds)
    return _drawing("colors", _named(kind, True), [_clause(kind, color=True)], place([kind], rng))


def _position(rng: np.random.Generator, kinds: tuple[Kind, ...], color: bool) -> Drawing:
    first, second = _two_kinds(rng, kinds)
    relation = _pick(rng, RELATIONS)
    scene = place([first, second], rng)
    while relation not in _scene_relations(scene):
        scene = place([first, second], rng)
    # In GenEval's form a clause stands in a relation to an earlier clause, here the one with index 0.
    include = [_clause(second), _clause(first) | {"position": [relation, 0]}]
    return _drawing("position", f"{_named(first, color)} {relation} {_named(second, color)}", include, scene)


def _color_attr(rng: np.random.Generator, kinds: tuple[Kind, ...], color: bool) -> Drawing:
    first, second = _two_kinds(rng, kinds)
    include = [_clause(first, color=True), _clause(second, color=True)]
    what = f"{_named(first, True)} and {_named(second, True)}"
    return _drawing("color_attr", what, include, place_in_order([first, second], rng))


_MAKERS: dict[str, Callable[[np.random.Generator, tuple[Kind, ...], bool], Drawing]] = {
    "single_object": _single_object,
    "two_object": _two_object,
    "counting": _counting,
    "colors": _colors,
    "position": _position,
    "color_attr": _color_attr,
}
TAGS = tuple(_MAKERS)  # GenEval's categories of prompts


def _article(word: str) -> str:
    """Return the word with "a" or "an" in front."""
    return f"an {word}" if word[0] in "aeiou" else f"a {word}"


def _drawing(
    tag: str, what: str, include: list[dict[str, Any]], scene: Scene, exclude: list[dict[str, Any]] | None = None
) -> Drawing:
    """Build a `Drawing` from the objects in words and the clauses that images must meet (and must not meet)."""
    prompt = f"a photo of {what}"
    metadata: dict[str, Any] = {"tag": tag, "include": include, "prompt": prompt}
    return Drawing(prompt, metadata | ({"exclude": exclude} if exclude else {}), scene)


def _scene_relations(scene: Scene) -> set[str]:
    """Return the relation of the first object to the second, or no relation where none is beyond dispute.

    A relation holds if the distance along one axis is larger than along the other.
    """
    first, second = scene.things[:2]
    dx, dy = first.column - second.column, first.row - second.row
    if abs(dx) > abs(dy):
        return {"left of" if dx < 0 else "right of"}
    if abs(dy) > abs(dx):
        return {"above" if dy < 0 else "below"}
    return set()


def make_drawing(tag: str, rng: np.random.Generator, *, held_out: bool = False, detailed: bool = False) -> Drawing:
    """Return a random prompt of a tag with its requirements and a scene that meets them.

    Args:
        tag: One of `TAGS`.
        rng: Source of all random choices.
        held_out: Make the first (or only) object one of the combinations that training never shows, `HELD_OUT`.
        detailed: Name the colour of every object in the prompt, also if the tag does not require it, because captions
            that say more about an image teach faster.

    Raises:
        ValueError: If the tag is unknown.
    """
    if tag not in _MAKERS:
        raise ValueError(f"`tag` must be one of {TAGS}, got {tag!r}: choose one of them.")
    return _MAKERS[tag](rng, tuple(sorted(HELD_OUT)) if held_out else TRAINED_KINDS, detailed)


def random_scene(rng: np.random.Generator, *, most: int = 4, held_out: bool = False) -> Scene:
    """Return a scene of one to `most` objects. With `held_out` the first object is one of the combinations `HELD_OUT`.

    In three scenes of ten all objects, except for a held-out one, are of the same kind.
    """
    count = int(rng.integers(1, most + 1))
    kinds = [_pick(rng, TRAINED_KINDS) for _ in range(count)]
    if rng.random() < 0.3:
        kinds = [kinds[0]] * count
    if held_out:
        kinds[0] = _pick(rng, sorted(HELD_OUT))
    return place(kinds, rng)


def describe(scene: Scene) -> str:
    """Return a caption in reading order: "a red circle at the top left and an orange cross at the top right"."""
    things = [f"{_article(t.name)} at the {_where(t.row, t.column)}" for t in _reading_order(scene)]
    return " and ".join([", ".join(things[:-1]), things[-1]] if len(things) > 1 else things)


def ask(scene: Scene, rng: np.random.Generator) -> Question:
    """Return a random question about the scene; all kinds of question that the scene allows are equally likely."""
    questions: list[Question] = []
    unique_shapes = [t for t in scene.things if len(scene.select(shape=t.shape)) == 1]
    unique_colors = [t for t in scene.things if len(scene.select(color=t.color)) == 1]
    if unique_shapes:
        thing = _pick(rng, unique_shapes)
        questions.append(Question(f"What colour is the {thing.shape}?", thing.color, "colour"))
        questions.append(Question(f"Where is the {thing.shape}?", _where(thing.row, thing.column), "where"))
    if unique_colors:
        thing = _pick(rng, unique_colors)
        questions.append(Question(f"What shape is the {thing.color} thing?", thing.shape, "shape"))
    # One question of five may be about a shape that is not there, so that "zero" is an answer too.
    shape = _pick(rng, scene.things).shape if rng.random() < 0.8 else _pick(rng, SHAPES)
    count = len(scene.select(shape=shape))
    questions.append(
        Question(f"How many {PLURALS[shape]} are there?", {0: "zero", 1: "one", **NUMBERS}[count], "count")
    )
    questions.append(_exists(scene, rng))
    if len(scene.things) <= 2:
        names = " and ".join(_article(t.name) for t in _reading_order(scene))
        questions.append(Question("Describe the picture.", names, "describe"))
    return _pick(rng, questions)


def _exists(scene: Scene, rng: np.random.Generator) -> Question:
    """Return a question whether an object exists; the answers "yes" and "no" are equally likely.

    For "no" the question names a kind that differs from an object of the scene in colour or shape only, so that the
    answer takes both.
    """
    thing = _pick(rng, scene.things)
    color, shape = thing.color, thing.shape
    if rng.random() < 0.5:
        wrong = [
            k for k in TRAINED_KINDS if (k[0] == color) != (k[1] == shape) and not scene.select(color=k[0], shape=k[1])
        ]
        color, shape = _pick(rng, wrong)
    present = bool(scene.select(color=color, shape=shape))
    return Question(f"Is there {_article(color)} {shape}?", "yes" if present else "no", "exists")


def _where(row: int, column: int) -> str:
    """Return the quarter of the board in which a cell lies, for example "top left"."""
    return f"{'top' if row < 2 else 'bottom'} {'left' if column < 2 else 'right'}"


def _reading_order(scene: Scene) -> list[Thing]:
    """Return the objects row by row from the top, and in a row from the left."""
    return sorted(scene.things, key=lambda t: (t.row, t.column))


QUESTION_KINDS = ("colour", "shape", "count", "where", "exists", "describe")

__all__ = ["QUESTION_KINDS", "TAGS", "Drawing", "Question", "ask", "describe", "make_drawing", "random_scene"]
