"""DPG-Bench's arithmetic: from answers about propositions to scores of images, prompts and the whole benchmark.

A proposition is one statement of a prompt, such as "there is a dog". It may depend on parents: "the dog is red" cannot
hold unless there is a dog. The arithmetic is that of TencentQQGYLab/ELLA (dpg_bench/compute_dpg_bench.py); habits of
that script that move the scores are in `Quirks`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Proposition:
    """One statement of a prompt, as a yes-or-no question.

    Args:
        id: Number within the prompt, from 1.
        question: Question for the judge.
        parents: Numbers of the propositions that it depends on; 0 stands for no parent.
        category: Such as "entity - whole", "attribute - color" or "global"; the part before the dash is the broad
            category.
    """

    id: int
    question: str
    parents: tuple[int, ...]
    category: str


@dataclass(frozen=True)
class Quirks:
    """Habits of the official script, on by default so that scores are comparable.

    Args:
        skip_first_row: Leave out the first proposition of the file. If other propositions of its prompt depend on it,
            that prompt cannot be scored.
        last_crop_categories: Take the scores of categories from the last image of each grid only, without regard to
            parents. Otherwise take them from all images, with parents.
        drop_failed: Leave prompts that could not be scored out of the mean. Otherwise count every answer to them as
            "no". The report lists them in both cases, which the official script does not do.
    """

    skip_first_row: bool = True
    last_crop_categories: bool = True
    drop_failed: bool = True


@dataclass(frozen=True)
class PromptScore:
    """The scores of a prompt's images.

    Args:
        item_id: Identifier of the prompt.
        pictures: Share of propositions that hold, per image; in [0, 1].
        categories: By category, the scores (0 or 1) that count for it.
    """

    item_id: str
    pictures: tuple[float, ...]
    categories: Mapping[str, Sequence[float]]

    @property
    def score(self) -> float:
        """Mean over the images, in [0, 1]."""
        return sum(self.pictures) / len(self.pictures)


def score_image(answers: Mapping[int, str], dependencies: Mapping[int, Sequence[int]]) -> dict[int, float]:
    """Score the propositions about one image: 1 if the answer is exactly "yes" and no parent has 0, otherwise 0.

    As in the official script, the propositions are visited in the order of `dependencies`, and a parent's score is the
    one it has at that moment. A child that is visited before its parent therefore sees the parent's own answer, not
    the zero that the parent may inherit later.

    Args:
        answers: Answers by number of the proposition.
        dependencies: Parents by number of the proposition; 0 stands for no parent.

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


def check_answers(propositions: Sequence[Proposition], answers: Sequence[Sequence[str]]) -> None:
    """Raise ValueError unless there is a non-empty answer to every proposition about every image.

    Args:
        propositions: The propositions of one prompt.
        answers: Per image, the answers in the order of the propositions.
    """
    for index, given in enumerate(answers):
        # An empty answer means that the judge gave none.
        if len(given) != len(propositions) or not all(given):
            raise ValueError(
                f"the judge answered {sum(map(bool, given))} of {len(propositions)} questions about image {index}"
            )


def score_prompt(
    item_id: str,
    propositions: Sequence[Proposition],
    answers: Sequence[Sequence[str]],
    quirks: Quirks | None = None,
) -> PromptScore:
    """Score the images of a prompt.

    Args:
        item_id: Identifier of the prompt.
        propositions: Propositions that the judge was asked about.
        answers: Per image, the answers in the order of the propositions.
        quirks: Habits of the official script to follow; only `last_crop_categories` matters here.

    Raises:
        ValueError: If there are no images, an answer is missing or empty, or a proposition depends on one that was not
            asked.
    """
    if not answers:
        raise ValueError("there must be at least one image, got none")
    check_answers(propositions, answers)
    dependencies = {proposition.id: proposition.parents for proposition in propositions}
    shares = []
    counted: dict[str, list[float]] = {}
    for given in answers:
        by_number = {proposition.id: answer for proposition, answer in zip(propositions, given, strict=True)}
        scores = score_image(by_number, dependencies)
        shares.append(sum(scores.values()) / len(scores))
        # The official script overwrites the scores of categories with those of the next image.
        if (quirks or Quirks()).last_crop_categories:
            scores, counted = {number: float(answer == "yes") for number, answer in by_number.items()}, {}
        for proposition in propositions:
            counted.setdefault(proposition.category, []).append(scores[proposition.id])
    return PromptScore(item_id, tuple(shares), counted)


def summarise(scores: Sequence[PromptScore]) -> dict[str, float]:
    """Return the metrics of DPG-Bench, in percent; empty without scores.

    Returns:
        `overall`, the mean over prompts; then the mean over the propositions of each broad category ("entity",
        "relation", ...), then of each detailed category.
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


__all__ = ["PromptScore", "Proposition", "Quirks", "check_answers", "score_image", "score_prompt", "summarise"]
