"""How the authors asked the questions behind the paper's understanding scores, and asking a batch of them.

The prompts are those of the authors' own adapter for VLMEvalKit (open-compass/VLMEvalKit#541, vlmeval/vlm/janus.py):
one user turn, the pictures first and nothing between them, then a prompt that begins with a new line; roles "User" and
"Assistant"; no system prompt, except for MM-Vet; greedy, at most 2048 new tokens.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ...answering import Conversation


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

YES_NO = ("pope", "mme")
MULTIPLE_CHOICE = ("mmbench", "seed", "mmmu")
BENCHMARKS = (*YES_NO, *MULTIPLE_CHOICE, "gqa", "mmvet")


def paper_prompt(benchmark: str, question: str, *, options: Mapping[str, Any] | None = None, hint: Any = None) -> str:
    """What the user says after the pictures.

    Args:
        benchmark: One of `BENCHMARKS`.
        question: As published.
        options: Of multiple choice: letter -> text, in the order in which they are read out. Missing ones
            (`is_missing`) are left out.
        hint: Of multiple choice: context before the question, or missing.

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
    """A yes-or-no question. For POPE, and POPE only, " Please answer yes or no." is removed first (`drop_tail`)."""
    question = question.replace(POPE_TAIL, "") if drop_tail else question
    return f"\n{question}{SHORT_ANSWER}"


def multiple_choice_prompt(question: str, options: Mapping[str, Any], *, hint: Any = None) -> str:
    """A question with lettered options, one a line; the letter is asked for. A question without options, as MMMU has
    some, asks for the answer itself.
    """
    lines = "".join(f"{letter}. {text}\n" for letter, text in options.items() if not is_missing(text))
    start = "\n" if is_missing(hint) else f"\nHint: {hint}\n"
    return f"{start}{question}\n" + (lines + LETTER if lines else NO_OPTIONS)


def is_missing(value: Any) -> bool:
    """Whether a table's cell is empty: None, NaN, "" or the string "nan" that NaN became in some data sets."""
    return value is None or value != value or value in ("", "nan")


def system_prompt(benchmark: str) -> str:
    """What is said before the conversation: "" except for MM-Vet.

    Raises:
        ValueError: If the benchmark is unknown.
    """
    _check(benchmark)
    return MM_VET_SYSTEM_PROMPT if benchmark == "mmvet" else ""


def paper_conversation(
    prompt: str, pictures: Sequence[Any] = (), *, image_token: str = "<image_placeholder>"
) -> Conversation:
    """One user turn as the authors write it, for `answer(..., roles=ROLES)`.

    Args:
        prompt: Of `paper_prompt`.
        pictures: What the processor takes for a picture; they come first, nothing between them.
        image_token: The processor's placeholder.
    """
    return [{"role": "user", "content": image_token * len(pictures) + prompt, "images": list(pictures)}]


def plain_yes_no(answer: str) -> str:
    """ "Yes." and "No." without the full stop, which scorers that compare strings do not expect; all else as it is."""
    return re.sub(r"^\s*(yes|no)\s*\.\s*$", r"\1", answer, flags=re.IGNORECASE)


def _check(benchmark: str) -> None:
    if benchmark not in BENCHMARKS:
        raise ValueError(
            f"The authors' prompts are known for {', '.join(BENCHMARKS)}; got {benchmark!r}. Use the harness's own "
            "prompt."
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
