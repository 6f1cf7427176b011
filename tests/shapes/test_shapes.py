"""Rendered scenes are detected exactly, scenes meet their prompts' requirements, and answers are true."""

import itertools

import numpy as np
import pytest

from janus_hf.rewards.geneval_rules import score
from janus_hf.rewards.shapes_detector import detect
from janus_hf.shapes import (
    COLORS,
    HELD_OUT,
    QUESTION_KINDS,
    SHAPES,
    SIDE,
    TAGS,
    Scene,
    Thing,
    ask,
    make_drawing,
    picture,
    random_scene,
    render,
)


def detected_kinds(image):
    """Return colour and shape of every object that the detector finds, sorted."""
    return sorted((found.color, found.label) for found in detect(image))


def scene_kinds(scene):
    """Return colour and shape of every object of a scene, sorted."""
    return sorted((thing.color, thing.shape) for thing in scene.things)


@pytest.mark.parametrize("color", COLORS)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_object_is_recognised_in_every_corner(color, shape):
    corners = [(0, 0), (0, 3), (3, 0), (3, 3)]
    for row, column in corners:
        scene = Scene((Thing(color, shape, row, column),))
        (found,) = detect(render(scene))
        assert (found.color, found.label) == (color, shape)
        left, top, right, bottom = found.box
        assert column * 16 <= left < right <= column * 16 + 16
        assert row * 16 <= top < bottom <= row * 16 + 16


def test_a_crowded_noisy_image_is_detected_exactly():
    rng = np.random.default_rng(0)
    for _ in range(20):
        scene = random_scene(rng, most=12)
        noise = rng.normal(0, 8, (SIDE, SIDE, 3))
        noisy = np.clip(render(scene) + noise, 0, 255).astype(np.uint8)
        assert detected_kinds(noisy) == scene_kinds(scene)


def test_blobs_and_specks_are_not_objects():
    blank = np.full((SIDE, SIDE, 3), 255, dtype=np.uint8)
    assert detect(blank) == []
    blank[3:7, 3:7] = COLORS["red"]  # too small
    blank[20:60, 20:24] = COLORS["blue"]  # a bar: scaled to its bounding box it is a square
    blank[30:34, 20:60] = COLORS["blue"]  # with the second bar it is a lopsided cross, which is no shape of this world
    assert [found.label for found in detect(blank)] == []


@pytest.mark.parametrize("tag", TAGS)
@pytest.mark.parametrize("held_out", [False, True])
def test_prompts_hold_in_their_own_scene_and_rarely_in_another(tag, held_out):
    rng = np.random.default_rng(1)
    drawings = [make_drawing(tag, rng, held_out=held_out) for _ in range(100)]
    assert all(score(detect(picture(d.scene)), d.metadata).correct for d in drawings)
    others = [score(detect(picture(b.scene)), a.metadata).correct for a, b in itertools.pairwise(drawings)]
    assert np.mean(others) < 0.45  # by chance one shape in four is correct, and one pair in six


def test_held_out_combinations_never_appear_in_training():
    rng = np.random.default_rng(2)
    scenes = [make_drawing(TAGS[i % len(TAGS)], rng).scene for i in range(600)] + [
        random_scene(rng) for _ in range(600)
    ]
    assert not {pair for scene in scenes for pair in scene_kinds(scene)} & HELD_OUT
    held_out = [make_drawing("colors", rng, held_out=True).scene for _ in range(50)]
    assert {pair for scene in held_out for pair in scene_kinds(scene)} <= HELD_OUT


def test_answers_are_true():
    """The answers are compared with what the detector finds, not with the scene that the question was made from."""
    rng = np.random.default_rng(3)
    numbers = {"zero": 0, "one": 1, "two": 2, "three": 3, "four": 4}
    kinds, yes = set(), []
    for _ in range(1500):
        scene = random_scene(rng)
        found = detect(render(scene))
        question = ask(scene, rng)
        kinds.add(question.kind)
        words = question.question.rstrip("?.").split()
        if question.kind == "count":
            plural = {"circles": "circle", "squares": "square", "triangles": "triangle", "crosses": "cross"}[words[2]]
            assert numbers[question.answer] == sum(f.label == plural for f in found)
        elif question.kind == "colour":
            assert [f.color for f in found if f.label == words[-1]] == [question.answer]
        elif question.kind == "shape":
            assert [f.label for f in found if f.color == words[-2]] == [question.answer]
        elif question.kind == "exists":
            present = any((f.color, f.label) == (words[-2], words[-1]) for f in found)
            assert question.answer == ("yes" if present else "no")
            yes.append(present)
        elif question.kind == "where":
            (box,) = (f.box for f in found if f.label == words[-1])
            vertical = "top" if box[1] + box[3] < SIDE else "bottom"
            assert question.answer == f"{vertical} {'left' if box[0] + box[2] < SIDE else 'right'}"
        else:
            assert sorted(part.split(" ", 1)[1] for part in question.answer.split(" and ")) == sorted(
                f"{f.color} {f.label}" for f in found
            )
    assert kinds == set(QUESTION_KINDS)
    assert 0.4 < np.mean(yes) < 0.6


def test_unknown_tag():
    with pytest.raises(ValueError, match="`tag` must be one of"):
        make_drawing("sizes", np.random.default_rng(0))
