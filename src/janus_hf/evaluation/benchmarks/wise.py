"""WISE, a benchmark of image generation: read its prompts, and compute its score from the marks of a judge.

The score is called WiScore. The data are not part of this package, so the user must have the files. The judge gives
each image marks from 0 to 2 for consistency, realism and aesthetics, and runs outside of this package. This module
follows the first release of WISE, as the leaderboards do; a later release asks for a single verdict of 0 or 1.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...arguments import checked
from ..data_files import check_keys, existing_path, read_json_lines, where_to_get
from ..paper import look_up
from ..report import Report


# As in WISE's Calculate.py: the last prompt of each category, and the category's weight.
_CATEGORIES = {
    "culture": (400, 0.4),
    "time": (567, 0.167),
    "space": (700, 0.133),
    "biology": (800, 0.1),
    "physics": (900, 0.1),
    "chemistry": (1000, 0.1),
}
_NO_MARK = 999  # the official script's value for a mark that the judge did not give
_MARKS = ("consistency", "realism", "aesthetic_quality")


@dataclass(frozen=True)
class KnowledgePrompt:
    """A prompt of WISE, or of a data set in its layout.

    Args:
        prompt_id: Number of the prompt; its image is called `{prompt_id}.png`.
        prompt: Text to generate an image from.
        explanation: What the image must show, as a text for the judge.
        category: Category of the prompt. For numbers 1 to 1000 it follows from WISE's official ranges; for others it
            is the one in the file.
        subcategory: Subcategory of the prompt in the file.
    """

    prompt_id: int
    prompt: str
    explanation: str
    category: str
    subcategory: str = ""


@checked()
def read_wise(path: str | os.PathLike[str]) -> list[KnowledgePrompt]:
    """Read the prompts of WISE.

    Args:
        path: A `.json` list of `{"prompt_id", "Prompt", "Explanation", "Category", "Subcategory"}`, or a folder of
            such files.

    Raises:
        FileNotFoundError: If there is no such file. The message says where to get it.
        ValueError: If an entry is not in this layout, or a `prompt_id` occurs twice.
    """
    path = existing_path(path, "wise")
    files = sorted(path.glob("*.json")) if path.is_dir() else [path]
    prompts: dict[int, KnowledgePrompt] = {}
    for file in files:
        for position, entry in enumerate(json.loads(file.read_text(encoding="utf-8"))):
            row = check_keys(entry, ("prompt_id", "Prompt", "Explanation"), f"{file}, entry {position}")
            number = int(row["prompt_id"])
            if number in prompts:
                raise ValueError(f"Every prompt_id must occur once, but {file} repeats {number}: remove the copy.")
            category = _category(number) or str(row.get("Category", "other"))
            prompts[number] = KnowledgePrompt(
                number, row["Prompt"], row["Explanation"], category, str(row.get("Subcategory", ""))
            )
    if not prompts:
        raise FileNotFoundError(f"{path} must hold .json files, and there are no prompts. {where_to_get('wise')}")
    return list(prompts.values())


def _category(number: int) -> str | None:
    """Return the official category of the WISE prompt with this number; None outside 1 to 1000."""
    if number < 1:
        return None
    return next((name for name, (last, _) in _CATEGORIES.items() if number <= last), None)


@checked()
def read_wise_marks(path: str | os.PathLike[str]) -> dict[int, tuple[float, float, float]]:
    """Read the marks that a judge gave to the images of WISE.

    The official script writes 999 for a mark that the judge did not give. Such marks are returned as they are, and
    `wiscore` refuses them.

    Args:
        path: JSON Lines file of `{"prompt_id", "consistency", "realism", "aesthetic_quality"}`, as the official script
            writes it.

    Returns:
        By `prompt_id`, the marks (consistency, realism, aesthetic quality).

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a line lacks one of these keys.
    """
    marks = {}
    path = existing_path(path, "wise")
    for number, line in read_json_lines(path):
        row = check_keys(line, ("prompt_id", *_MARKS), f"{path}, line {number}")
        consistency, realism, aesthetics = (float(row[key]) for key in _MARKS)
        marks[int(row["prompt_id"])] = (consistency, realism, aesthetics)
    return marks


def wiscore(consistency: float, realism: float, aesthetics: float) -> float:
    """Return the WiScore of an image, (0.7 consistency + 0.2 realism + 0.1 aesthetics) / 2, in [0, 1].

    Raises:
        ValueError: If a mark is outside [0, 2].
    """
    marks = (consistency, realism, aesthetics)
    if _NO_MARK in marks:
        raise ValueError("the judge gave no marks")
    if not all(0 <= mark <= 2 for mark in marks):
        raise ValueError(f"the marks must be in [0, 2], got {marks}")
    return (0.7 * consistency + 0.2 * realism + 0.1 * aesthetics) / 2


def score_wise(prompts: Sequence[KnowledgePrompt], marks: Mapping[int, tuple[float, float, float]]) -> Report:
    """Compute the WiScore of each category and of all prompts from a judge's marks, in [0, 1].

    Args:
        prompts: Prompts of the benchmark, as `read_wise` returns them.
        marks: By `prompt_id`, the judge's marks for consistency, realism and aesthetic quality, each in [0, 2].

    Returns:
        The report. Its metric `overall` (primary) is the official weighted sum over the six categories. If one of them
        has no marks, or there are other categories, it is the mean over images instead, and the protocol says so.
        Images without marks are failures.
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
    # The official weights hold only for all six categories together.
    if metrics.keys() == _CATEGORIES.keys():
        overall = sum(weight * metrics[name] for name, (_, weight) in _CATEGORIES.items())
        protocol += " Overall is the weighted sum over six categories."
    else:
        overall = sum(row["score"] for row in rows) / max(1, len(rows))
        protocol += " Not the six categories of WISE: overall is the mean over images."
    metrics = {"overall": overall} | metrics if rows else {}
    return Report("wise", metrics, "overall", protocol, {"prompts": len(prompts)}, rows, failures)


__all__ = ["KnowledgePrompt", "read_wise", "read_wise_marks", "score_wise", "wiscore"]
