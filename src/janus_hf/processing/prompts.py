"""Strings only: special tokens, roles, the chat template and the image-generation prompt.

The format is that of the original's "deepseek" conversation (janus/utils/conversation.py): turns are
`role: content` and are separated BY INDEX, not by role: "\\n\\n" after the 1st, 3rd, ..., end-of-sentence after the
2nd, 4th, .... A turn without content is `role:` and takes no separator, which is how the original opens an answer.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any


BOS_TOKEN = "<｜begin▁of▁sentence｜>"
EOS_TOKEN = "<｜end▁of▁sentence｜>"
PAD_TOKEN = "<｜▁pad▁｜>"
BOI_TOKEN = "<begin_of_image>"
EOI_TOKEN = "<end_of_image>"
IMAGE_TOKEN = "<image_placeholder>"

ROLES = ("<|User|>", "<|Assistant|>")
JANUS_1_3B_ROLES = ("User", "Assistant")

SYSTEM_PROMPT = (
    "You are a helpful language and vision assistant. "
    "You are able to understand the visual content that the user provides, "
    "and assist the user with a variety of tasks using natural language."
)

_IMAGE_KEYS = ("image", "url", "path", "base64", "image_url")

# `roles` and `system_prompt` may be passed at rendering time; the processor's own are baked in as defaults, so that
# stock transformers renders the same. The original strips the finished string: here nothing strippable is emitted.
_TEMPLATE = """\
{%- set names = roles if roles else @ROLES@ %}
{%- set system = system_prompt if system_prompt is defined else @SYSTEM@ %}
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
    {%- set end = @EOS@ if loop.index0 % 2 else blank %}
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
    *, roles: Sequence[str] = ROLES, system_prompt: str | None = SYSTEM_PROMPT, image_token: str = IMAGE_TOKEN
) -> str:
    """The Jinja chat template with these defaults baked in; it works in stock transformers too.

    Args:
        roles: Names of user and assistant in the rendered text.
        system_prompt: For conversations without a system message; `None` or "" for none.
        image_token: What an image part renders as.
    """
    values = {"ROLES": list(roles), "SYSTEM": system_prompt or "", "IMAGE": image_token, "EOS": EOS_TOKEN}
    template = _TEMPLATE
    for name, value in values.items():
        # A JSON literal is a Jinja literal.
        template = template.replace(f"@{name}@", json.dumps(value, ensure_ascii=False))
    return template


CHAT_TEMPLATE = build_chat_template()


def render_generation_prompt(prompt: str, *, roles: Sequence[str] = ROLES, boi_token: str = BOI_TOKEN) -> str:
    """A text-to-image prompt: one user turn, an open answer, begin-of-image; no system prompt.

    The prompt is stripped, as in the original. Special-token strings inside it become special tokens, also as in the
    original: clean prompts from untrusted sources.
    """
    content = prompt.strip()
    return f"{roles[0]}: {content}\n\n{roles[1]}:{boi_token}" if content else f"{roles[0]}:{roles[1]}:{boi_token}"


def check_conversation(conversation: Any, *, roles: Sequence[str] = ROLES) -> None:
    """Raises `ValueError` unless `conversation` is a list of messages that the chat template can render.

    Args:
        conversation: `[{"role": ..., "content": ...}, ...]`; content is a string, or a list of parts
            `{"type": "text", "text": ...}` and `{"type": "image", "image" | "url" | "path" | "base64": ...}`.
        roles: The user's and the assistant's name, accepted besides "user", "assistant" and the original spellings.
    """
    if not isinstance(conversation, (list, tuple)) or not conversation:
        raise ValueError(f"Expected a conversation, a non-empty list of messages; got {conversation!r}.")
    allowed = list(dict.fromkeys(["user", "assistant", *roles, *ROLES, *JANUS_1_3B_ROLES]))
    for index, message in enumerate(conversation):
        if not isinstance(message, Mapping) or "role" not in message:
            raise ValueError(f"Expected message {index} to be a dict with 'role' and 'content'; got {message!r}.")
        role = message["role"]
        if role not in allowed and not (role == "system" and index == 0):
            raise ValueError(
                f"Expected the role of message {index} to be one of {allowed}, or 'system' in the first message; got "
                f"{role!r}. Rename it."
            )
        content = message.get("content")
        if content is None or isinstance(content, str):
            continue
        for part in content if isinstance(content, (list, tuple)) else [content]:
            if not isinstance(part, Mapping) or part.get("type") not in ("text", "image", "image_url"):
                raise ValueError(
                    f"Expected the content of message {index} to be a string or a list of parts of type 'text' or "
                    f"'image'; got {part!r}."
                )
            if part["type"] == "text" and not isinstance(part.get("text"), str):
                raise ValueError(f"Expected a text part of message {index} to hold a string 'text'; got {part!r}.")


def conversation_images(conversation: Sequence[Mapping[str, Any]], *, image_token: str = IMAGE_TOKEN) -> list[Any]:
    """The picture sources of a checked conversation, in reading order.

    They come from image parts and from the original's "images" key, whose pictures belong to the placeholders in the
    text and to image parts without a source.
    """
    images: list[Any] = []
    for message in conversation:
        content, listed = message.get("content") or "", list(message.get("images") or [])
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        for part in parts:
            own = [part[key] for key in _IMAGE_KEYS if part.get(key) is not None]
            wanted = part["text"].count(image_token) if part["type"] == "text" else 1
            if part["type"] != "text" and own:
                images.append(own[0]["url"] if isinstance(own[0], Mapping) else own[0])
            else:
                images += listed[:wanted]
                del listed[:wanted]
        images += listed
    return images
