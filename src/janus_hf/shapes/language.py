"""Functions that make text about `Scene`s: prompts with GenEval-style requirements, captions, questions and answers.

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
Kind = tuple[str, str]  # (color, shape)

TRAINED_KINDS: tuple[Kind, ...] = tuple((c, s) for c in COLORS for s in SHAPES if (c, s) not in HELD_OUT)


@dataclass(frozen=True)
class Drawing:
    """A prompt, the requirements on images generated for it, and one scene of coloured shapes that meets them.

    `metadata` holds the requirements in the form of a line of GenEval's metadata file.
    """

    prompt: str
    metadata: dict[str, Any]
    scene: Scene


@dataclass(frozen=True)
class Question:
    """A question about a scene of coloured shapes, its only correct answer, and its kind, one of `QUESTION_KINDS`."""

    question: str
    answer: str
    kind: str


def _pick(rng: np.random.Generator, items: Sequence[T]) -> T:
    """Return a random item of the sequence."""
    return items[int(rng.integers(len(items)))]


def _two_kinds(rng: np.random.Generator, kinds: tuple[Kind, ...]) -> tuple[Kind, Kind]:
    """Return two random `(color, shape)` pairs of different shape, the first of them from `kinds`.

    The shapes differ because GenEval's prompts about two objects name different classes.
    """
    first = _pick(rng, kinds)
    return first, _pick(rng, [kind for kind in TRAINED_KINDS if kind[1] != first[1]])


def _clause(kind: Kind, *, color: bool = False, count: int = 1) -> dict[str, Any]:
    """Return one requirement in GenEval's form: at least `count` objects of a shape (and a colour).

    Args:
        kind: `(color, shape)`.
        color: Whether to require the colour too.
        count: Number of objects.

    Returns:
        A dictionary with the keys "class" (the shape), "count" and, if required, "color".
    """
    return {"class": kind[1], "count": count} | ({"color": kind[0]} if color else {})


def _named(kind: Kind, color: bool) -> str:
    """Return the words that name a `(color, shape)` in a prompt: "a circle", or with `color=True` "a red circle"."""
    return _article(f"{kind[0]} {kind[1]}" if color else kind[1])


# There is one function per tag. It takes the random generator, the kinds from which the first object is chosen, and
# whether the prompt names colours that its tag does not require. Objects that a prompt only lists are placed on the
# board in the order in which it names them, because a person who looks at the image would name them in that order.


def _single_object(rng: np.random.Generator, kinds: tuple[Kind, ...], color: bool) -> Drawing:
    """Make a `Drawing` of one object, such as "a photo of a circle", or with `color` "a photo of a red circle"."""
    kind = _pick(rng, kinds)
    return _drawing("single_object", _named(kind, color), [_clause(kind)], place([kind], rng))


def _two_object(rng: np.random.Generator, kinds: tuple[Kind, ...], color: bool) -> Drawing:
    """Make a `Drawing` of two objects of different shapes, such as "a photo of a circle and a square".

    With `color` the prompt names their colours too.
    """
    first, second = _two_kinds(rng, kinds)
    what = f"{_named(first, color)} and {_named(second, color)}"
    return _drawing("two_object", what, [_clause(first), _clause(second)], place_in_order([first, second], rng))


def _counting(rng: np.random.Generator, kinds: tuple[Kind, ...], color: bool) -> Drawing:
    """Make a `Drawing` of an exact number of equal objects, such as "a photo of two circles".

    With `color` the prompt names their colour too.
    """
    kind, count = _pick(rng, kinds), _pick(rng, list(NUMBERS))
    # GenEval's "include" accepts more objects than `count`; the requirement in "exclude" makes the number exact.
    exclude = [{"class": kind[1], "count": count + 1}]
    what = f"{NUMBERS[count]} {kind[0] + ' ' if color else ''}{PLURALS[kind[1]]}"
    return _drawing("counting", what, [_clause(kind, count=count)], place([kind] * count, rng), exclude)


def _colors(rng: np.random.Generator, kinds: tuple[Kind, ...], color: bool) -> Drawing:
    """Make a `Drawing` of one object of a required colour, such as "a photo of a red circle"."""
    kind = _pick(rng, kinds)
    return _drawing("colors", _named(kind, True), [_clause(kind, color=True)], place([kind], rng))


def _position(rng: np.random.Generator, kinds: tuple[Kind, ...], color: bool) -> Drawing:
    """Make a `Drawing` of two objects in a relation, such as "a photo of a circle left of a square".

    With `color` the prompt names their colours too.
    """
    first, second = _two_kinds(rng, kinds)
    relation = _pick(rng, RELATIONS)
    scene = place([first, second], rng)
    while relation not in _scene_relations(scene):
        scene = place([first, second], rng)
    # In GenEval's form a requirement states a relation to an earlier requirement, here the one with index 0.
    include = [_clause(second), _clause(first) | {"position": [relation, 0]}]
    return _drawing("position", f"{_named(first, color)} {relation} {_named(second, color)}", include, scene)


def _color_attr(rng: np.random.Generator, kinds: tuple[Kind, ...], color: bool) -> Drawing:
    """Make a `Drawing` of two objects of required colours, such as "a photo of a red circle and a blue square"."""
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
    """Return the word with "a" or "an" in front of it."""
    return f"an {word}" if word[0] in "aeiou" else f"a {word}"


def _drawing(
    tag: str, what: str, include: list[dict[str, Any]], scene: Scene, exclude: list[dict[str, Any]] | None = None
) -> Drawing:
    """Return a `Drawing` whose prompt is "a photo of" and the given words.

    Args:
        tag: GenEval's category of the prompt.
        what: The objects in words.
        include: Requirements that images must meet, in GenEval's form.
        scene: A scene that meets them.
        exclude: Requirements that images must not meet, in GenEval's form; None if there are none.
    """
    prompt = f"a photo of {what}"
    metadata: dict[str, Any] = {"tag": tag, "include": include, "prompt": prompt}
    return Drawing(prompt, metadata | ({"exclude": exclude} if exclude else {}), scene)


def _scene_relations(scene: Scene) -> set[str]:
    """Return the relation of a scene's first object to its second, such as "left of", as a set of one string.

    Only the axis along which the objects are farther apart counts. The set is empty if the distances along both axes
    are equal, because the relation is ambiguous then.
    """
    first, second = scene.things[:2]
    dx, dy = first.column - second.column, first.row - second.row
    if abs(dx) > abs(dy):
        return {"left of" if dx < 0 else "right of"}
    if abs(dy) > abs(dx):
        return {"above" if dy < 0 else "below"}
    return set()


def make_drawing(tag: str, rng: np.random.Generator, *, held_out: bool = False, detailed: bool = False) -> Drawing:
    """Return a random prompt of one category, with its requirements and a scene of coloured shapes that meets them.

    Args:
        tag: GenEval's category of the prompt, one of `TAGS`.
        rng: Random generator for all choices.
        held_out: Choose the first (or only) object from `HELD_OUT`, the combinations of colour and shape that training
            never shows.
        detailed: Name the colour of every object in the prompt, even if the tag does not require it, because captions
            that say more about an image teach faster.

    Raises:
        ValueError: If the tag is unknown.
    """
    if tag not in _MAKERS:
        raise ValueError(f"`tag` must be one of {TAGS}, got {tag!r}: choose one of them.")
    return _MAKERS[tag](rng, tuple(sorted(HELD_OUT)) if held_out else TRAINED_KINDS, detailed)


def random_scene(rng: np.random.Generator, *, most: int = 4, held_out: bool = False) -> Scene:
    """Return a random scene of one to `most` coloured shapes.

    In three scenes of ten all objects, except for a held-out one, have the same colour and shape.

    Args:
        rng: Random generator for all choices.
        most: Largest number of objects.
        held_out: Choose the first object from `HELD_OUT`, the combinations of colour and shape that training never
            shows.
    """
    count = int(rng.integers(1, most + 1))
    kinds = [_pick(rng, TRAINED_KINDS) for _ in range(count)]
    if rng.random() < 0.3:
        kinds = [kinds[0]] * count
    if held_out:
        kinds[0] = _pick(rng, sorted(HELD_OUT))
    return place(kinds, rng)


def describe(scene: Scene) -> str:
    """Return a caption that names the objects of a scene in reading order.

    For example: "a red circle at the top left and an orange cross at the top right".
    """
    things = [f"{_article(t.name)} at the {_where(t.row, t.column)}" for t in _reading_order(scene)]
    return " and ".join([", ".join(things[:-1]), things[-1]] if len(things) > 1 else things)


def ask(scene: Scene, rng: np.random.Generator) -> Question:
    """Return a random question about the scene with its answer.

    All kinds of question that fit the scene are equally likely.
    """
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
    # In one case of five the shape is chosen from all shapes, so that "zero" can be an answer too.
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
    """Return a question whether an object exists in the scene; the answers "yes" and "no" are equally likely.

    If the answer is "no", the question names an object that differs from one in the scene in either colour or shape,
    but not in both. The answer therefore depends on both.
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
    """Return the objects of a scene row by row from the top, and within a row from the left."""
    return sorted(scene.things, key=lambda t: (t.row, t.column))


QUESTION_KINDS = ("colour", "shape", "count", "where", "exists", "describe")

__all__ = ["QUESTION_KINDS", "TAGS", "Drawing", "Question", "ask", "describe", "make_drawing", "random_scene"]
