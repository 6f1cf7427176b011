"""How the authors asked the questions behind the paper's understanding scores, and asking a batch of them.

The prompts are those of the authors' own adapter for VLMEvalKit (open-compass/VLMEvalKit#541, vlmeval/vlm/janus.py):
one user turn, the pictures first and nothing between them, then a prompt that begins with a new line; roles "User" and
"Assistant"; no system prompt, except for MM-Vet; greedy, at most 2048 new tokens.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch


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

Conversation = list[dict[str, Any]]


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


@torch.no_grad()
def answer(
    pipe: Any,
    conversations: Sequence[Conversation],
    *,
    max_new_tokens: int = MAX_NEW_TOKENS,
    system_prompt: str | None = "",
    roles: Sequence[str] | None = None,
    **generate_kwargs: Any,
) -> list[str]:
    """Answer a batch of conversations, padded on the left; the answers do not depend on what shares the batch.

    Args:
        pipe: A `JanusProPipeline`.
        conversations: Messages as `pipe.chat` takes them, each conversation with any number of pictures, or none.
        max_new_tokens: Upper bound on an answer's length; the context's end is another.
        system_prompt: "default" is the processor's own; None or "" for none.
        roles: Names of user and assistant instead of the processor's.
        generate_kwargs: For `model.generate`; greedy unless they say otherwise.

    Returns:
        One string per conversation, without special tokens and outer white space.

    Raises:
        ValueError: If a conversation fills the model's context, or its pictures and placeholders do not match.
    """
    template: dict[str, Any] = {} if system_prompt == "default" else {"system_prompt": system_prompt}
    if roles is not None:
        template["roles"] = list(roles)
    inputs = pipe.processor.apply_chat_template(
        list(conversations),
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        **template,
    ).to(pipe.device)
    limit = pipe.model.config.text_config.max_position_embeddings
    room = [min(max_new_tokens, limit - int(length)) for length in inputs["attention_mask"].sum(dim=1)]
    if min(room) < 1:
        full = room.index(min(room))
        raise ValueError(
            f"Expected conversations that leave room for an answer; number {full} takes {limit - room[full]} tokens "
            f"and the model's context holds {limit}. Leave out pictures or text."
        )
    output = pipe.model.generate(
        **inputs,
        max_new_tokens=max(room),
        eos_token_id=pipe.processor.eos_token_id,
        pad_token_id=pipe.processor.pad_token_id,
        **{"do_sample": False} | generate_kwargs,
    )
    # The longest room is the batch's; a row that fills its context earlier ends there, as it would alone.
    new = output[:, inputs["input_ids"].shape[1] :]
    return [
        pipe.processor.decode(row[:end], skip_special_tokens=True).strip() for row, end in zip(new, room, strict=True)
    ]


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
    "answer",
    "is_missing",
    "multiple_choice_prompt",
    "paper_conversation",
    "paper_prompt",
    "plain_yes_no",
    "system_prompt",
    "yes_no_prompt",
]
