"""Arguments of the wrong kind: benchmarks and sheets name the argument and what it must be."""

import pytest
from PIL import Image

from janus_hf.evaluation.benchmarks.image_metrics.image_folders import folder_pictures, run_pictures
from janus_hf.evaluation.benchmarks.understanding import Understanding, run_understanding
from janus_hf.evaluation.benchmarks.wise import read_wise
from janus_hf.evaluation.evaluators import make_evaluator
from janus_hf.evaluation.report import compare
from janus_hf.evaluation.sheets import score_sheet


SHEET = {"images": [Image.new("RGB", (8, 8))], "prompts": ["a"], "scores": [1.0]}
RUN = {"pipe": print, "benchmark": "pope", "data": "nowhere"}
ODD = (object(), print)
ROWS = [
    (call, base, name, value)
    for call, base, wrong in (
        (score_sheet, SHEET, {"images": (3, "x", b"b", [3], {"a": 1})}),
        (score_sheet, SHEET, {name: (3, "x", [3], {"a": 1}) for name in ("prompts", "groups")}),
        (
            score_sheet,
            SHEET,
            {"scores": (3, "x", ["x"], None), "each": (0, -1, 1.5, "x", None), "pass_mark": ("x", [1])},
        ),
        (make_evaluator, {"name": "shapes"}, {name: (1.5, "x", [3]) for name in ("seed", "batch_size", "questions")}),
        (
            make_evaluator,
            {"name": "shapes"},
            {"name": (3, None, ["shapes"]), "drawing": (3, "x"), "held_out": (1, "x")},
        ),
        (
            make_evaluator,
            {"name": "pope"},
            {"data": (3, b"b", ["a"]), "limit": ("x", 1.5), "max_new_tokens": ("x", 1.5)},
        ),
        (Understanding, {"name": "pope", "data": "x"}, {"limit": ("x",), "batch_size": (1.5, [1])}),
        (
            run_understanding,
            RUN,
            {"pipe": (3, "x"), "benchmark": (3, None), "images": (3,), "max_new_tokens": ("x", 1.5)},
        ),
        (run_pictures, {}, {"folder": (3, None, [1])}),
        (folder_pictures, {}, {"folder": (3, None, [1])}),
        (read_wise, {}, {"path": (3, None, [1])}),
        (compare, {}, {"reports": (3, None, [1], "x")}),
    )
    for name, values in wrong.items()
    for value in (*values, *ODD)
    if not (name == "pipe" and callable(value))
]


@pytest.mark.parametrize(("call", "base", "name", "value"), ROWS, ids=[f"{row[0].__name__}-{row[2]}" for row in ROWS])
def test_a_wrong_kind_is_refused_by_name(call, base, name, value):
    with pytest.raises((TypeError, ValueError), match=f"`{name}` must be"):
        call(**base | {name: value})
