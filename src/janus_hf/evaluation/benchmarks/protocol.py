"""Functions that build the prompts with which the Janus authors measured their scores on understanding benchmarks.

The prompts are those of the authors' own adapter for VLMEvalKit (open-compass/VLMEvalKit#541, vlmeval/vlm/janus.py):
one user turn, the images first and nothing between them, then a text that begins with a new line (except for GQA);
roles "User" and "Assistant"; no system prompt, except for MM-Vet; greedy decoding, at most 2048 new tokens.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ...answering import Conversation


# The authors' adapter uses these role names and not those of the processor.
ROLES = ("User", "Assistant")
MAX_NEW_TOKENS = 2048
MM_VET_SYSTEM_PROMPT = (
    "You are a helpful assistant. Please answer truthfully and write out your thinking step by step to be sure you "
    "get the right answer."
)
POPE_TAIL = " Please answer yes or no."
SHORT_ANSWER = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."
NO_OPTIONS = "Answer the question directly. "

# Benchmarks by the kind of answer that they ask for.
YES_NO = ("pope", "mme")
MULTIPLE_CHOICE = ("mmbench", "seed", "mmmu")
BENCHMARKS = (*YES_NO, *MULTIPLE_CHOICE, "gqa", "mmvet")


def paper_prompt(benchmark: str, question: str, *, options: Mapping[str, Any] | None = None, hint: Any = None) -> str:
    """Return the text that follows the images in the user's turn, as the Janus authors wrote it for a benchmark.

    Args:
        benchmark: Name of the benchmark, one of `BENCHMARKS`.
        question: The question as published.
        options: Texts of a multiple-choice question's options by letter, in the order in which the prompt lists them.
            Empty cells of the table (`is_missing`) are left out.
        hint: Context to put before a multiple-choice question. An empty cell of the table (`is_missing`) adds nothing.

    Raises:
        ValueError: If the benchmark is unknown.
    """
    _check(benchmark)
    if benchmark in YES_NO:
        return yes_no_prompt(question, drop_tail=benchmark == "pope")
    if benchmark in MULTIPLE_CHOICE:
        return multiple_choice_prompt(question, options or {}, hint=hint)
    if benchmark == "mmvet":
        return f"\n{question}"
    return question + SHORT_ANSWER  # GQA: VLMEvalKit's own prompt, which begins without a new line


def yes_no_prompt(question: str, *, drop_tail: bool = False) -> str:
    """Return the prompt of a yes-or-no question, which asks for a single word or phrase.

    Args:
        question: The question as published.
        drop_tail: First remove " Please answer yes or no." from the question. The Janus authors do so for POPE only.
    """
    question = question.replace(POPE_TAIL, "") if drop_tail else question
    return f"\n{question}{SHORT_ANSWER}"


def multiple_choice_prompt(question: str, options: Mapping[str, Any], *, hint: Any = None) -> str:
    """Return the prompt of a question with lettered options, one per line, that asks for the letter of an option.

    A question without options, such as some of MMMU's, asks for the answer itself.

    Args:
        question: The question as published.
        options: Texts of the options by letter, in the order in which the prompt lists them. Empty cells of the table
            (`is_missing`) are left out.
        hint: Context to put before the question. An empty cell of the table (`is_missing`) adds nothing.
    """
    lines = "".join(f"{letter}. {text}\n" for letter, text in options.items() if not is_missing(text))
    # `LETTER` begins with a new line of its own, so a blank line precedes it, as in the authors' adapter.
    start = "\n" if is_missing(hint) else f"\nHint: {hint}\n"
    return f"{start}{question}\n" + (lines + LETTER if lines else NO_OPTIONS)


def is_missing(value: Any) -> bool:
    """Return whether a table's cell is empty: None, NaN, "", or the string "nan" that some data sets have for NaN."""
    # NaN is the only value that differs from itself.
    return value is None or value != value or value in ("", "nan")


def system_prompt(benchmark: str) -> str:
    """Return the system prompt that the Janus authors used for a benchmark. It is "" except for MM-Vet.

    Raises:
        ValueError: If the benchmark is unknown.
    """
    _check(benchmark)
    return MM_VET_SYSTEM_PROMPT if benchmark == "mmvet" else ""


def paper_conversation(
    prompt: str, pictures: Sequence[Any] = (), *, image_token: str = "<image_placeholder>"
) -> Conversation:
    """Return a conversation of one user turn, written as the Janus authors write it.

    Pass it to `answering.answer` with `roles=ROLES`.

    Args:
        prompt: Text after the images, as `paper_prompt` returns it.
        pictures: Images in any form that the processor accepts. They come first, with nothing between them.
        image_token: Placeholder text that the processor replaces by an image.
    """
    return [{"role": "user", "content": image_token * len(pictures) + prompt, "images": list(pictures)}]


def plain_yes_no(answer: str) -> str:
    """Return the answer "Yes." or "No." without the full stop and white space, for scorers that compare strings.

    The case of the answer does not matter and is kept. Any other answer is returned unchanged.
    """
    return re.sub(r"^\s*(yes|no)\s*\.\s*$", r"\1", answer, flags=re.IGNORECASE)


def _check(benchmark: str) -> None:
    """Raise ValueError unless the Janus authors' prompts are known for the benchmark."""
    if benchmark not in BENCHMARKS:
        raise ValueError(
            f"`benchmark` must be one of {', '.join(BENCHMARKS)}, got {benchmark!r}: the authors' prompt is not known "
            "for it, so use the harness's own."
        )


__all__ = [
    "BENCHMARKS",
    "LETTER",
    "MAX_NEW_TOKENS",
    "MM_VET_SYSTEM_PROMPT",
    "MULTIPLE_CHOICE",
    "POPE_TAIL",
    "ROLES",
    "SHORT_ANSWER",
    "YES_NO",
    "Conversation",
    "is_missing",
    "multiple_choice_prompt",
    "paper_conversation",
    "paper_prompt",
    "plain_yes_no",
    "system_prompt",
    "yes_no_prompt",
]
