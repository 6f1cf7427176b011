"""Functions that parse a model's answers to questions about images, and compute the metrics of a benchmark from them.

They need neither a model nor files. Parsing is strict: an answer that does not have the requested form is wrong and is
counted as unparsed. VLMEvalKit searches sentences for the answer, or asks another model to find it. For a model that
answers in the requested form, both methods agree.
"""

import re
import string
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from ..paper import look_up
from .protocol import MULTIPLE_CHOICE, YES_NO
from .questions import POPE_SPLITS, Question


# Names of MME's tasks, in the benchmark's two groups.
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

Row = dict[str, Any]  # an answer with its question and verdict, as a report lists it


def parse_yes_no(text: str) -> str | None:
    """Return "yes" or "no" if the text is that word alone, in any case, with at most one full stop; otherwise None."""
    word = text.strip().removesuffix(".").strip().lower()
    return word if word in ("yes", "no") else None


def parse_letter(text: str, letters: Iterable[str]) -> str | None:
    """Return the letter of the option that an answer such as "B", "B.", "(B)", "B. a dog" or "B) a dog" chooses.

    Args:
        text: The answer.
        letters: Letters of the question's options.

    Returns:
        The capital letter; None if the answer has another form, or the letter is not one of `letters`.
    """
    match = re.match(r"\(?([A-Z])\)?(?:[.:]?$|[.:)]\s)", text.strip())
    return match[1] if match and match[1] in set(letters) else None


def normalise(text: str) -> str:
    """Return a text in lower case, without ASCII punctuation, and with single spaces in place of all white space.

    White space at the ends is removed. lmms-eval compares answers to the benchmark GQA in this form.
    """
    return " ".join(text.lower().translate(str.maketrans("", "", string.punctuation)).split())


def judge_answers(
    benchmark: str, questions: Sequence[Question], answers: Mapping[str, str]
) -> tuple[dict[str, float], list[Row]]:
    """Decide which answers to a benchmark's questions are correct, and compute the metrics.

    Args:
        benchmark: Name of the benchmark, one of `protocol.BENCHMARKS`.
        questions: Questions of the benchmark with their correct answers.
        answers: The model's answers by index of the question. Questions without an answer are left out. In MME, which
            has two questions per image, images with only one answer do not count for accuracy+.

    Returns:
        The metrics by name, and one row (a dictionary) per answer. Metrics are in percent, except for MME's sums: the
        score of an MME task is accuracy + accuracy+ (percentage of images with two correct answers), at most 200;
        `perception` is the sum over ten tasks and `cognition` over four. A row has the question, the model's answer
        (`given`), its parsed form (`parsed`; None if it could not be parsed) and whether it is `correct`. MM-Vet has
        no metrics, and its rows have no verdict, because an external model judges its answers.
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
    """Return the name of a benchmark's main metric, which is the one that the papers report.

    Args:
        benchmark: Name of the benchmark, one of `protocol.BENCHMARKS`.
        metrics: Names of the metrics that a run has. If the papers' metric is not among them, as for POPE without its
            random split, the first of these names is returned. Without names, the papers' metric is returned.
    """
    papers = next(iter(look_up(benchmark).scores.values()))
    name = next(iter(papers))
    return name if not metrics or name in metrics else next(iter(metrics))


def missing_tasks(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the names of MME's tasks that have no row, and that MME's sums therefore lack.

    Args:
        rows: Rows of MME's answers, as `judge_answers` returns them.
    """
    present = {category for row in rows for category in row["categories"]}
    return [task for task in (*PERCEPTION, *COGNITION) if task not in present]


def _row(benchmark: str, question: Question, given: str) -> Row:
    """Return the row of a report for one answer; see `judge_answers` for its keys.

    The row has no verdict if the benchmark is MM-Vet, which an external model judges.

    Args:
        benchmark: Name of the benchmark.
        question: The question with its correct answer.
        given: The model's answer.
    """
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
    """Return the function that parses an answer to the question.

    That function returns the parsed answer, or None if the answer does not have the requested form.
    """
    if benchmark in YES_NO:
        return parse_yes_no
    if benchmark in MULTIPLE_CHOICE and question.options:
        return lambda text: parse_letter(text, question.options)
    return normalise


def _percent(values: Iterable[bool]) -> float:
    """Return the percentage of values that are true; 0 if there are no values."""
    listed = list(values)
    return 100 * sum(listed) / len(listed) if listed else 0.0


def _accuracy(rows: Iterable[Row]) -> float:
    """Return the percentage of rows whose answer is correct; 0 if there are no rows."""
    return _percent(row["correct"] for row in rows)


def _by_category(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Group the rows by category, and return lists of rows by name of the category. A row may be in several lists."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        for category in row["categories"]:
            groups.setdefault(category, []).append(row)
    return groups


def _accuracies(rows: Sequence[Row]) -> dict[str, float]:
    """Return percentages of correct answers by name: `overall` for all rows, then one for each category."""
    return {"overall": _accuracy(rows)} | {
        name: _accuracy(group) for name, group in sorted(_by_category(rows).items())
    }


def _pope(rows: Sequence[Row]) -> dict[str, float]:
    """Return POPE's metrics by name, in percent.

    They are, for each split, accuracy, precision, recall, F1 and the share of the answer "yes"; then `overall`, the
    accuracy over all splits. An unparsed answer is wrong and does not count as "yes": it lowers recall and leaves
    precision as it is.
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
    """Return MME's metrics by name: its two sums, the score of each task, and the task's accuracy and accuracy+.

    Accuracy is the percentage of correct answers. Accuracy+ is the percentage of images whose two questions are both
    answered correctly. The score of a task is accuracy + accuracy+; `perception` and `cognition` are sums of scores.
    """
    tasks: dict[str, float] = {}
    details: dict[str, float] = {}
    for task, group in _by_category(rows).items():
        verdicts: dict[str, list[bool]] = {}
        for row in group:
            verdicts.setdefault(row["picture"], []).append(row["correct"])
        # An image with only one of its two answers, as at the end of a limited run, does not count.
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
