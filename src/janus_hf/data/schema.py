"""The rows that training data comes in, and the adapters that turn other people's columns into them.

A raw row is one of three things, told apart by its columns:

| row | columns | task |
|---|---|---|
| conversation | `messages`: `[{"role", "content"}]`; `images`: list of pictures, or none | understanding or text |
| drawing | `prompt`: str; `image`: picture | drawing |
| plain text | `text`: str | text |

A picture is anything `janus_hf.processing.load_picture` takes, or a `{"bytes", "path"}` dict of `datasets`. In a
conversation a picture stands where the content says `<image>` (or the processor's own placeholder); if it says so
nowhere, all pictures stand before the first user turn's text.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args


Task: TypeAlias = Literal["text", "understanding", "drawing"]
TASKS: tuple[str, ...] = get_args(Task)

RawRow: TypeAlias = dict[str, Any]

IMAGE_MARK = "<image>"
DESCRIBE = "Describe this picture."


class RowError(ValueError):
    """A row that cannot be trained on. Preparation counts it under `reason`, skips it and goes on."""

    def __init__(self, reason: str, message: str) -> None:
        self.reason = reason
        super().__init__(message)


@dataclass(frozen=True)
class Adapter:
    """A pure function from rows of some known columns to raw rows.

    Args:
        name: What `prepare(adapter=...)` calls it.
        columns: For people: the columns it reads.
        task: What its rows are; None where the row decides (conversations with or without pictures).
        matches: Whether it reads a data set with these columns.
        convert: `(row, class_names) -> raw row`; `class_names` are those of the `label` column, if known.
    """

    name: str
    columns: str
    task: Task | None
    matches: Callable[[set[str]], bool]
    convert: Callable[[Mapping[str, Any], Sequence[str] | None], RawRow]


_PICTURES = ("image", "jpg", "jpeg", "png", "webp")  # the latter four: WebDataset's members
_CAPTIONS = ("caption", "text", "txt")
_MIDJOURNEY = ("midjourney_prompt", "original_text", "Prompt", "content", "prompt")
_QUESTIONS = (("question", "answer"), ("query", "response"), ("instruction", "output"), ("instruction", "response"))
_ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant"}


def _first(columns: Sequence[str], row: Any) -> str | None:
    return next((name for name in columns if name in row), None)


def _string(row: Mapping[str, Any], column: str) -> str:
    value = row[column]
    if not isinstance(value, str) or not value.strip():
        raise RowError("empty_text", f"Expected a non-empty string in column {column!r}; got {value!r}.")
    return value


def _picture(row: Mapping[str, Any]) -> Any:
    column = _first(_PICTURES, row)
    picture = None if column is None else row[column]
    if picture is None:
        raise RowError("missing_picture", f"Expected a picture in one of the columns {_PICTURES}; got none.")
    return picture


def _pictures(row: Mapping[str, Any]) -> list[Any]:
    """Those of an understanding row: `images`, else `image` (one or a list), else none."""
    found = row.get("images")
    if found is None:
        column = _first(_PICTURES, row)
        found = None if column is None else row[column]
    if found is None:
        return []
    return list(found) if isinstance(found, (list, tuple)) else [found]


def _check_turns(turns: Any, keys: set[str]) -> None:
    if not isinstance(turns, (list, tuple)) or not all(isinstance(t, Mapping) and keys <= set(t) for t in turns):
        raise RowError("bad_conversation", f"Expected a list of turns {sorted(keys)}; got {str(turns)[:200]}.")


def _conversation(question: str, answer: str, pictures: list[Any]) -> RawRow:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": turns, "images": pictures}


def _messages(row: Mapping[str, Any], _: Sequence[str] | None) -> RawRow:
    return {"messages": row["messages"], "images": _pictures(row)}


def _llava(row: Mapping[str, Any], _: Sequence[str] | None) -> RawRow:
    turns = row["conversations"]
    _check_turns(turns, {"from", "value"})
    messages = [{"role": _ROLES.get(turn["from"], turn["from"]), "content": turn["value"]} for turn in turns]
    return {"messages": messages, "images": _pictures(row)}


def _texts(row: Mapping[str, Any], _: Sequence[str] | None) -> RawRow:
    turns = row["texts"]
    _check_turns(turns, {"user", "assistant"})
    messages = [{"role": role, "content": turn[role]} for turn in turns for role in ("user", "assistant")]
    return {"messages": messages, "images": _pictures(row)}


def _question(row: Mapping[str, Any], _: Sequence[str] | None) -> RawRow:
    question, answer = next(pair for pair in _QUESTIONS if set(pair) <= set(row))
    asked = _string(row, question)
    if question == "instruction" and row.get("input"):
        asked = f"{asked}\n{row['input']}"
    return _conversation(asked, _string(row, answer), _pictures(row))


def _label(row: Mapping[str, Any], class_names: Sequence[str] | None) -> RawRow:
    label = row["label"]
    if isinstance(label, int):
        if class_names is None or not 0 <= label < len(class_names):
            raise RowError(
                "bad_label",
                f"Expected a label in [0, {len(class_names or ())}), the named classes; got {label}. Cast the column "
                "to datasets.ClassLabel(names=[...]).",
            )
        label = class_names[label]
    if not isinstance(label, str):
        raise RowError("bad_label", f"Expected a class name or number; got {label!r}.")
    # ImageNet names a class by all its synonyms: "tench, Tinca tinca".
    return {"prompt": label.split(",")[0].replace("_", " ").strip(), "image": _picture(row)}


def clean_midjourney(prompt: str) -> str:
    """The words of a Midjourney prompt: picture links in front and everything from the first `--parameter` removed."""
    prompt = prompt.replace("**", " ").split(" - <@")[0]
    prompt = re.sub(r"^(\s*<?https?://\S+)+", "", prompt)
    return " ".join(re.split(r"(?:^|\s)(?:--|—)[a-zA-Z]", prompt)[0].split())


def _midjourney(row: Mapping[str, Any], _: Sequence[str] | None) -> RawRow:
    column = _first(_MIDJOURNEY, row)
    assert column is not None
    return {"prompt": clean_midjourney(_string(row, column)), "image": _picture(row)}


def _drawing(row: Mapping[str, Any], _: Sequence[str] | None) -> RawRow:
    return {"prompt": row["prompt"], "image": _picture(row)}


def _caption(row: Mapping[str, Any], _: Sequence[str] | None) -> RawRow:
    return {"prompt": _string(row, str(_first(_CAPTIONS, row))), "image": _picture(row)}


def _describe(row: Mapping[str, Any], _: Sequence[str] | None) -> RawRow:
    return _conversation(DESCRIBE, _string(row, str(_first(_CAPTIONS, row))), [_picture(row)])


def _plain(row: Mapping[str, Any], _: Sequence[str] | None) -> RawRow:
    return {"text": _string(row, "text")}


def _has_picture(columns: set[str]) -> bool:
    return _first(_PICTURES, columns) is not None


# The first that matches reads the data set, if nobody names another.
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
        Adapter("drawing", "prompt + image", "drawing", lambda c: "prompt" in c and _has_picture(c), _drawing),
        Adapter(
            "caption",
            "caption, text or txt + image (drawn)",
            "drawing",
            lambda c: _first(_CAPTIONS, c) is not None and _has_picture(c),
            _caption,
        ),
        Adapter(
            "describe",
            "caption, text or txt + image (described)",
            "understanding",
            lambda c: _first(_CAPTIONS, c) is not None and _has_picture(c),
            _describe,
        ),
        Adapter("label", "label + image (ImageNet)", "drawing", lambda c: "label" in c and _has_picture(c), _label),
        Adapter(
            "midjourney",
            "Prompt, original_text, midjourney_prompt, content or prompt + image",
            "drawing",
            lambda c: _first(_MIDJOURNEY, c) is not None and _has_picture(c),
            _midjourney,
        ),
        Adapter("text", "text", "text", lambda c: "text" in c and not _has_picture(c), _plain),
    )
}


def choose_adapter(columns: Sequence[str], *, name: str | None = None, task: str | None = None) -> Adapter:
    """The adapter called `name`, else the first that reads these columns and whose rows can be of `task`.

    Raises:
        ValueError: The name or the task does not exist, or nothing reads these columns; lists what would.
    """
    if task is not None and task not in TASKS:
        raise ValueError(f"Expected task to be one of {TASKS}; got {task!r}.")
    if name is not None and name not in ADAPTERS:
        raise ValueError(f"Expected adapter to be one of {list(ADAPTERS)}; got {name!r}.")
    candidates = list(ADAPTERS.values()) if name is None else [ADAPTERS[name]]
    for adapter in candidates:
        fits_task = task in (None, adapter.task) or (adapter.task is None and task != "drawing")
        if fits_task and adapter.matches(set(columns)):
            return adapter
    known = "\n".join(f"  {adapter.name}: {adapter.columns}" for adapter in candidates)
    wanted = f" for the task {task!r}" if task else ""
    raise ValueError(
        f"Expected columns of a known schema{wanted}; got {sorted(columns)}. Rename columns "
        f"(dataset.rename_column) so that they fit one of\n{known}"
    )
