"""`read_turns`, which reads a conversation in any usual form: of OpenAI, TRL, LLaVA, ShareGPT or deepseek-ai/Janus."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeAlias

from ...layouts.special_tokens import IMAGE_TOKEN
from .content import find_content, is_covered, is_empty
from .refusals import RowError, unused


IMAGE_MARK = "<image>"

Turn: TypeAlias = dict[str, Any]
"""`{"role": str, "content": str}`, with `"weight": 0` if it is an answer that must not be trained."""

_ROLE_KEYS, _CONTENT_KEYS, _WEIGHT_KEYS = ("role", "from"), ("content", "value"), ("weight", "loss", "train")
# Names of roles in LLaVA, ShareGPT, deepseek-ai/Janus and OpenAI's format -> names of roles in raw rows.
_ROLES = {
    **dict.fromkeys(("human", "User", "<|User|>"), "user"),
    **dict.fromkeys(("gpt", "bot", "model", "Assistant", "<|Assistant|>"), "assistant"),
    "developer": "system",
}
# Janus has no prompt format for calls of tools.
_TOOL_ROLES = (
    "tool",
    "function",
    "function_call",
    "function_response",
    "observation",
    "tool_call",
    "tool_response",
    "ipython",
)
# Keys of a message that hold content although their names, elsewhere, would not say so.
_KEYS = {
    "name": "the name of a speaker",
    "tool_calls": "calls of tools",
    "tool_call_id": "the result of a tool",
    "function_call": "a call of a function",
    "reasoning_content": "text for the model",
    "refusal": "text for the model",
}
_TEXT_PARTS, _IMAGE_PARTS = ("text", "input_text", "output_text"), ("image", "image_url", "input_image")
_IMAGE_KEYS = ("image", "image_url", "url", "path", "base64")

# Names of what messages may hold in raw rows: keys, roles and types of parts.
READABLE = frozenset((*_ROLE_KEYS, *_CONTENT_KEYS, *_WEIGHT_KEYS, *_TEXT_PARTS, *_IMAGE_PARTS, *_IMAGE_KEYS, *_ROLES))
READABLE |= {"images", "type", "user", "assistant", "system"}


def read_turns(
    turns: Any,
    images: Sequence[Any] = (),
    *,
    ignore: Collection[str] = (),
    system: Any = None,
    history: Any = None,
) -> dict[str, Any]:
    """Read a conversation, and return it as a raw row `{"messages": [...], "images": [...]}`.

    Args:
        turns: List of dicts with `role` and `content`, or `from` and `value`. A content is a string, or a list of
            parts `{"type": "text", "text"}`, `{"type": "image", "image" | "url" | "path" | "base64"}` or
            `{"type": "image_url", "image_url": {"url"}}`. Keys `weight`, `loss` or `train` of 0 say that an answer is
            not trained. A key `images` holds images of this turn.
        images: Images of the row, for `<image>` marks and image parts without an image of their own.
        ignore: Names of keys, part types and roles that may be left out.
        system: System prompt that stands outside the turns.
        history: Earlier turns: a list of pairs (question, answer), or of dicts like `turns`.

    Returns:
        A raw row: messages are `{"role", "content"}` with strings in which `<image>` marks the position of an image,
        and `"weight": 0` in answers that are not trained; images are in the order of the marks.

    Raises:
        RowError: If the conversation has another form, or two system prompts.
        SourceError: If a turn holds content that a raw row cannot hold, such as calls of tools.
    """
    all_turns = [*_read_history(history), *(turns if isinstance(turns, (list, tuple)) else _check_turns(turns))]
    messages = [message for turn in all_turns if (message := _read_plain(turn)) is not None]
    if len(messages) == len(all_turns):  # the usual case, and a fast one
        return {"messages": _add_system(messages, system), "images": list(images)}
    _check_turns(all_turns)
    row_images, found, messages = list(images), [], []
    # Without images inside turns, the row's images stay as they are, even if they have no marks.
    has_inner = any(_has_images(turn) for turn in all_turns)
    for turn in all_turns:
        role = _first_value(turn, _ROLE_KEYS)
        role = _ROLES.get(role, role) if isinstance(role, str) else role
        if role in _TOOL_ROLES and is_covered(role, ignore):
            continue
        if role in _TOOL_ROLES:
            raise unused(role, "a turn of a tool", "conversations, whose roles are system, user and assistant")
        _check_keys(turn, ignore)
        own = [] if is_covered("images", ignore) else list(turn.get("images") or [])
        content, marks = _read_content(_first_value(turn, _CONTENT_KEYS), ignore)
        if own and not marks:
            content, marks = f"{IMAGE_MARK}\n" * len(own) + content, [None] * len(own)
        if has_inner:
            # Every mark takes the image of its part, or else the next image of its turn, or of the row. Images that
            # are left over have no mark, which `make_document` refuses.
            waiting = own or row_images
            found += [waiting.pop(0) if image is None and waiting else image for image in marks]
            found += own
        messages.append({"role": role, "content": content} | _read_weight(turn, role, ignore))
    return {"messages": _add_system(messages, system), "images": found + row_images}


def _read_plain(turn: Any) -> Turn | None:
    """Return a turn that has only a role and a string, as a message; None for every other turn."""
    if not isinstance(turn, Mapping) or len(turn) != 2:
        return None
    role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
    role = _ROLES.get(role, role) if isinstance(role, str) else None
    # With a role and a content of these types, the turn has no third key.
    if role not in ("user", "assistant", "system") or not isinstance(content, str):
        return None
    return {"role": role, "content": content}


def is_answer(turn: Mapping[str, Any]) -> bool:
    """Return whether a turn is one of the assistant."""
    role = _first_value(turn, _ROLE_KEYS)
    return isinstance(role, str) and _ROLES.get(role, role) == "assistant"


def _has_images(turn: Mapping[str, Any]) -> bool:
    """Return whether a turn holds images itself, in its key `images` or in the parts of its content."""
    content = _first_value(turn, _CONTENT_KEYS)
    parts = [part for part in content if isinstance(part, Mapping)] if isinstance(content, (list, tuple)) else []
    return not is_empty(turn.get("images")) or any(
        not is_empty(part.get(key)) for part in parts for key in _IMAGE_KEYS
    )


def _first_value(turn: Mapping[str, Any], keys: Sequence[str]) -> Any:
    """Return the first value that is not None of some keys of a turn, or None."""
    return next((turn[key] for key in keys if turn.get(key) is not None), None)


def _count_marks(content: str) -> int:
    """Return the number of positions of images in a content."""
    return content.count(IMAGE_MARK) + content.count(IMAGE_TOKEN)


def _check_turns(turns: Any) -> list[Mapping[str, Any]]:
    """Return the turns of a conversation; raise `RowError` unless they are dicts with a role and a content."""
    if not isinstance(turns, (list, tuple)) or not all(
        isinstance(turn, Mapping) and any(key in turn for key in _ROLE_KEYS) for turn in turns
    ):
        raise RowError(
            "bad_conversation",
            f"The turns must be a list of dicts with role and content, or from and value, got {str(turns)[:200]}.",
        )
    return list(turns)


def _read_history(history: Any) -> list[Mapping[str, Any]]:
    """Return earlier turns, given as pairs (question, answer) or as turns, as a list of turns."""
    if is_empty(history):
        return []
    pairs = history if isinstance(history, (list, tuple)) else [history]
    if all(isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in pairs):
        roles = ("user", "assistant")
        return [{"role": role, "content": text} for pair in pairs for role, text in zip(roles, pair, strict=True)]
    return _check_turns(history)


def _read_content(content: Any, ignore: Collection[str]) -> tuple[str, list[Any]]:
    """Return `(text, images)`: a content as one string with `<image>` marks, and the images that stand at the marks.

    The list has one entry per mark, which is None unless the mark stands for a part with an image of its own.

    Raises:
        RowError: If the content is neither a string nor a list of parts.
        SourceError: If a part is neither text nor an image, and not to be ignored.
    """
    if isinstance(content, str):
        return content, [None] * _count_marks(content)
    if not isinstance(content, (list, tuple)) or not all(isinstance(part, Mapping) for part in content):
        raise RowError("bad_conversation", f"`content` must be a string or a list of parts, got {str(content)[:200]}.")
    texts: list[str] = []
    images: list[Any] = []
    for part in content:
        kind = part.get("type")
        if kind is None:
            kind = "text" if part.get("text") is not None else "image"
        used = "text"
        if kind in _TEXT_PARTS:
            texts.append(part.get("text") or "")
            images += [None] * _count_marks(texts[-1])
        elif kind in _IMAGE_PARTS:
            used = next((key for key in _IMAGE_KEYS if not is_empty(part.get(key))), "")
            image = part.get(used)
            if isinstance(image, Mapping) and "url" in image:
                _check_rest(image, ("url",), ignore, "image parts")
                image = image["url"]
            texts.append(IMAGE_MARK)
            images.append(image)
        elif is_covered(str(kind), ignore):
            continue
        else:
            raise unused(str(kind), "a part of a message", "conversations, whose parts are text and images")
        _check_rest(part, ("type", used), ignore, f"{kind} parts")
    return "\n".join(texts), images


def _read_weight(turn: Mapping[str, Any], role: Any, ignore: Collection[str]) -> dict[str, int]:
    """Return `{"weight": 0}` for an answer that must not be trained, `{}` for every other turn.

    Raises:
        SourceError: If a weight is neither 0 nor 1, or is 1 for a turn that is never trained.
    """
    for key in _WEIGHT_KEYS:
        value = turn.get(key)
        if value is None or is_covered(key, ignore):
            continue
        if value not in (0, 1) or (value == 1 and role != "assistant"):
            raise unused(
                key, f"the weight {value!r} of a turn of the role {role!r}", "training, where answers weigh 0 or 1"
            )
        if value == 0 and role == "assistant":
            return {"weight": 0}
    return {}


def _check_keys(turn: Mapping[str, Any], ignore: Collection[str]) -> None:
    """Raise `SourceError` if a turn holds content outside the keys that are read."""
    for key in _KEYS:
        if not is_empty(turn.get(key)) and not is_covered(key, ignore):
            raise unused(key, _KEYS[key], "conversations")
    role = next((key for key in _ROLE_KEYS if turn.get(key) is not None), "")
    content = next((key for key in _CONTENT_KEYS if turn.get(key) is not None), "")
    _check_rest(turn, (role, content, "images", *_WEIGHT_KEYS, *_KEYS), ignore, "conversations")


def _check_rest(cell: Mapping[str, Any], used: Collection[str], ignore: Collection[str], place: str) -> None:
    """Raise `SourceError` if a turn or part holds content under other keys than those that are used."""
    for key, value in cell.items():
        if key not in used and (what := find_content(key, value)) and not is_covered(key, ignore):
            raise unused(key, what, place)


def _add_system(messages: list[Turn], system: Any) -> list[Turn]:
    """Return the messages with the system prompt that stands outside them as their first message.

    Raises:
        RowError: If the system prompt is no string, or the messages begin with another one.
    """
    if is_empty(system):
        return messages
    if not isinstance(system, str):
        raise RowError("bad_conversation", f"The system prompt must be a string, got {str(system)[:200]}.")
    if messages and messages[0]["role"] == "system":
        if messages[0]["content"].strip() not in ("", system.strip()):
            raise RowError("bad_conversation", f"The row must have one system prompt, got {system[:200]!r} as well.")
        messages = messages[1:]
    return [{"role": "system", "content": system}, *messages]


__all__ = ["IMAGE_MARK", "READABLE", "Turn", "is_answer", "read_turns"]
