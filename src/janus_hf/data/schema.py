"""The rows that training data come in, and the adapters that turn the columns of other data sets into them.

A raw row is one of three kinds, told apart by its columns:

| row | columns | task |
|---|---|---|
| conversation | `messages`: `[{"role", "content"}]`; `images`: list of images, or none | understanding or text |
| drawing row | `prompt`: str; `image`: the image to be generated from it | drawing |
| plain text | `text`: str | text |

An image is whatever `janus_hf.processing.load_picture` reads, or a `{"bytes", "path"}` dict of `datasets`. In a
conversation an image stands where the content says `<image>` (or the processor's own placeholder). If the content says
so nowhere, all images stand before the text of the first user turn.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args


Task: TypeAlias = Literal["text", "understanding", "drawing"]
TASKS: tuple[str, ...] = get_args(Task)

RawRow: TypeAlias = dict[str, Any]

IMAGE_MARK = "<image>"
DESCRIBE = "Describe this picture."  # the question of described captions; part of the prepared data, so it stays


class RowError(ValueError):
    """A row that cannot be trained on. Preparation counts it under `reason`, skips it and goes on.

    Args:
        reason: One of the reasons listed in docs/data.md, for counting.
        message: What is wrong with the row.
    """

    def __init__(self, reason: str, message: str) -> None:
        self.reason = reason
        super().__init__(message)


@dataclass(frozen=True)
class Adapter:
    """A pure function that turns rows with certain columns into raw rows, and the facts needed to choose it.

    Args:
        name: Value of the argument `adapter` of `prepare` that chooses it.
        columns: Description of the columns it reads, for messages.
        task: Task of its rows; None where the row decides (conversations with or without images).
        matches: Function that receives the column names of a data set and returns whether the adapter reads them.
        convert: `(row, class_names) -> raw row`; `class_names` are those of the `label` column, if known. Raises
            `RowError` if the row cannot be trained on.
    """

    name: str
    columns: str
    task: Task | None
    matches: Callable[[set[str]], bool]
    convert: Callable[[Mapping[str, Any], Sequence[str] | None], RawRow]


_IMAGES = ("image", "jpg", "jpeg", "png", "webp")  # the last four are members of WebDataset archives
_CAPTIONS = ("caption", "text", "txt")
_MIDJOURNEY = ("midjourney_prompt", "original_text", "Prompt", "content", "prompt")
_QUESTIONS = (("question", "answer"), ("query", "response"), ("instruction", "output"), ("instruction", "response"))
# Names of the roles in LLaVA's and similar data sets -> ours.
_ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant"}


def _first(columns: Sequence[str], row: Iterable[str]) -> str | None:
    """Return the first of `columns` that a row, or a set of column names, has; None if it has none."""
    return next((name for name in columns if name in row), None)


def _string(row: Mapping[str, Any], column: str) -> str:
    """Return the text in a column; raise `RowError` unless it is a non-empty string."""
    value = row[column]
    if not isinstance(value, str) or not value.strip():
        raise RowError("empty_text", f"The column {column!r} must hold a non-empty string, got {value!r}.")
    return value


def _image(row: Mapping[str, Any]) -> Any:
    """Return the one image of a row; raise `RowError` if there is none."""
    column = _first(_IMAGES, row)
    image = None if column is None else row[column]
    if image is None:
        raise RowError("missing_picture", f"The row must have an image in one of the columns {_IMAGES}, got none.")
    return image


def _images(row: Mapping[str, Any]) -> list[Any]:
    """Return the images of an understanding row: those of `images`, otherwise of `image` (one or a list), or none."""
    found = row.get("images")
    if found is None:
        column = _first(_IMAGES, row)
        found = None if column is None else row[column]
    if found is None:
        return []
    return list(found) if isinstance(found, (list, tuple)) else [found]


def _check_turns(turns: Any, keys: set[str]) -> None:
    """Raise `RowError` unless `turns` is a list of dicts that have all of `keys`."""
    if not isinstance(turns, (list, tuple)) or not all(
        isinstance(turn, Mapping) and keys <= set(turn) for turn in turns
    ):
        raise RowError(
            "bad_conversation", f"The turns must be a list of dicts with {sorted(keys)}, got {str(turns)[:200]}."
        )


def _conversation(question: str, answer: str, images: list[Any]) -> RawRow:
    """Return the raw row of one question and its answer."""
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": turns, "images": images}


def _messages(row: Mapping[str, Any], _: Sequence[str] | None) -> RawRow:
    """Read messages of roles and contents, which are raw rows already."""
    return {"messages": row["messages"], "images": _images(row)}


def _llava(row: Mapping[str, Any], _: Sequence[str] | None) -> RawRow:
    """Read LLaVA's `conversations`: turns of `from` and `value`."""
    turns = row["conversations"]
    _check_turns(turns, {"from", "value"})
    messages = [{"role": _ROLES.get(turn["from"], turn["from"]), "content": turn["value"]} for turn in turns]
    return {"messages": messages, "images": _images(row)}


def _texts(row: Mapping[str, Any], _: Sequence[str] | None) -> RawRow:
    """Read `texts`: dicts of one question (`user`) and its answer (`assistant`) each."""
    turns = row["texts"]
    _check_turns(turns, {"user", "assistant"})
    messages = [{"role": role, "content": turn[role]} for turn in turns for role in ("user", "assistant")]
    return {"messages": messages, "images": _images(row)}


def _question(row: Mapping[str, Any], _: Sequence[str] | None) -> RawRow:
    """Read one question and its answer, under any of the column names of `_QUESTIONS`."""
    question, answer = next(pair for pair in _QUESTIONS if set(pair) <= set(row))
    asked = _string(row, question)
    if question == "instruction" and row.get("input"):
        asked = f"{asked}\n{row['input']}"
    return _conversation(asked, _string(row, answer), _images(row))


def _label(row: Mapping[str, Any], class_names: Sequence[str] | None) -> RawRow:
    """Read the name of an image's class, or its number if the classes have names, as the prompt of the image."""
    label = row["label"]
    if isinstance(label, int):
        if class_names is None or not 0 <= label < len(class_names):
            raise RowError(
                "bad_label",
                f"The label must be in [0, {len(class_names or ())}), the named classes, got {label}: cast the column "
                "to datasets.ClassLabel(names=[...]).",
            )
        label = class_names[label]
    if not isinstance(label, str):
        raise RowError("bad_label", f"The label must be a class name or number, got {label!r}.")
    # ImageNet names a class by all its synonyms, as in "tench, Tinca tinca"; one of them is what a user would write.
    return {"prompt": label.split(",")[0].replace("_", " ").strip(), "image": _image(row)}


def clean_midjourney(prompt: str) -> str:
    """Return the words of a Midjourney prompt.

    Removed are links in front, everything from the first `--parameter` on, bold marks (`**`) and the mention of a user
    at the end.
    """
    prompt = prompt.replace("**", " ").split(" - <@")[0]
    prompt = re.sub(r"^(\s*<?https?://\S+)+", "", prompt)
    return " ".join(re.split(r"(?:^|\s)(?:--|—)[a-zA-Z]", prompt)[0].split())


def _midjourney(row: Mapping[str, Any], _: Sequence[str] | None) -> RawRow:
    """Read a Midjourney prompt and its image."""
    column = _first(_MIDJOURNEY, row)
    assert column is not None
    return {"prompt": clean_midjourney(_string(row, column)), "image": _image(row)}


def _drawing(row: Mapping[str, Any], _: Sequence[str] | None) -> RawRow:
    """Read a prompt and its image, which are a raw row already."""
    return {"prompt": row["prompt"], "image": _image(row)}


def _caption(row: Mapping[str, Any], _: Sequence[str] | None) -> RawRow:
    """Read a caption as the prompt that its image is generated from."""
    return {"prompt": _string(row, str(_first(_CAPTIONS, row))), "image": _image(row)}


def _describe(row: Mapping[str, Any], _: Sequence[str] | None) -> RawRow:
    """Read a caption as the answer to `DESCRIBE`."""
    return _conversation(DESCRIBE, _string(row, str(_first(_CAPTIONS, row))), [_image(row)])


def _plain(row: Mapping[str, Any], _: Sequence[str] | None) -> RawRow:
    """Read a text without an image."""
    return {"text": _string(row, "text")}


def _has_image(columns: set[str]) -> bool:
    """Return whether one of the columns may hold an image."""
    return _first(_IMAGES, columns) is not None


# In the order of preference: if the user names none, the first adapter that reads the columns is chosen.
ADAPTERS: dict[str, Adapter] = {
    adapter.name: adapter
    for adapter in (
        Adapter("messages", "messages (+ images or image)", None, lambda c: "messages" in c, _messages),
        Adapter("llava", "conversations (+ image or images)", None, lambda c: "conversations" in c, _llava),
        Adapter("texts", "texts of {user, assistant} (+ images)", None, lambda c: "texts" in c, _texts),
        Adapter(
            "question",
            "question + answer, query + response or instruction + output (+ image)",
            None,
            lambda c: any(set(pair) <= c for pair in _QUESTIONS),
            _question,
        ),
        Adapter("drawing", "prompt + image", "drawing", lambda c: "prompt" in c and _has_image(c), _drawing),
        Adapter(
            "caption",
            "caption, text or txt + image (generated)",
            "drawing",
            lambda c: _first(_CAPTIONS, c) is not None and _has_image(c),
            _caption,
        ),
        Adapter(
            "describe",
            "caption, text or txt + image (described)",
            "understanding",
            lambda c: _first(_CAPTIONS, c) is not None and _has_image(c),
            _describe,
        ),
        Adapter("label", "label + image (ImageNet)", "drawing", lambda c: "label" in c and _has_image(c), _label),
        Adapter(
            "midjourney",
            "Prompt, original_text, midjourney_prompt, content or prompt + image",
            "drawing",
            lambda c: _first(_MIDJOURNEY, c) is not None and _has_image(c),
            _midjourney,
        ),
        Adapter("text", "text", "text", lambda c: "text" in c and not _has_image(c), _plain),
    )
}


def choose_adapter(columns: Sequence[str], *, name: str | None = None, task: str | None = None) -> Adapter:
    """Return the first adapter that reads these columns and whose rows can be of `task`.

    Args:
        columns: Column names of a data set.
        name: Consider only the adapter of this name.
        task: One of `TASKS`; None takes any.

    Raises:
        ValueError: If the name or the task does not exist, or no adapter reads these columns. The message lists the
            columns that would be read.
    """
    if task is not None and task not in TASKS:
        raise ValueError(f"`task` must be one of {TASKS}, got {task!r}: choose one, or leave it out.")
    if name is not None and name not in ADAPTERS:
        raise ValueError(f"`adapter` must be one of {list(ADAPTERS)}, got {name!r}: choose one, or leave it out.")
    candidates = list(ADAPTERS.values()) if name is None else [ADAPTERS[name]]
    for adapter in candidates:
        # The rows of a conversation adapter may be of either other task, as they have images or not.
        fits_task = task in (None, adapter.task) or (adapter.task is None and task != "drawing")
        if fits_task and adapter.matches(set(columns)):
            return adapter
    known = "\n".join(f"  {adapter.name}: {adapter.columns}" for adapter in candidates)
    wanted = f" for the task {task!r}" if task else ""
    raise ValueError(
        f"The columns must be those of a known schema{wanted}, got {sorted(columns)}: rename columns "
        f"(dataset.rename_column) so that they fit one of\n{known}"
    )


__all__ = [
    "ADAPTERS",
    "DESCRIBE",
    "IMAGE_MARK",
    "TASKS",
    "Adapter",
    "RawRow",
    "RowError",
    "Task",
    "choose_adapter",
    "clean_midjourney",
]
