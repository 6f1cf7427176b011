"""GenEval 2 and WISE: their prompts from files that the user has, and what their judges' verdicts add up to.

Neither is part of this package (GenEval 2 is CC-BY-NC-4.0), and neither judge is run here: Soft-TIFA takes the
probabilities that a vision-language model gives to the right answers, WiScore the marks that a judge gives to
pictures. WISE means its first release, as in the leaderboards; a later one asks for a single verdict of 0 or 1.
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..paper import look_up
from ..report import Report
from ..sheets import save_sheet


# Sums of half-precision probabilities of several spellings of an answer may exceed 1 by their rounding.
_ROUNDING = 0.01

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
_ROWS = {"geneval2": ("prompt", "gm"), "wise": ("prompt_id", "score")}  # what a row is about, and its score


# GenEval 2


@dataclass(frozen=True)
class AtomicPrompt:
    """A prompt of GenEval 2.

    Args:
        prompt: What to draw.
        atom_count: How many things it says.
        questions: `(question, right answer)`, one per atom; "a" is asked about too and not counted in `atom_count`.
        skills: "object", "attribute", "count", "position", ...: one per question.
    """

    prompt: str
    atom_count: int
    questions: tuple[tuple[str, str], ...]
    skills: tuple[str, ...]


def read_geneval2(path: str | os.PathLike[str]) -> list[AtomicPrompt]:
    """Read `geneval2_data.jsonl`.

    Raises:
        FileNotFoundError: There is no such file; says where to get it.
        ValueError: A line is not of its layout.
    """
    prompts = []
    for number, row in enumerate(_json_lines(_existing(path, "geneval2")), start=1):
        missing = [key for key in ("prompt", "atom_count", "vqa_list", "skills") if key not in row]
        if missing or len(row["vqa_list"]) != len(row["skills"]) or not row["vqa_list"]:
            raise ValueError(
                "Expected prompt, atom_count, and as many skills as pairs in vqa_list, at least one, in line "
                f"{number} of {path}; found {_found(row)}."
            )
        pairs = tuple((question, answer) for question, answer in row["vqa_list"])
        prompts.append(AtomicPrompt(row["prompt"], int(row["atom_count"]), pairs, tuple(row["skills"])))
    return prompts


def soft_tifa(probabilities: Sequence[float]) -> tuple[float, float]:
    """Arithmetic and geometric mean of one prompt's probabilities, in [0, 1]; one zero makes the latter zero.

    Raises:
        ValueError: If there are none, or one is outside [0, 1].
    """
    if not probabilities or not all(0 <= value <= 1 + _ROUNDING for value in probabilities):
        raise ValueError(f"expected probabilities in [0, 1]; got {list(probabilities)}")
    count = len(probabilities)
    geometric = math.exp(sum(map(math.log, probabilities)) / count) if min(probabilities) > 0 else 0.0
    return sum(probabilities) / count, geometric


def score_geneval2(prompts: Sequence[AtomicPrompt], probabilities: Mapping[str, Sequence[float]]) -> Report:
    """Soft-TIFA over the benchmark, in percent.

    Args:
        prompts: Of `read_geneval2`.
        probabilities: By prompt: what the judge gave to the right answer of each question, in their order.

    Returns:
        `soft_tifa_gm` (primary) and `soft_tifa_am`, means over prompts of the two means; then per skill the mean over
        its questions, and per atom count the mean geometric mean. Prompts without fitting probabilities are failures.
    """
    rows: list[dict[str, Any]] = []
    failures: list[str] = []
    groups: dict[str, list[float]] = {"soft_tifa_gm": [], "soft_tifa_am": []}
    skills: dict[str, list[float]] = {}
    counts: dict[int, list[float]] = {}
    for prompt in prompts:
        given = list(probabilities.get(prompt.prompt, ()))
        try:
            if len(given) != len(prompt.questions):
                raise ValueError(f"expected {len(prompt.questions)} probabilities, got {len(given)}")
            arithmetic, geometric = soft_tifa(given)
        except ValueError as error:
            failures.append(f"{prompt.prompt!r}: {error}")
            continue
        groups["soft_tifa_gm"].append(geometric)
        groups["soft_tifa_am"].append(arithmetic)
        counts.setdefault(prompt.atom_count, []).append(geometric)
        for skill, value in zip(prompt.skills, given, strict=True):
            skills.setdefault(skill, []).append(value)
        rows.append({"prompt": prompt.prompt, "am": arithmetic, "gm": geometric, "probabilities": given})
    groups |= {skill: values for skill, values in sorted(skills.items())}
    groups |= {f"{count} atoms": values for count, values in sorted(counts.items())}
    metrics = {name: 100 * sum(values) / len(values) for name, values in groups.items() if values}
    protocol = f"{look_up('geneval2').protocol} In percent."
    return Report("geneval2", metrics, "soft_tifa_gm", protocol, {"prompts": len(prompts)}, rows, failures)


# WISE


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


# Both


def save_verdicts(report: Report, folder: str | os.PathLike[str]) -> None:
    """Put what the judge's verdicts add up to beside the pictures: `report.json`, `report.md`, `results.jsonl`, and
    `sheet.png` with the best and the worst.

    Args:
        report: Of `score_geneval2` or `score_wise`. It gets the settings that the pictures were drawn with.
        folder: Where they were drawn (`janus-hf eval geneval2`, `wise`).

    Raises:
        FileNotFoundError: If no drawing has finished there.
        ValueError: If a prompt of the report was not drawn there.
    """
    folder = Path(folder)
    key, score = _ROWS[report.benchmark]
    report.settings = Report.load(folder).settings | report.settings
    drawn = {}
    for path in sorted(folder.glob("*/metadata.jsonl")):
        item = json.loads(path.read_text(encoding="utf-8"))
        drawn[item[key]] = (item["prompt"], path.parent / "samples" / "0000.png")
    if strange := [row[key] for row in report.rows if row[key] not in drawn]:
        raise ValueError(
            f"Expected verdicts about what was drawn in {folder}; {len(strange)} prompts were not, such as "
            f"{strange[0]!r}. Name the folder that the judged pictures are from."
        )
    report.save(folder)
    if report.rows:
        prompts, pictures = zip(*(drawn[row[key]] for row in report.rows), strict=True)
        save_sheet(folder, pictures, prompts, [row[score] for row in report.rows], pass_mark=0.5)


def _wise_category(number: int) -> str | None:
    if number < 1:
        return None
    return next((name for name, (last, _) in _WISE_CATEGORIES.items() if number <= last), None)


def _existing(path: str | os.PathLike[str], benchmark: str) -> Path:
    if not Path(path).exists():
        raise FileNotFoundError(f"Expected the data at {path}; there is nothing. Get {look_up(benchmark).data}.")
    return Path(path)


def _json_lines(path: Path) -> list[dict[str, Any]]:
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines if line.strip()]


def _found(row: Any) -> str:
    return f"{sorted(row)}" if isinstance(row, dict) else type(row).__name__


__all__ = [
    "AtomicPrompt",
    "KnowledgePrompt",
    "read_geneval2",
    "read_wise",
    "read_wise_marks",
    "save_verdicts",
    "score_geneval2",
    "score_wise",
    "soft_tifa",
    "wiscore",
]
