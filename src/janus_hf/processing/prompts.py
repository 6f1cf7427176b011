"""The prompt format of Janus: special tokens, role names, the chat template, text-to-image prompts, and their checks.

Everything here works on strings, without a tokenizer. The format is that of the "deepseek" and "deepseek_old"
conversations in the original code (deepseek-ai/Janus, janus/utils/conversation.py). A turn is rendered as
`role: content`. The separator after a turn depends on its role: "\\n\\n" after a user's turn, end-of-sentence after an
assistant's. In the original it depends on the NUMBER of the turn instead: "\\n\\n" after the 1st, 3rd and so on,
end-of-sentence after the 2nd, 4th and so on, which is the same unless two turns of one role follow each other.
`close_turns="by_number"` follows the original. A turn without content is rendered as `role:` without a separator,
which is how the original opens an answer.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

from ..arguments import describe
from ..layouts.special_tokens import BOI_TOKEN, BOS_TOKEN, EOI_TOKEN, EOS_TOKEN, IMAGE_TOKEN, PAD_TOKEN


ROLES = ("<|User|>", "<|Assistant|>")
JANUS_1_3B_ROLES = ("User", "Assistant")
# `sft_format` in processor_config.json -> names of user and assistant. These conversations of deepseek-ai/Janus differ
# in their role names only: both render the same text from the same messages.
ROLES_BY_FORMAT = {"deepseek": ROLES, "deepseek_old": JANUS_1_3B_ROLES}

SYSTEM_PROMPT = (
    "You are a helpful language and vision assistant. "
    "You are able to understand the visual content that the user provides, "
    "and assist the user with a variety of tasks using natural language."
)

CloseTurns: TypeAlias = Literal["by_role", "by_number"]
"""What decides which turns end with end-of-sentence: the role of a turn, or its number in the conversation."""

# Keys under which a message's image part may name its image, in the order in which they are tried.
IMAGE_KEYS = ("image", "url", "path", "base64", "image_url")

# `roles`, `system_prompt` and `close_turns` may be passed when a conversation is rendered. The processor's own are
# written into the template as defaults, so that transformers renders the same without this package. deepseek-ai/Janus
# strips the finished string; this template instead emits no white space at the ends. No character may change, not even
# in the error message: the files of a saved processor contain the template, and loading recognises it by comparing
# strings.
_TEMPLATE = """\
{%- set names = roles if roles else @ROLES@ %}
{%- set system = system_prompt if system_prompt is defined else @SYSTEM@ %}
{%- set closed = close_turns if close_turns is defined else @CLOSE@ %}
{%- set turns = messages %}
{%- set open_turn = namespace(is_last=false) %}
{%- macro body(content) %}
    {%- if content is string %}
        {{- content }}
    {%- else %}
        {%- for part in content or [] %}
            {%- if not loop.first and "image" in (part["type"], loop.previtem["type"]) %}
                {{- "\\n" }}
            {%- endif %}
            {{- @IMAGE@ if part["type"] == "image" else part["text"] }}
        {%- endfor %}
    {%- endif %}
{%- endmacro %}
{%- if messages[0]["role"] == "system" %}
    {%- set system = body(messages[0]["content"]) | trim %}
    {%- set turns = messages[1:] %}
{%- endif %}
{{- (system ~ "\\n\\n").lstrip() if system }}
{%- for message in turns %}
    {%- set role = {"user": names[0], "assistant": names[1]}.get(message["role"], message["role"]) %}
    {%- set is_answer = role in [names[1], "<|Assistant|>", "Assistant"] %}
    {%- if not is_answer and role not in [names[0], "<|User|>", "User"] %}
        {{- raise_exception("Expected the roles user and assistant, and system first; got " ~ role) }}
    {%- endif %}
    {%- set text = body(message["content"]) | trim %}
    {%- set blank = "\\n\\n" if not loop.last or add_generation_prompt else "" %}
    {%- set ends = loop.index0 % 2 == 1 if closed == "by_number" else is_answer %}
    {%- set end = @EOS@ if ends else blank %}
    {{- role ~ (": " if text else ":") }}
    {%- if text and is_answer %}
        {%- generation %}
            {{- text ~ end }}
        {%- endgeneration %}
    {%- elif text %}
        {{- text ~ end }}
    {%- endif %}
    {%- set open_turn.is_last = is_answer and not text %}
{%- endfor %}
{%- if add_generation_prompt and not open_turn.is_last %}
    {{- names[1] ~ ":" }}
{%- endif %}
"""


def build_chat_template(
    *,
    roles: Sequence[str] = ROLES,
    system_prompt: str | None = SYSTEM_PROMPT,
    image_token: str = IMAGE_TOKEN,
    close_turns: CloseTurns = "by_role",
) -> str:
    """Return the Jinja chat template with these arguments as its defaults.

    transformers can render the template without this package.

    Args:
        roles: Names of user and assistant in the rendered text.
        system_prompt: System prompt of conversations without a system message; `None` or "" for none.
        image_token: Placeholder token as which each image of a message is rendered.
        close_turns: "by_role" ends the assistant's turns with end-of-sentence; "by_number" ends every second turn
            with it, as deepseek-ai/Janus does.
    """
    values = {"ROLES": list(roles), "SYSTEM": system_prompt or "", "IMAGE": image_token, "EOS": EOS_TOKEN}
    values["CLOSE"] = close_turns
    template = _TEMPLATE
    for name, value in values.items():
        # Every JSON literal is a Jinja literal, so quotes and braces inside a value stay text.
        template = template.replace(f"@{name}@", json.dumps(value, ensure_ascii=False))
    return template


CHAT_TEMPLATE = build_chat_template()


def render_generation_prompt(prompt: str, *, roles: Sequence[str] = ROLES, boi_token: str = BOI_TOKEN) -> str:
    """Render a text-to-image prompt as the text that the model continues with image tokens.

    The text consists of one user turn with the prompt, the beginning of an assistant turn, and the begin-of-image
    token. It has no system prompt. As in deepseek-ai/Janus, white space around the prompt is removed, and
    special-token strings inside it become special tokens: clean prompts from untrusted sources.
    """
    content = prompt.strip()
    return f"{roles[0]}: {content}\n\n{roles[1]}:{boi_token}" if content else f"{roles[0]}:{roles[1]}:{boi_token}"


def check_conversation(conversation: Any, *, roles: Sequence[str] = ROLES, name: str = "conversation") -> None:
    """Raise `ValueError` unless `conversation` is a list of messages that the chat template can render.

    Args:
        conversation: `[{"role": ..., "content": ...}, ...]`; the content is a string, or a list of parts
            `{"type": "text", "text": ...}` and `{"type": "image", "image" | "url" | "path" | "base64": ...}`.
        roles: Names of user and assistant that are accepted besides "user", "assistant", `ROLES` and
            `JANUS_1_3B_ROLES`.
        name: Name of the caller's argument, for the message.
    """
    if not isinstance(conversation, (list, tuple)) or not conversation:
        raise ValueError(
            f"`{name}` must be a non-empty list of messages, got {describe(conversation)}: pass dicts with "
            "'role' and 'content'."
        )
    allowed = list(dict.fromkeys(["user", "assistant", *roles, *ROLES, *JANUS_1_3B_ROLES]))
    for index, message in enumerate(conversation):
        if not isinstance(message, Mapping) or "role" not in message:
            raise ValueError(
                f"Message {index} must be a dict with 'role' and 'content', got {describe(message)}: give it both."
            )
        role = message["role"]
        if role not in allowed and not (role == "system" and index == 0):
            raise ValueError(
                f"The role of message {index} must be one of {allowed}, or 'system' in the first message, got "
                f"{role!r}: rename it."
            )
        if not isinstance(listed := message.get("images") or [], (list, tuple)):
            raise ValueError(f"The 'images' of message {index} must be a list, got {describe(listed)}: write [image].")
        content = message.get("content")
        if not isinstance(content, (str, list, tuple)):
            raise ValueError(
                f"The 'content' of message {index} must be a string or a list of parts of type 'text' or 'image', got "
                f"{'none' if content is None else describe(content)}: write '' for a message without text."
            )
        for part in [] if isinstance(content, str) else content:
            _check_part(part, index)


def _check_part(part: Any, index: int) -> None:
    """Raise `ValueError` unless `part`, an item of a message's content list, is a text or an image.

    Args:
        part: `{"type": "text", "text": ...}`, or a dictionary of type "image" or "image_url".
        index: Index of the message in the conversation, for the error.
    """
    if not isinstance(part, Mapping) or part.get("type") not in ("text", "image", "image_url"):
        raise ValueError(
            f"The content of message {index} must be a string or a list of parts of type 'text' or 'image', got "
            f"{describe(part)}: write it as one of these."
        )
    if part["type"] == "text" and not isinstance(part.get("text"), str):
        raise ValueError(
            f"A text part of message {index} must hold a string under 'text', got {part!r}: add it, or leave the part "
            "out."
        )


def conversation_images(
    conversation: Sequence[Mapping[str, Any]], *, image_token: str | None = IMAGE_TOKEN
) -> list[Any]:
    """Return the images of a conversation in reading order, as paths, URLs, base64 strings or image objects.

    Images are given as image parts of a message's content, or in a message's "images" list as in deepseek-ai/Janus.
    The entries of that list belong, in order, to the placeholders in the message's text and to the image parts that
    name no image themselves.

    Args:
        conversation: Messages that `check_conversation` has accepted.
        image_token: Placeholder token of an image in a text; None if placeholders in texts count as text.
    """
    images: list[Any] = []
    for message in conversation:
        content, listed = message["content"], list(message.get("images") or [])
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        for part in parts:
            own = [part[key] for key in IMAGE_KEYS if part.get(key) is not None]
            wanted = part["text"].count(image_token) if image_token and part["type"] == "text" else 0
            wanted = wanted if part["type"] == "text" else 1
            if part["type"] != "text" and own:
                # The part of type "image_url" in the messages of other chat libraries holds {"url": ...}.
                images.append(own[0].get("url", own[0]) if isinstance(own[0], Mapping) else own[0])
            else:
                images += listed[:wanted]
                del listed[:wanted]
        # Images without a placeholder are returned too, so that the later check of the counts finds and reports them.
        images += listed
    return images


__all__ = [
    "BOI_TOKEN",
    "BOS_TOKEN",
    "CHAT_TEMPLATE",
    "EOI_TOKEN",
    "EOS_TOKEN",
    "IMAGE_KEYS",
    "IMAGE_TOKEN",
    "JANUS_1_3B_ROLES",
    "PAD_TOKEN",
    "ROLES",
    "ROLES_BY_FORMAT",
    "SYSTEM_PROMPT",
    "CloseTurns",
    "build_chat_template",
    "check_conversation",
    "conversation_images",
    "render_generation_prompt",
]
