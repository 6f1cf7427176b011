"""The functions of the adapters: each makes a raw row (see `schema`) from the cells of a row that its form uses."""

import re
from collections.abc import Mapping
from typing import Any

from .adapter import Cells, RawRow
from .content import is_empty
from .refusals import RowError
from .turns import is_answer


DESCRIBE = "Describe this picture."  # question for captions used as answers; prepared data contain it
# Follows the choices of a question, as in the benchmarks with which the authors of Janus-Pro evaluate it.
LETTER = "\nAnswer with the option's letter from the given choices directly."
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def read_messages(cells: Cells) -> RawRow:
    """Convert a row with a list of messages, of whatever keys, to a raw row of this package."""
    return cells.conversation(cells.get("turns"))


def read_texts(cells: Cells) -> RawRow:
    """Convert a row with a list `texts` of `{"user", "assistant"}` dicts to a raw row of this package."""
    pairs = cells.get("turns")
    if not isinstance(pairs, (list, tuple)) or not all(
        isinstance(pair, Mapping) and {"user", "assistant"} <= set(pair) for pair in pairs
    ):
        raise RowError(
            "bad_conversation", f"`texts` must be a list of dicts with user and assistant, got {str(pairs)[:200]}."
        )
    turns = []
    for pair in pairs:
        rest = {key: value for key, value in pair.items() if key not in ("user", "assistant")}
        turns += [
            {"role": "user", "content": pair["user"]},
            {"role": "assistant", "content": pair["assistant"]} | rest,
        ]
    return cells.conversation(turns)


def read_question(cells: Cells) -> RawRow:
    """Convert a question and its answer to a raw row of this package (`messages` and `images`)."""
    asked = cells.text("question")
    if not is_empty(cells.get("input")):
        asked = f"{asked}\n{cells.text('input')}"
    if is_empty(cells.get("choices")):
        answer = cells.text("answer")
    else:
        asked, answer = _choose(asked, cells.get("choices"), cells.get("answer"))
    return cells.conversation([{"role": "user", "content": asked}, {"role": "assistant", "content": answer}])


def _choose(question: str, choices: Any, answer: Any) -> tuple[str, str]:
    """Return a question with its choices, one per line after a letter, and the letter of the answer.

    Args:
        question: The question.
        choices: The texts of the choices.
        answer: The number of the right choice, counted from 0, its letter, or its text.
    """
    if not isinstance(choices, (list, tuple)) or not all(isinstance(choice, str) for choice in choices):
        raise RowError("bad_choice", f"The choices must be a list of strings, got {str(choices)[:200]}.")
    letters = _LETTERS[: len(choices)]
    # The text of a choice comes before letters, because a choice may be the word "A".
    meanings: dict[Any, str] = dict(enumerate(letters)) | {letter: letter for letter in letters}
    meanings |= dict(zip(choices, letters, strict=False))
    letter = meanings.get(answer) if isinstance(answer, (int, str)) and not isinstance(answer, bool) else None
    if letter is None or len(choices) > len(letters) or len(set(choices)) < len(choices):
        raise RowError(
            "bad_choice",
            f"The answer must be the number, letter or text of one of {len(choices)} unlike choices, got {answer!r}.",
        )
    listed = "".join(f"{name}. {choice}\n" for name, choice in zip(letters, choices, strict=True))
    return f"{question}\n{listed}{LETTER}", letter


def read_completion(cells: Cells) -> RawRow:
    """Convert a prompt and its completion, as strings or messages, to a raw row; only the completion is trained."""
    prompt, completion = cells.get("prompt"), cells.get("completion")
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": cells.text("prompt")}]
    if isinstance(completion, str):
        completion = [{"role": "assistant", "content": cells.text("completion")}]
    for name, turns in (("prompt", prompt), ("completion", completion)):
        if not isinstance(turns, (list, tuple)) or not all(isinstance(turn, Mapping) for turn in turns):
            raise RowError("bad_conversation", f"The {name} must be a string or a list of messages, got {turns!r}.")
    return cells.conversation([*({**turn, "weight": 0} if is_answer(turn) else turn for turn in prompt), *completion])


def read_label(cells: Cells) -> RawRow:
    """Convert an image with a class label to a raw row of this package; the class's first name becomes its `prompt`.

    The column `label` holds the name, or a number that `class_names` translates. Raise `RowError` if there is no name.
    """
    label, names = cells.get("label"), cells.class_names
    if isinstance(label, int):
        if names is None or not 0 <= label < len(names):
            raise RowError(
                "bad_label",
                f"The label must be in [0, {len(names or ())}), the named classes, got {label}: cast the column "
                "to datasets.ClassLabel(names=[...]).",
            )
        label = names[label]
    if not isinstance(label, str):
        raise RowError("bad_label", f"The label must be a class name or number, got {label!r}.")
    # ImageNet names a class by all its synonyms, as in "tench, Tinca tinca", but a user would write only one of them.
    return {"prompt": label.split(",")[0].replace("_", " ").strip(), "image": cells.image()}


def clean_midjourney(prompt: str) -> str:
    """Return a Midjourney prompt without its commands, as the plain description of an image.

    These are removed: links at the beginning, everything from the first `--parameter` on, bold marks (`**`), and the
    mention of a user at the end.
    """
    prompt = prompt.replace("**", " ").split(" - <@")[0]
    prompt = re.sub(r"^(\s*<?https?://\S+)+", "", prompt)
    return " ".join(re.split(r"(?:^|\s)(?:--|—)[a-zA-Z]", prompt)[0].split())


def read_midjourney(cells: Cells) -> RawRow:
    """Convert an image and its Midjourney prompt, which `clean_midjourney` cleans, to a raw row of this package."""
    return {"prompt": clean_midjourney(cells.text("prompt")), "image": cells.image()}


def read_drawing(cells: Cells) -> RawRow:
    """Convert a prompt and the image to be generated from it to a raw row of this package (`prompt` and `image`)."""
    prompt = cells.get("prompt")
    # `make_document` refuses an empty prompt.
    return {
        "prompt": prompt if isinstance(prompt, str) or is_empty(prompt) else cells.text("prompt"),
        "image": cells.image(),
    }


def read_caption(cells: Cells) -> RawRow:
    """Convert a captioned image to a raw row of this package; the caption becomes its `prompt`."""
    return {"prompt": cells.text("caption"), "image": cells.image()}


def read_describe(cells: Cells) -> RawRow:
    """Convert an image and its caption to a raw row of this package; the caption answers the question `DESCRIBE`."""
    turns = [{"role": "user", "content": DESCRIBE}, {"role": "assistant", "content": cells.text("caption")}]
    return {"messages": turns, "images": [cells.image()]}


def read_plain(cells: Cells) -> RawRow:
    """Convert a plain text without images to a raw row of this package (`text`)."""
    return {"text": cells.text("text")}


__all__ = [
    "DESCRIBE",
    "LETTER",
    "clean_midjourney",
    "read_caption",
    "read_completion",
    "read_describe",
    "read_drawing",
    "read_label",
    "read_messages",
    "read_midjourney",
    "read_plain",
    "read_question",
    "read_texts",
]
