"""The small world: coloured shapes on a board, what is said about them and the questions about them."""

from .language import QUESTION_KINDS, TAGS, Drawing, Question, ask, describe, make_drawing, random_scene
from .scenes import COLORS, HELD_OUT, SHAPES, SIDE, Scene, Thing, picture, place, place_in_order, render


__all__ = [
    "COLORS",
    "HELD_OUT",
    "QUESTION_KINDS",
    "SHAPES",
    "SIDE",
    "TAGS",
    "Drawing",
    "Question",
    "Scene",
    "Thing",
    "ask",
    "describe",
    "make_drawing",
    "picture",
    "place",
    "place_in_order",
    "random_scene",
    "render",
]
