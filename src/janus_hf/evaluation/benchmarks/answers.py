"""What an answer says, and what the answers to a benchmark add up to. Pure: no model, no files.

Parsing is strict: an answer that is not in the form asked for is wrong and is counted as unparsed. VLMEvalKit searches
sentences for the answer or asks another model; where a model keeps to the form, both agree.
"""

import re
import string
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from ..paper import look_up
from .protocol import MULTIPLE_CHOICE, YES_NO
from .questions import POPE_SPLITS, Question


PERCEPTION = (
    "existence",
    "count",
    "position",
    "color",
    "posters",
    "celebrity",
    "scene",
    "landmark",
    "artwork",
    "OCR",
)
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")

Row = dict[str, Any]


def parse_yes_no(text: str) -> str | None:
    """ "yes" or "no", if the answer is that word and nothing else but a full stop, in whatever case; else None."""
    word = text.strip().removesuffix(".").strip().lower()
    return word if word in ("yes", "no") else None


def parse_letter(text: str, letters: Iterable[str]) -> str | None:
    """The capital letter of an option, if the answer is "B", "B.", "(B)" or begins "B. ", "B) ", "B: "; else None."""
    match = re.match(r"\(?([A-Z])\)?(?:[.:]?$|[.:)]\s)", text.strip())
    return match[1] if match and match[1] in set(letters) else None


def normalise(text: str) -> str:
    """Lower case, without ASCII punctuation, runs of white space as one space: what lmms-eval compares for GQA."""
    return " ".join(text.lower().translate(str.maketrans("", "", string.punctuation)).split())


def judge_answers(
    benchmark: str, questions: Sequence[Question], answers: Mapping[str, str]
) -> tuple[dict[str, float], list[Row]]:
    """Score the answers.

    Metrics are in percent, but for MME's sums: a task scores accuracy + accuracy+ (at most 200), and `perception` and
    `cognition` are sums over ten and four tasks.

    Args:
        benchmark: One of `protocol.BENCHMARKS`.
        questions: What was asked.
        answers: By index. Questions without one are left out; in MME, pictures with one answer of two do not count for
            accuracy+.

    Returns:
        Metrics, the primary one first, and a row per answer: what was asked and given, how it was understood
        (`parsed`, None if it was not), and whether it is `correct`. MM-Vet has rows without a verdict, and no metrics:
        a model judges its answers.
    """
    rows = [_row(benchmark, question, answers[question.index]) for question in questions if question.index in answers]
    if benchmark == "mmvet" or not rows:
        return {}, rows
    metrics = {"pope": _pope, "mme": _mme}.get(benchmark, _accuracies)(rows)
    if benchmark != "gqa":
        metrics["unparsed"] = _percent(row["parsed"] is None for row in rows)
    return metrics, rows


def primary_metric(benchmark: str, metrics: Collection[str] = ()) -> str:
    """The metric that stands for the benchmark: the papers', or of metrics without it, as of POPE without its random
    split, the first one.
    """
    papers = next(iter(look_up(benchmark).scores.values()))
    name = next(iter(papers))
    return name if not metrics or name in metrics else next(iter(metrics))


def missing_tasks(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """MME's tasks that no row belongs to: the sums lack them."""
    there = {category for row in rows for category in row["categories"]}
    return [task for task in (*PERCEPTION, *COGNITION) if task not in there]


def _row(benchmark: str, question: Question, given: str) -> Row:
    row = {
        "index": question.index,
        "categories": list(question.categories),
        "picture": question.picture_name,
        "question": question.question,
        "given": given,
    }
    if benchmark == "mmvet":
        return row
    expected, parsed = question.answer, _parser(benchmark, question)(given)
    if not question.options:
        expected = normalise(expected)
    return row | {"answer": question.answer, "parsed": parsed, "correct": parsed == expected}


def _parser(benchmark: str, question: Question) -> Callable[[str], str | None]:
    if benchmark in YES_NO:
        return parse_yes_no
    if benchmark in MULTIPLE_CHOICE and question.options:
        return lambda text: parse_letter(text, question.options)
    return normalise


def _percent(values: Iterable[bool]) -> float:
    """Share of true ones; 0 of none."""
    listed = list(values)
    return 100 * sum(listed) / len(listed) if listed else 0.0


def _accuracy(rows: Iterable[Row]) -> float:
    return _percent(row["correct"] for row in rows)


def _by_category(rows: Iterable[Row]) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        for category in row["categories"]:
            groups.setdefault(category, []).append(row)
    return groups


def _accuracies(rows: Sequence[Row]) -> dict[str, float]:
    return {"overall": _accuracy(rows)} | {
        name: _accuracy(group) for name, group in sorted(_by_category(rows).items())
    }


def _pope(rows: Sequence[Row]) -> dict[str, float]:
    """Per split. An unparsed answer is wrong and no yes: it costs recall, not precision."""
    groups = _by_category(rows)
    metrics: dict[str, float] = {}
    for split in [name for name in POPE_SPLITS if name in groups]:
        group = groups[split]
        precision = _percent(row["answer"] == "yes" for row in group if row["parsed"] == "yes")
        recall = _percent(row["parsed"] == "yes" for row in group if row["answer"] == "yes")
        metrics |= {
            split: _accuracy(group),
            f"{split} precision": precision,
            f"{split} recall": recall,
            f"{split} F1": 2 * precision * recall / (precision + recall) if precision + recall else 0.0,
            f"{split} yes": _percent(row["parsed"] == "yes" for row in group),
        }
    return metrics | {"overall": _accuracy([row for group in groups.values() for row in group])}


def _mme(rows: Sequence[Row]) -> dict[str, float]:
    tasks: dict[str, float] = {}
    details: dict[str, float] = {}
    for task, group in _by_category(rows).items():
        pictures: dict[str, list[bool]] = {}
        for row in group:
            pictures.setdefault(row["picture"], []).append(row["correct"])
        plus = _percent(all(verdicts) for verdicts in pictures.values() if len(verdicts) == 2)
        tasks[task] = _accuracy(group) + plus
        details |= {f"{task} accuracy": _accuracy(group), f"{task} accuracy+": plus}
    sums = {
        "perception": sum(tasks.get(task, 0.0) for task in PERCEPTION),
        "cognition": sum(tasks.get(task, 0.0) for task in COGNITION),
    }
    return sums | tasks | details


__all__ = [
    "COGNITION",
    "PERCEPTION",
    "judge_answers",
    "missing_tasks",
    "normalise",
    "parse_letter",
    "parse_yes_no",
    "primary_metric",
]
