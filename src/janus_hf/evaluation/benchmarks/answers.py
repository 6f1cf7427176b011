"""Parse the answers to an understanding benchmark and add up its metrics. Pure functions: no model, no files.

Parsing is strict: an answer that does not have the requested form is wrong and is counted as unparsed. VLMEvalKit
searches sentences for the answer, or asks another model to find it; for a model that keeps to the form, both agree.
"""

import re
import string
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from ..paper import look_up
from .protocol import MULTIPLE_CHOICE, YES_NO
from .questions import POPE_SPLITS, Question


# MME's tasks, in its two groups.
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

Row = dict[str, Any]  # one answer in a report


def parse_yes_no(text: str) -> str | None:
    """Return "yes" or "no" if the answer is that word, in any case and with at most one full stop; otherwise None."""
    word = text.strip().removesuffix(".").strip().lower()
    return word if word in ("yes", "no") else None


def parse_letter(text: str, letters: Iterable[str]) -> str | None:
    """Return the capital letter of an option from an answer such as "B", "B.", "(B)", "B. a dog", "B) a dog".

    Returns:
        The letter; None if the answer has another form or the letter is not one of `letters`.
    """
    match = re.match(r"\(?([A-Z])\)?(?:[.:]?$|[.:)]\s)", text.strip())
    return match[1] if match and match[1] in set(letters) else None


def normalise(text: str) -> str:
    """Return the text in lower case, without ASCII punctuation, each run of white space as one space.

    lmms-eval compares GQA's answers in this form.
    """
    return " ".join(text.lower().translate(str.maketrans("", "", string.punctuation)).split())


def judge_answers(
    benchmark: str, questions: Sequence[Question], answers: Mapping[str, str]
) -> tuple[dict[str, float], list[Row]]:
    """Score the answers to a benchmark.

    Args:
        benchmark: One of `protocol.BENCHMARKS`.
        questions: The questions.
        answers: Answers by index. Questions without an answer are left out; in MME, images with only one of two
            answers do not count for accuracy+.

    Returns:
        The metrics, the primary one first, and a row per answer. Metrics are in percent, except for MME's sums: the
        score of a task is accuracy + accuracy+ (at most 200), `perception` is the sum over ten tasks and `cognition`
        over four. A row has the question, the answer (`given`), its parsed form (`parsed`; None if it could not be
        parsed) and whether it is `correct`. MM-Vet has no metrics, and its rows no verdict, because an external model
        judges its answers.
    """
    rows = [_row(benchmark, question, answers[question.index]) for question in questions if question.index in answers]
    if benchmark == "mmvet" or not rows:
        return {}, rows
    metrics = {"pope": _pope, "mme": _mme}.get(benchmark, _accuracies)(rows)
    # Any text is an answer to GQA's open questions, so none is unparsed.
    if benchmark != "gqa":
        metrics["unparsed"] = _percent(row["parsed"] is None for row in rows)
    return metrics, rows


def primary_metric(benchmark: str, metrics: Collection[str] = ()) -> str:
    """Return the name of the metric that stands for the benchmark.

    Args:
        benchmark: Name of the benchmark.
        metrics: Names of the metrics of a run. If the papers' metric is not among them, as for POPE without its random
            split, the first one is returned. Without names, the papers' metric is returned.
    """
    papers = next(iter(look_up(benchmark).scores.values()))
    name = next(iter(papers))
    return name if not metrics or name in metrics else next(iter(metrics))


def missing_tasks(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return MME's tasks that no row belongs to; the benchmark's sums lack them."""
    present = {category for row in rows for category in row["categories"]}
    return [task for task in (*PERCEPTION, *COGNITION) if task not in present]


def _row(benchmark: str, question: Question, given: str) -> Row:
    """Return the row of an answer, with its verdict unless an external model judges it."""
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
    # Answers in words are compared in normalised form; letters, yes and no exactly.
    if not question.options:
        expected = normalise(expected)
    return row | {"answer": question.answer, "parsed": parsed, "correct": parsed == expected}


def _parser(benchmark: str, question: Question) -> Callable[[str], str | None]:
    """Return the function that parses an answer to the question, and returns None if it has another form."""
    if benchmark in YES_NO:
        return parse_yes_no
    if benchmark in MULTIPLE_CHOICE and question.options:
        return lambda text: parse_letter(text, question.options)
    return normalise


def _percent(values: Iterable[bool]) -> float:
    """Return the percentage of true values; 0 if there are no values."""
    listed = list(values)
    return 100 * sum(listed) / len(listed) if listed else 0.0


def _accuracy(rows: Iterable[Row]) -> float:
    """Return the percentage of correct rows."""
    return _percent(row["correct"] for row in rows)


def _by_category(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Return the rows of each category; a row may have several."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        for category in row["categories"]:
            groups.setdefault(category, []).append(row)
    return groups


def _accuracies(rows: Sequence[Row]) -> dict[str, float]:
    """Return the accuracy over all rows and that of each category."""
    return {"overall": _accuracy(rows)} | {
        name: _accuracy(group) for name, group in sorted(_by_category(rows).items())
    }


def _pope(rows: Sequence[Row]) -> dict[str, float]:
    """Return accuracy, precision, recall, F1 and share of "yes" per split of POPE, and the accuracy over all splits.

    An unparsed answer is wrong and does not count as "yes": it lowers recall and leaves precision as it is.
    """
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
    """Return MME's two sums, the score of each task, and its accuracy and accuracy+ (both questions correct)."""
    tasks: dict[str, float] = {}
    details: dict[str, float] = {}
    for task, group in _by_category(rows).items():
        verdicts: dict[str, list[bool]] = {}
        for row in group:
            verdicts.setdefault(row["picture"], []).append(row["correct"])
        # An image with one answer of two, as at the end of a limited run, does not count.
        plus = _percent(all(pair) for pair in verdicts.values() if len(pair) == 2)
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
