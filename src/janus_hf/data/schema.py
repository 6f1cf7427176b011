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
turn. An answer (a message of the assistant) with `"weight": 0` is not trained.

The adapters (`ADAPTERS`) convert rows with other columns. Each lists the columns that it uses; any other column must
hold no content.
"""

from collections.abc import Collection, Mapping

from .reading.adapter import IMAGE_COLUMNS, TASKS, Adapter, RawRow, Slot, Task
from .reading.content import ADDRESS, IMAGE, name_kind
from .reading.conversions import (
    DESCRIBE,
    clean_midjourney,
    read_caption,
    read_completion,
    read_describe,
    read_drawing,
    read_label,
    read_messages,
    read_midjourney,
    read_plain,
    read_question,
    read_texts,
)
from .reading.refusals import RowError, SourceError
from .reading.turns import IMAGE_MARK


_IMAGES = Slot("images", ("images", *IMAGE_COLUMNS))
_CONTEXT = (_IMAGES, Slot("system", ("system", "system_prompt")), Slot("history", ("history",)))
_IMAGE = Slot("image", IMAGE_COLUMNS, required=True)
_CAPTION = Slot("caption", ("caption", "text", "txt"), required=True)


def _needs(name: str, *columns: str) -> Slot:
    """Return a required slot, by default with a column of the same name."""
    return Slot(name, columns or (name,), required=True)


# The order is that of preference: if the user names no adapter, the first one that uses most columns is chosen.
ADAPTERS: dict[str, Adapter] = {
    adapter.name: adapter
    for adapter in (
        Adapter(
            "messages",
            "messages (+ images or image, system, history)",
            None,
            (_needs("turns", "messages"), *_CONTEXT),
            read_messages,
        ),
        Adapter(
            "llava",
            "conversations (+ image or images, system, history)",
            None,
            (_needs("turns", "conversations", "conversation"), *_CONTEXT),
            read_messages,
        ),
        Adapter(
            "texts",
            "texts of {user, assistant} (+ images, system, history)",
            None,
            (_needs("turns", "texts"), *_CONTEXT),
            read_texts,
        ),
        Adapter(
            "question",
            "question, query or instruction (+ input) + answer, response or output (+ image or images, choices, "
            "system, history)",
            None,
            (
                _needs("question", "question", "query", "instruction"),
                Slot("input", ("input",)),
                _needs("answer", "answer", "response", "output"),
                Slot("choices", ("choices", "options")),
                *_CONTEXT,
            ),
            read_question,
        ),
        Adapter(
            "completion",
            "prompt + completion (+ image or images, system, history)",
            None,
            (_needs("prompt"), _needs("completion"), *_CONTEXT),
            read_completion,
        ),
        Adapter("drawing", "prompt + image", "drawing", (_needs("prompt"), _IMAGE), read_drawing),
        Adapter("caption", "caption, text or txt + image (generated)", "drawing", (_CAPTION, _IMAGE), read_caption),
        Adapter(
            "describe",
            "caption, text or txt + image (described)",
            "understanding",
            (_CAPTION, _IMAGE),
            read_describe,
            on_request=True,
        ),
        Adapter("label", "label + image (ImageNet)", "drawing", (_needs("label"), _IMAGE), read_label),
        Adapter(
            "midjourney",
            "Prompt, original_text, midjourney_prompt, content or prompt + image",
            "drawing",
            (_needs("prompt", "midjourney_prompt", "original_text", "Prompt", "content", "prompt"), _IMAGE),
            read_midjourney,
        ),
        Adapter("text", "text", "text", (_needs("text"),), read_plain),
    )
}


def choose_adapter(
    columns: Collection[str],
    *,
    name: str | None = None,
    task: str | None = None,
    content: Mapping[str, str] | None = None,
) -> Adapter:
    """Return the adapter that can read these columns, uses most of the content, and makes examples of `task`.

    An adapter converts the rows of a data set to raw rows, the form in which training data are read. Among adapters
    that leave equally many columns with content, the first one of `ADAPTERS` is chosen.

    Args:
        columns: Column names of a data set, without those that are to be ignored.
        name: Name of the only adapter to consider; None considers all.
        task: One of `TASKS`; None accepts every task.
        content: Columns with content -> what they hold ("an image", ...). By default the names of the columns decide.

    Raises:
        ValueError: If the name or the task does not exist, no adapter reads these columns, or adapters of two tasks
            use all of them. The message lists, for each candidate adapter, the columns that it reads.
        SourceError: If the columns are those of preference data.
    """
    if content is None:
        content = {column: kind for column in columns if (kind := name_kind(column)) is not None}
    if task is not None and task not in TASKS:
        raise ValueError(f"`task` must be one of {TASKS}, got {task!r}: choose one, or leave it out.")
    if name is not None and name not in ADAPTERS:
        raise ValueError(f"`adapter` must be one of {list(ADAPTERS)}, got {name!r}: choose one, or leave it out.")
    if {"chosen", "rejected"} <= set(columns):
        raise _preference(columns, content)
    candidates = list(ADAPTERS.values()) if name is None else [ADAPTERS[name]]
    # An adapter without a task reads conversations, which are for understanding or, without images, for text.
    fitting = [
        adapter
        for adapter in candidates
        if adapter.matches(columns) and (task in (None, adapter.task) or (adapter.task is None and task != "drawing"))
    ]
    if not fitting:
        known = "\n".join(f"  {adapter.name}: {adapter.columns}" for adapter in candidates)
        wanted = f" for the task {task!r}" if task else ""
        raise ValueError(
            f"The columns must be those of a known schema{wanted}, got {sorted(columns)}: rename columns "
            f"(dataset.rename_column) so that they fit one of\n{known}"
        )
    left = {adapter.name: adapter.leaves(columns, content) for adapter in fitting}
    fewest = min(len(names) for names in left.values())
    best = [adapter for adapter in fitting if len(left[adapter.name]) == fewest]
    asked = [adapter for adapter in best if not adapter.on_request] or best
    if fewest == 0 and len({adapter.task for adapter in asked}) > 1:
        choices = ", ".join(f"{adapter.name!r} ({adapter.task or 'understanding or text'})" for adapter in asked)
        raise ValueError(
            f"The columns must have one meaning, got {sorted(columns)}, which {choices} could all use: say which with "
            "`task` or `adapter` (--task or --adapter at the command line)."
        )
    return asked[0]


def _preference(columns: Collection[str], content: Mapping[str, str]) -> SourceError:
    """Return, without raising it, the error for rows of preferred and rejected answers or images."""
    if content.get("chosen") in (IMAGE, ADDRESS):
        advice = (
            "this package does not train on preferred images yet, so use the chosen ones as rows of prompt + image"
        )
    else:
        advice = "train preferred answers with trl.DPOTrainer, or use the chosen ones as rows of prompt + completion"
    return SourceError(
        f"The columns must be those of examples, got {sorted(columns)}, of which 'chosen' and 'rejected' are "
        f"preferences: {advice} (rename the column, and leave out 'rejected' with `ignore`)."
    )


__all__ = [
    "ADAPTERS",
    "DESCRIBE",
    "IMAGE_MARK",
    "TASKS",
    "Adapter",
    "RawRow",
    "RowError",
    "SourceError",
    "Task",
    "choose_adapter",
    "clean_midjourney",
]
