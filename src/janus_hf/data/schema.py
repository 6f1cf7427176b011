"""Definition of the raw rows that training data consist of, and adapters that convert other columns to raw rows.

A raw row is a dict of one of three kinds. Its columns decide which:

| row | columns | task |
|---|---|---|
| conversation | `messages`: `[{"role", "content"}]`; `images`: list of images, or none | understanding or text |
| drawing row | `prompt`: str; `image`: the image to be generated from it | drawing |
| plain text | `text`: str | text |

An image is anything that `janus_hf.processing.load_picture` reads, or a `{"bytes", "path"}` dict, the form of
undecoded images in `datasets`. In a conversation, each `<image>` (or the processor's own placeholder) in a content
marks the position of one image. If no content has a mark, all images are inserted before the text of the first user
turn.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args


Task: TypeAlias = Literal["text", "understanding", "drawing"]
TASKS: tuple[str, ...] = get_args(Task)

RawRow: TypeAlias = dict[str, Any]

IMAGE_MARK = "<image>"
DESCRIBE = "Describe this picture."  # question for captions used as answers; prepared data contain it


class RowError(ValueError):
    """Error about a row that cannot be used for training. `prepare` catches it, counts the row and skips it.

    Args:
        reason: Short name of the reason, by which rows are counted, such as "too_long"; docs/data.md lists all.
        message: Description of what is wrong with the row.
    """

    def __init__(self, reason: str, message: str) -> None:
        self.reason = reason
        super().__init__(message)


@dataclass(frozen=True)
class Adapter:
    """Conversion of a data set's rows to raw rows, and the facts by which `choose_adapter` chooses it.

    A raw row is a dict with `messages` (and `images`), with `prompt` and `image`, or with `text`.

    Args:
        name: Value of the argument `adapter` of `prepare` that selects this adapter.
        columns: Description of the columns that the adapter reads, for error messages.
        task: Task of the raw rows it makes. None if each row decides: a conversation with images is for understanding,
            one without is text.
        matches: Function that receives the column names of a data set and returns whether the adapter can read it.
        convert: Function `(row, class_names) -> raw row`. `class_names` are the names of the classes in the column
            `label`, or None if they are unknown. It raises `RowError` if the row cannot be used for training.
    """

    name: str
    columns: str
    task: Task | None
    matches: Callable[[set[str]], bool]
    convert: Callable[[Mapping[str, Any], Sequence[str] | None], RawRow]


_IMAGES = ("image", "jpg", "jpeg", "png", "webp")  # the last four are file suffixes in WebDataset archives
_CAPTIONS = ("caption", "text", "txt")
_MIDJOURNEY = ("midjourney_prompt", "original_text", "Prompt", "content", "prompt")
_QUESTIONS = (("question", "answer"), ("query", "response"), ("instruction", "output"), ("instruction", "response"))
# Role names in LLaVA and similar data sets -> role names in raw rows.
_ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant"}


def _first(columns: Sequence[str], row: Iterable[str]) -> str | None:
    """Return the first name in `columns` that `row` (a dict, or a set of names) contains; None if there is none."""
    return next((name for name in columns if name in row), None)


def _string(row: Mapping[str, Any], column: str) -> str:
    """Return the text in a column of a row; raise `RowError` unless it is a non-empty string."""
    value = row[column]
    if not isinstance(value, str) or not value.strip():
        raise RowError("empty_text", f"The column {column!r} must hold a non-empty string, got {value!r}.")
    return value


def _image(row: Mapping[str, Any]) -> Any:
    """Return the image in the first column of `_IMAGES` (names of image columns) that the row has.

    Raises:
        RowError: If the row has no image.
    """
    column = _first(_IMAGES, row)
    image = None if column is None else row[column]
    if image is None:
        raise RowError("missing_picture", f"The row must have an image in one of the columns {_IMAGES}, got none.")
    return image


def _images(row: Mapping[str, Any]) -> list[Any]:
    """Return the images that belong to a conversation, as a list, which is empty if the row has none.

    They are in the column `images`, or else in the first column of `_IMAGES` (names of image columns) that the row
    has, which may hold one image or a list.
    """
    found = row.get("images")
    if found is None:
        column = _first(_IMAGES, row)
        found = None if column is None else row[column]
    if found is None:
        return []
    return list(found) if isinstance(found, (list, tuple)) else [found]


def _check_turns(turns: Any, keys: set[str]) -> None:
    """Raise `RowError` unless `turns` (a conversation) is a list of dicts that each have all of `keys`."""
    if not isinstance(turns, (list, tuple)) or not all(
        isinstance(turn, Mapping) and keys <= set(turn) for turn in turns
    ):
        raise RowError(
            "bad_conversation", f"The turns must be a list of dicts with {sorted(keys)}, got {str(turns)[:200]}."
        )


def _conversation(question: str, answer: str, images: list[Any]) -> RawRow:
    """Return a raw row (`messages` and `images`) with one question about the images and its answer."""
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": turns, "images": images}


def _messages(row: Mapping[str, Any], _: Sequence[str] | None) -> RawRow:
    """Convert a row whose `messages` have roles and contents already to a raw row of this package."""
    return {"messages": row["messages"], "images": _images(row)}


def _llava(row: Mapping[str, Any], _: Sequence[str] | None) -> RawRow:
    """Convert a LLaVA row, whose `conversations` have `from` and `value`, to a raw row of this package."""
    turns = row["conversations"]
    _check_turns(turns, {"from", "value"})
    messages = [{"role": _ROLES.get(turn["from"], turn["from"]), "content": turn["value"]} for turn in turns]
    return {"messages": messages, "images": _images(row)}


def _texts(row: Mapping[str, Any], _: Sequence[str] | None) -> RawRow:
    """Convert a row with a list `texts` of `{"user", "assistant"}` dicts to a raw row of this package."""
    turns = row["texts"]
    _check_turns(turns, {"user", "assistant"})
    messages = [{"role": role, "content": turn[role]} for turn in turns for role in ("user", "assistant")]
    return {"messages": messages, "images": _images(row)}


def _question(row: Mapping[str, Any], _: Sequence[str] | None) -> RawRow:
    """Convert a question with its answer to a raw row of this package (`messages` and `images`).

    They are in the first pair of columns of `_QUESTIONS` that the row has.
    """
    question, answer = next(pair for pair in _QUESTIONS if set(pair) <= set(row))
    asked = _string(row, question)
    if question == "instruction" and row.get("input"):
        asked = f"{asked}\n{row['input']}"
    return _conversation(asked, _string(row, answer), _images(row))


def _label(row: Mapping[str, Any], class_names: Sequence[str] | None) -> RawRow:
    """Convert an image with a class label to a raw row of this package; the class's first name becomes its `prompt`.

    The column `label` holds the name, or a number that `class_names` translates. Raise `RowError` if there is no name.
    """
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
    # ImageNet names a class by all its synonyms, as in "tench, Tinca tinca", but a user would write only one of them.
    return {"prompt": label.split(",")[0].replace("_", " ").strip(), "image": _image(row)}


def clean_midjourney(prompt: str) -> str:
    """Return a Midjourney prompt without its commands, as the plain description of an image.

    These are removed: links at the beginning, everything from the first `--parameter` on, bold marks (`**`), and the
    mention of a user at the end.
    """
    prompt = prompt.replace("**", " ").split(" - <@")[0]
    prompt = re.sub(r"^(\s*<?https?://\S+)+", "", prompt)
    return " ".join(re.split(r"(?:^|\s)(?:--|—)[a-zA-Z]", prompt)[0].split())


def _midjourney(row: Mapping[str, Any], _: Sequence[str] | None) -> RawRow:
    """Convert an image and its Midjourney prompt to a raw row of this package (`prompt` and `image`).

    The prompt is cleaned by `clean_midjourney`.
    """
    column = _first(_MIDJOURNEY, row)
    assert column is not None
    return {"prompt": clean_midjourney(_string(row, column)), "image": _image(row)}


def _drawing(row: Mapping[str, Any], _: Sequence[str] | None) -> RawRow:
    """Convert a prompt and the image to be generated from it to a raw row of this package (`prompt` and `image`)."""
    return {"prompt": row["prompt"], "image": _image(row)}


def _caption(row: Mapping[str, Any], _: Sequence[str] | None) -> RawRow:
    """Convert a captioned image to a raw row of this package; the caption becomes its `prompt`."""
    return {"prompt": _string(row, str(_first(_CAPTIONS, row))), "image": _image(row)}


def _describe(row: Mapping[str, Any], _: Sequence[str] | None) -> RawRow:
    """Convert an image and its caption to a raw row of this package; the caption answers the question `DESCRIBE`."""
    return _conversation(DESCRIBE, _string(row, str(_first(_CAPTIONS, row))), [_image(row)])


def _plain(row: Mapping[str, Any], _: Sequence[str] | None) -> RawRow:
    """Convert a plain text without images to a raw row of this package (`text`)."""
    return {"text": _string(row, "text")}


def _has_image(columns: set[str]) -> bool:
    """Return whether any of the column names is one of `_IMAGES`, the names of image columns."""
    return _first(_IMAGES, columns) is not None


# The order is that of preference: if the user names no adapter, the first one that reads the columns is chosen.
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
    """Return the first adapter that can read these columns and whose rows can be examples of `task`.

    An adapter converts the rows of a data set to raw rows, the form in which training data are read.

    Args:
        columns: Column names of a data set.
        name: Name of the only adapter to consider; None considers all.
        task: One of `TASKS`; None accepts every task.

    Raises:
        ValueError: If the name or the task does not exist, or no adapter reads these columns. The message lists,
            for each candidate adapter, the columns that it reads.
    """
    if task is not None and task not in TASKS:
        raise ValueError(f"`task` must be one of {TASKS}, got {task!r}: choose one, or leave it out.")
    if name is not None and name not in ADAPTERS:
        raise ValueError(f"`adapter` must be one of {list(ADAPTERS)}, got {name!r}: choose one, or leave it out.")
    candidates = list(ADAPTERS.values()) if name is None else [ADAPTERS[name]]
    for adapter in candidates:
        # An adapter without a task reads conversations, which are for understanding or, without images, for text.
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
