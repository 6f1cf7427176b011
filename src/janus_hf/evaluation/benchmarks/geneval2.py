"""GenEval 2: its prompts from a file that the user has, and what its judge's verdicts add up to."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..paper import look_up
from ..report import Report


# Sums of half-precision probabilities of several spellings of an answer may exceed 1 by their rounding.
_ROUNDING = 0.01


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


__all__ = ["AtomicPrompt", "read_geneval2", "score_geneval2", "soft_tifa"]
