"""Synthetic data to train and test on: scenes of coloured shapes, prompts for such images and questions about them.

Every prompt and question is made together with a scene, so that generated images and answers can be scored exactly,
without a judging model.
"""

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
