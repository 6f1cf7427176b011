"""GenEval 2, a benchmark of image generation: read its prompts, and compute its score from a judge's probabilities.

The score is called Soft-TIFA. The data are not part of this package (CC-BY-NC-4.0), so the user must have the file.
The judge is a vision-language model, which gives a probability to the correct answer of each question about an image.
It runs outside of this package.
"""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...arguments import checked
from ..data_files import check_keys, existing_path, read_json_lines
from ..paper import look_up
from ..report import Report


# A judge may add up half-precision probabilities of several spellings of an answer. Rounding can then raise the sum
# above 1, by at most this much.
_ROUNDING = 0.01


@dataclass(frozen=True)
class AtomicPrompt:
    """A prompt of GenEval 2 with its atoms: the objects, attributes, counts and positions that it names.

    Args:
        prompt: Text to generate an image from.
        atom_count: Number of atoms.
        questions: Pairs `(question, correct answer)`, one per atom. The article "a" also has a question, which
            `atom_count` does not count.
        skills: Kind of each question's atom: "object", "attribute", "count", "position", ...
    """

    prompt: str
    atom_count: int
    questions: tuple[tuple[str, str], ...]
    skills: tuple[str, ...]


@checked()
def read_geneval2(path: str | os.PathLike[str]) -> list[AtomicPrompt]:
    """Read the prompts of GenEval 2 from its file `geneval2_data.jsonl`.

    Raises:
        FileNotFoundError: If there is no such file. The message says where to get it.
        ValueError: If a line does not have the layout of this file.
    """
    prompts = []
    path = existing_path(path, "geneval2")
    for number, line in read_json_lines(path):
        origin = f"{path}, line {number}"
        row = check_keys(line, ("prompt", "atom_count", "vqa_list", "skills"), origin)
        if len(row["vqa_list"]) != len(row["skills"]) or not row["vqa_list"]:
            raise ValueError(
                f"{origin} must have a skill for each question, and at least one question, got {len(row['skills'])} "
                f"skills and {len(row['vqa_list'])} questions."
            )
        pairs = tuple((question, answer) for question, answer in row["vqa_list"])
        prompts.append(AtomicPrompt(row["prompt"], int(row["atom_count"]), pairs, tuple(row["skills"])))
    return prompts


def soft_tifa(probabilities: Sequence[float]) -> tuple[float, float]:
    """Return the arithmetic and the geometric mean of a prompt's probabilities; both are in [0, 1] up to rounding.

    Args:
        probabilities: Probability that the judge gave to the correct answer of each question about the image.

    Raises:
        ValueError: If there are no probabilities, or one is below 0, or above 1 by more than a rounding error.
    """
    if not probabilities or not all(0 <= value <= 1 + _ROUNDING for value in probabilities):
        raise ValueError(f"the probabilities must be in [0, 1], got {list(probabilities)}")
    count = len(probabilities)
    # The condition is necessary, because zero has no logarithm.
    geometric = math.exp(sum(map(math.log, probabilities)) / count) if min(probabilities) > 0 else 0.0
    return sum(probabilities) / count, geometric


def score_geneval2(prompts: Sequence[AtomicPrompt], probabilities: Mapping[str, Sequence[float]]) -> Report:
    """Compute the scores of GenEval 2 (Soft-TIFA) from a judge's probabilities, in percent.

    Args:
        prompts: Prompts of the benchmark, as `read_geneval2` returns them.
        probabilities: By text of the prompt, the probability that the judge gave to the correct answer of each
            question, in the order of the questions.

    Returns:
        The report. Its metrics are `soft_tifa_gm` (primary) and `soft_tifa_am`, the means over prompts of the
        geometric and the arithmetic mean of a prompt's probabilities; then, for each skill (kind of question), the
        mean over its questions; and, for each number of atoms, the mean of the geometric means. Prompts without the
        right number of probabilities are failures.
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
                raise ValueError(f"there must be {len(prompt.questions)} probabilities, got {len(given)}")
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
