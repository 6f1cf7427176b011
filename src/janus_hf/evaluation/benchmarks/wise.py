"""WISE: its prompts from files that the user has, and what its judge's marks add up to."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..paper import look_up
from ..report import Report


# As in WISE's Calculate.py: the last prompt of each category and the category's weight.
_WISE_CATEGORIES = {
    "culture": (400, 0.4),
    "time": (567, 0.167),
    "space": (700, 0.133),
    "biology": (800, 0.1),
    "physics": (900, 0.1),
    "chemistry": (1000, 0.1),
}
_NO_MARK = 999  # what the official script writes where the judge gave none
_MARKS = ("consistency", "realism", "aesthetic_quality")


@dataclass(frozen=True)
class KnowledgePrompt:
    """A prompt of WISE or of a set in its layout.

    Args:
        prompt_id: Its number; pictures are called `{prompt_id}.png`.
        prompt: What to draw.
        explanation: What the picture has to show, for the judge.
        category: By the official ranges of numbers, 1 to 1000; elsewhere what the file says.
        subcategory: What the file says.
    """

    prompt_id: int
    prompt: str
    explanation: str
    category: str
    subcategory: str = ""


def read_wise(path: str | os.PathLike[str]) -> list[KnowledgePrompt]:
    """Read prompts: a `.json` list of `{"prompt_id", "Prompt", "Explanation", "Category", "Subcategory"}`, or a folder
    of such files.

    Raises:
        FileNotFoundError: There is no such file; says where to get it.
        ValueError: An entry is not of this layout, or a number is given twice.
    """
    place = _existing(path, "wise")
    files = sorted(place.glob("*.json")) if place.is_dir() else [place]
    prompts: dict[int, KnowledgePrompt] = {}
    for file in files:
        for row in json.loads(file.read_text(encoding="utf-8")):
            if missing := [key for key in ("prompt_id", "Prompt", "Explanation") if key not in row]:
                raise ValueError(f"Expected prompt_id, Prompt and Explanation in {file}; {missing} of {_found(row)}.")
            number = int(row["prompt_id"])
            if number in prompts:
                raise ValueError(f"Expected every prompt_id once; {file} repeats {number}.")
            category = _wise_category(number) or str(row.get("Category", "other"))
            prompts[number] = KnowledgePrompt(
                number, row["Prompt"], row["Explanation"], category, str(row.get("Subcategory", ""))
            )
    if not prompts:
        raise FileNotFoundError(f"Expected .json files in {path}; there are none. Get {look_up('wise').data}.")
    return list(prompts.values())


def read_wise_marks(path: str | os.PathLike[str]) -> dict[int, tuple[float, float, float]]:
    """Read a judge's marks: JSON lines `{"prompt_id", "consistency", "realism", "aesthetic_quality"}`, as the official
    script writes them. 999, its sign for a judge that gave none, is left in and refused by `wiscore`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A line lacks one of these.
    """
    marks = {}
    for number, row in enumerate(_json_lines(_existing(path, "wise")), start=1):
        if missing := [key for key in ("prompt_id", *_MARKS) if key not in row]:
            raise ValueError(
                f"Expected prompt_id and {', '.join(_MARKS)} in line {number} of {path}; {missing} missing."
            )
        consistency, realism, aesthetics = (float(row[key]) for key in _MARKS)
        marks[int(row["prompt_id"])] = (consistency, realism, aesthetics)
    return marks


def wiscore(consistency: float, realism: float, aesthetics: float) -> float:
    """(0.7 c + 0.2 r + 0.1 a) / 2, in [0, 1].

    Raises:
        ValueError: If a mark is outside [0, 2].
    """
    marks = (consistency, realism, aesthetics)
    if _NO_MARK in marks:
        raise ValueError("the judge gave no marks")
    if not all(0 <= mark <= 2 for mark in marks):
        raise ValueError(f"expected marks in [0, 2]; got {marks}")
    return (0.7 * consistency + 0.2 * realism + 0.1 * aesthetics) / 2


def score_wise(prompts: Sequence[KnowledgePrompt], marks: Mapping[int, tuple[float, float, float]]) -> Report:
    """WiScore per category and over all.

    Args:
        prompts: Of `read_wise`.
        marks: By prompt_id: consistency, realism and aesthetic quality, in [0, 2].

    Returns:
        `overall` (primary) is the official weighted sum over the six categories; where one of them has no picture, or
        there are others, it is the mean over pictures, and the protocol says so. Pictures without marks are failures.
    """
    rows: list[dict[str, Any]] = []
    failures: list[str] = []
    categories: dict[str, list[float]] = {}
    for prompt in prompts:
        try:
            if prompt.prompt_id not in marks:
                raise ValueError("no marks")
            score = wiscore(*marks[prompt.prompt_id])
        except ValueError as error:
            failures.append(f"{prompt.prompt_id}: {error}")
            continue
        categories.setdefault(prompt.category, []).append(score)
        rows.append({"prompt_id": prompt.prompt_id, "category": prompt.category, "score": score})
    metrics = {name: sum(values) / len(values) for name, values in categories.items()}
    protocol = look_up("wise").protocol
    if metrics.keys() == _WISE_CATEGORIES.keys():
        overall = sum(weight * metrics[name] for name, (_, weight) in _WISE_CATEGORIES.items())
        protocol += " Overall is the weighted sum over six categories."
    else:
        overall = sum(row["score"] for row in rows) / max(1, len(rows))
        protocol += " Not the six categories of WISE: overall is the mean over pictures."
    metrics = {"overall": overall} | metrics if rows else {}
    return Report("wise", metrics, "overall", protocol, {"prompts": len(prompts)}, rows, failures)


def _wise_category(number: int) -> str | None:
    if number < 1:
        return None
    return next((name for name, (last, _) in _WISE_CATEGORIES.items() if number <= last), None)


__all__ = ["KnowledgePrompt", "read_wise", "read_wise_marks", "score_wise", "wiscore"]
