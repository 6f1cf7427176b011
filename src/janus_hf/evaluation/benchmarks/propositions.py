"""Functions that compute the scores of DPG-Bench from a judge's answers, for images, prompts and the whole benchmark.

A proposition is one statement of a prompt, such as "there is a dog". It may depend on other propositions, its parents:
"the dog is red" cannot be true unless there is a dog. The scores are computed as in TencentQQGYLab/ELLA
(dpg_bench/compute_dpg_bench.py). `Quirks` lists habits of that script that change the scores.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Proposition:
    """One statement of a prompt, as a yes-or-no question for a judge.

    Args:
        id: Number of the proposition within its prompt, from 1.
        question: Question for the judge.
        parents: Numbers of the propositions that it depends on; 0 stands for no parent.
        category: Kind of statement, such as "entity - whole", "attribute - color" or "global". The part before the
            dash is the broad category.
    """

    id: int
    question: str
    parents: tuple[int, ...]
    category: str


@dataclass(frozen=True)
class Quirks:
    """Habits of DPG-Bench's official script. All are on by default, so that scores are comparable with published ones.

    Args:
        skip_first_row: Leave out the first proposition of the file. If other propositions of its prompt depend on it,
            that prompt cannot be scored.
        last_crop_categories: Compute the scores of categories from the last image of each 2x2 grid only, without
            regard to parents. Otherwise compute them from all images, where a proposition with a failed parent has
            failed too.
        drop_failed: Leave prompts that could not be scored out of the mean. Otherwise count every answer to their
            questions as "no". The report lists these prompts in both cases, which the official script does not do.
    """

    skip_first_row: bool = True
    last_crop_categories: bool = True
    drop_failed: bool = True


@dataclass(frozen=True)
class PromptScore:
    """The scores of the images that were generated from one prompt.

    Args:
        item_id: Identifier of the prompt.
        pictures: For each image, the share of the prompt's propositions that are true of it, in [0, 1].
        categories: By category, the scores (0 or 1) of propositions that the category's mean is computed from.
    """

    item_id: str
    pictures: tuple[float, ...]
    categories: Mapping[str, Sequence[float]]

    @property
    def score(self) -> float:
        """Score of the prompt, in [0, 1]: the mean of `pictures` over its images."""
        return sum(self.pictures) / len(self.pictures)


def score_image(answers: Mapping[int, str], dependencies: Mapping[int, Sequence[int]]) -> dict[int, float]:
    """Score each proposition about one image: 1 if the answer is "yes" and no parent has score 0, otherwise 0.

    Only the exact answer "yes" counts. As in DPG-Bench's official script, the propositions are visited in the order of
    `dependencies`, and a parent's score is the one that it has at that moment. A child that is visited before its
    parent therefore sees the parent's own answer, not the zero that the parent may inherit later.

    Args:
        answers: The judge's answers by number of the proposition.
        dependencies: By number of the proposition, the numbers of its parents, which are the propositions that it
            depends on; 0 stands for no parent.

    Returns:
        The scores by number of the proposition.

    Raises:
        ValueError: If a proposition depends on one that the judge was not asked about.
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
        answers: For each image, the judge's answers in the order of the propositions.
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
    """Compute the scores of one prompt's images from the judge's answers.

    Args:
        item_id: Identifier of the prompt.
        propositions: Propositions that the judge was asked about.
        answers: For each image, the judge's answers in the order of the propositions.
        quirks: Habits of DPG-Bench's official script to follow; only `last_crop_categories` matters here. None follows
            all of them.

    Raises:
        ValueError: If there are no images, an answer is missing or empty, or a proposition depends on one that the
            judge was not asked about.
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
        # The official script overwrites the categories' scores of an image with those of the next image.
        if (quirks or Quirks()).last_crop_categories:
            scores, counted = {number: float(answer == "yes") for number, answer in by_number.items()}, {}
        for proposition in propositions:
            counted.setdefault(proposition.category, []).append(scores[proposition.id])
    return PromptScore(item_id, tuple(shares), counted)


def summarise(scores: Sequence[PromptScore]) -> dict[str, float]:
    """Compute the metrics of DPG-Bench from the scores of its prompts.

    Returns:
        Percentages by name: `overall`, the mean over prompts; then the mean over the propositions of each broad
        category ("entity", "relation", ...), then of each detailed category. Empty without scores.
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
