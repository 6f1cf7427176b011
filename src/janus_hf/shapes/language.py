"""What is said about scenes: prompts with GenEval-style requirements, and questions with their answers."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .scenes import COLORS, HELD_OUT, SHAPES, Scene, place, place_in_order


NUMBERS = {2: "two", 3: "three", 4: "four"}
RELATIONS = ("left of", "right of", "above", "below")
PLURALS = {shape: "crosses" if shape == "cross" else f"{shape}s" for shape in SHAPES}
Kind = tuple[str, str]  # color, shape

TRAINED_KINDS: tuple[Kind, ...] = tuple((c, s) for c in COLORS for s in SHAPES if (c, s) not in HELD_OUT)


@dataclass(frozen=True)
class Drawing:
    """A prompt, what a picture of it must hold (a line of GenEval's metadata), and one scene that does."""

    prompt: str
    metadata: dict[str, Any]
    scene: Scene


@dataclass(frozen=True)
class Question:
    """A question about a scene, its only right answer, and what it is about."""

    question: str
    answer: str
    kind: str


def _pick(rng: np.random.Generator, items: tuple[Any, ...] | list[Any]) -> Any:
    return items[int(rng.integers(len(items)))]


def _two_kinds(rng: np.random.Generator, kinds: tuple[Kind, ...]) -> tuple[Kind, Kind]:
    """Two things of different shape, as GenEval's two-object prompts have different classes."""
    first = _pick(rng, kinds)
    return first, _pick(rng, [kind for kind in TRAINED_KINDS if kind[1] != first[1]])


def _clause(kind: Kind, *, color: bool = False, count: int = 1) -> dict[str, Any]:
    return {"class": kind[1], "count": count} | ({"color": kind[0]} if color else {})


def _named(kind: Kind, color: bool) -> str:
    return _article(f"{kind[0]} {kind[1]}" if color else kind[1])


# A maker takes the random numbers, the kinds to choose the first thing from, and whether the prompt names colours.
# Things that are only listed stand in the order in which they are named, as one would write or look.


def _single_object(rng: np.random.Generator, kinds: tuple[Kind, ...], color: bool) -> Drawing:
    kind = _pick(rng, kinds)
    return _drawing("single_object", _named(kind, color), [_clause(kind)], place([kind], rng))


def _two_object(rng: np.random.Generator, kinds: tuple[Kind, ...], color: bool) -> Drawing:
    first, second = _two_kinds(rng, kinds)
    what = f"{_named(first, color)} and {_named(second, color)}"
    return _drawing("two_object", what, [_clause(first), _clause(second)], place_in_order([first, second], rng))


def _counting(rng: np.random.Generator, kinds: tuple[Kind, ...], color: bool) -> Drawing:
    kind, count = _pick(rng, kinds), _pick(rng, list(NUMBERS))
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
TAGS = tuple(_MAKERS)  # GenEval's


def _article(word: str) -> str:
    return f"an {word}" if word[0] in "aeiou" else f"a {word}"


def _drawing(
    tag: str, what: str, include: list[dict[str, Any]], scene: Scene, exclude: list[dict[str, Any]] | None = None
) -> Drawing:
    prompt = f"a photo of {what}"
    metadata: dict[str, Any] = {"tag": tag, "include": include, "prompt": prompt}
    return Drawing(prompt, metadata | ({"exclude": exclude} if exclude else {}), scene)


def _scene_relations(scene: Scene) -> set[str]:
    """Relations of the first thing to the second that no detector could dispute: one axis clearly dominates."""
    first, second = scene.things[:2]
    dx, dy = first.column - second.column, first.row - second.row
    if abs(dx) > abs(dy):
        return {"left of" if dx < 0 else "right of"}
    if abs(dy) > abs(dx):
        return {"above" if dy < 0 else "below"}
    return set()


def make_drawing(tag: str, rng: np.random.Generator, *, held_out: bool = False, detailed: bool = False) -> Drawing:
    """A prompt of that tag with a scene.

    Args:
        tag: One of `TAGS`.
        held_out: Make its (first) thing one of the combinations that training never shows.
        detailed: Name the colour of every thing in the prompt, also where the tag does not ask for it: captions that
            say more of what is seen teach faster.

    Raises:
        ValueError: If the tag is unknown.
    """
    if tag not in _MAKERS:
        raise ValueError(f"tag must be one of {TAGS}, got {tag!r}.")
    return _MAKERS[tag](rng, tuple(sorted(HELD_OUT)) if held_out else TRAINED_KINDS, detailed)


def random_scene(rng: np.random.Generator, *, most: int = 4, held_out: bool = False) -> Scene:
    """A scene of one to `most` things to ask about; with `held_out` the first one is a held-out combination."""
    count = int(rng.integers(1, most + 1))
    kinds = [_pick(rng, TRAINED_KINDS) for _ in range(count)]
    if rng.random() < 0.3:
        kinds = [kinds[0]] * count
    if held_out:
        kinds[0] = _pick(rng, sorted(HELD_OUT))
    return place(kinds, rng)


def describe(scene: Scene) -> str:
    """The scene in words, in reading order: "a red circle at the top left and an orange cross at the top right"."""
    things = [f"{_article(t.name)} at the {_where(t.row, t.column)}" for t in _reading_order(scene)]
    return " and ".join([", ".join(things[:-1]), things[-1]] if len(things) > 1 else things)


def ask(scene: Scene, rng: np.random.Generator) -> Question:
    """A random question about the scene, the kinds of question equally likely where the scene allows them."""
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
    """Yes and no equally often; a "no" differs from what is there in one attribute, so that both must be looked at."""
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
    return f"{'top' if row < 2 else 'bottom'} {'left' if column < 2 else 'right'}"


def _reading_order(scene: Scene) -> list[Any]:
    return sorted(scene.things, key=lambda t: (t.row, t.column))


QUESTION_KINDS = ("colour", "shape", "count", "where", "exists", "describe")

__all__ = ["QUESTION_KINDS", "TAGS", "Drawing", "Question", "ask", "describe", "make_drawing", "random_scene"]
