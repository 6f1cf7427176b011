"""The arithmetic of DPG-Bench."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass



@dataclass(frozen=True)
class Proposition:
    """One thing that a prompt says.

    Args:
        id: Its number within the prompt, from 1.
        question: What the judge is asked.
        parents: Numbers of the propositions it presupposes; 0 is none.
        category: "entity - whole", "attribute - color", "global", ...; what is before the dash is the broad category.
    """

    id: int
    question: str
    parents: tuple[int, ...]
    category: str
@dataclass(frozen=True)
class Quirks:
    """Habits of the official script, on by default for the sake of comparison.

    Args:
        skip_first_row: The first proposition of the file is not asked. If others of its prompt depend on it, that
            prompt cannot be scored.
        last_crop_categories: Scores of categories come from the last picture of a grid only, and parents do not matter
            to them. Otherwise from all pictures, with parents.
        drop_failed: Prompts that could not be scored are left out of the mean. Otherwise every answer to them was no.
            They are reported either way, which the official script does not do.
    """

    skip_first_row: bool = True
    last_crop_categories: bool = True
    drop_failed: bool = True


@dataclass(frozen=True)
class PromptScore:
    """What a prompt's pictures scored.

    Args:
        item_id: The prompt.
        pictures: Share of propositions that hold, per picture; in [0, 1].
        categories: Scores (0 or 1) that count for each category.
    """

    item_id: str
    pictures: tuple[float, ...]
    categories: Mapping[str, Sequence[float]]

    @property
    def score(self) -> float:
        """Mean over the pictures."""
        return sum(self.pictures) / len(self.pictures)


def score_image(answers: Mapping[int, str], dependencies: Mapping[int, Sequence[int]]) -> dict[int, float]:
    """Scores of one picture's propositions, with parents: 1 if the answer is exactly "yes" and no parent is at 0.

    Propositions are gone through in the order of `dependencies`, and parents are looked up as they are by then: a
    child that stands before its parent sees the parent's own answer only, not what the parent's parents make of it.

    Args:
        answers: By number.
        dependencies: Parents by number; 0 is no parent.

    Raises:
        ValueError: If a proposition depends on one that was not asked.
    """
    scores = {number: float(answers[number] == "yes") for number in dependencies}
    for number, parents in dependencies.items():
        for parent in parents:
            if parent == 0:
                continue
            if parent not in scores:
                raise ValueError(f"proposition {number} depends on {parent}, which was not asked")
            if scores[parent] == 0:
                scores[number] = 0.0
                break
    return scores


def score_prompt(
    item_id: str,
    propositions: Sequence[Proposition],
    answers: Sequence[Sequence[str]],
    quirks: Quirks | None = None,
) -> PromptScore:
    """Score a prompt's pictures.

    Args:
        item_id: The prompt.
        propositions: What was asked.
        answers: Per picture, in the order of the propositions.
        quirks: Only `last_crop_categories` matters.

    Raises:
        ValueError: As in `score_image`, or there is not one answer per proposition, or one is empty.
    """
    if not answers:
        raise ValueError("expected at least one picture; got none")
    dependencies = {proposition.id: proposition.parents for proposition in propositions}
    pictures = []
    counted: dict[str, list[float]] = {}
    for picture, given in enumerate(answers):
        if len(given) != len(propositions) or not all(given):
            raise ValueError(
                f"the judge answered {sum(map(bool, given))} of {len(propositions)} questions about picture {picture}"
            )
        by_number = {proposition.id: answer for proposition, answer in zip(propositions, given, strict=True)}
        scores = score_image(by_number, dependencies)
        pictures.append(sum(scores.values()) / len(scores))
        if (quirks or Quirks()).last_crop_categories:
            scores, counted = {number: float(answer == "yes") for number, answer in by_number.items()}, {}
        for proposition in propositions:
            counted.setdefault(proposition.category, []).append(scores[proposition.id])
    return PromptScore(item_id, tuple(pictures), counted)


def summarise(scores: Sequence[PromptScore]) -> dict[str, float]:
    """Mean over prompts, and over the propositions of each broad and each detailed category; all times 100.

    Returns:
        `overall`, then the broad categories ("entity", "relation", ...), then the detailed ones.
    """
    detailed: dict[str, list[float]] = {}
    broad: dict[str, list[float]] = {}
    for score in scores:
        for category, values in score.categories.items():
            detailed.setdefault(category, []).extend(values)
            broad.setdefault(category.split("-")[0].strip(), []).extend(values)
    if not scores:
        return {}
    groups = (
        {"overall": [score.score for score in scores]} | dict(sorted(broad.items())) | dict(sorted(detailed.items()))
    )
    return {name: 100 * sum(values) / len(values) for name, values in groups.items()}


__all__ = ["PromptScore", "Proposition", "Quirks", "score_image", "score_prompt", "summarise"]
