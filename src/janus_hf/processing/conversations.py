"""`ConversationRendering`, the method of the processor that renders conversations with the chat template."""

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, overload

import torch
from transformers import BatchFeature, ProcessorMixin

from ..arguments import check_flag, describe
from .batching import JanusProProcessingKwargs
from .prompts import IMAGE_KEYS, check_conversation, conversation_images
from .untrusted_text import render_marked


# Arguments of transformers' `apply_chat_template`, sorted by what becomes of them here. Any other keyword must be one
# of the processor's call, or a variable of the template.
PASSED_ON = frozenset(
    {
        "chat_template",
        "add_generation_prompt",
        "continue_final_message",
        "return_assistant_tokens_mask",
        "return_dict",
        "return_tensors",
    }
)
USED = frozenset({"conversation", "tokenize", "processor_kwargs", "sanitize_control_tokens", "kwargs"})
# Passed on if the template reads them, otherwise refused.
VARIABLES = {
    "tools": "describe the tools in a system message",
    "documents": "put the documents into a message",
}
REFUSED = {"load_audio_from_video": "pass text and images only"}
# Arguments that mean nothing for a string.
_ONLY_WITH_IDS = ("return_dict", "return_assistant_tokens_mask", "return_tensors", "processor_kwargs")

# Variables that the template of this package reads.
_OWN_VARIABLES = frozenset({"roles", "system_prompt", "close_turns"})

# Keys of a message, and of a part of its content, that are used.
_MESSAGE_KEYS = frozenset({"role", "content", "images"})
_PART_KEYS = {"text": frozenset({"type", "text"}), "image": frozenset({"type", *IMAGE_KEYS})}


class ConversationRendering(ProcessorMixin):
    """Base class of `JanusProProcessor` with `apply_chat_template`."""

    roles: tuple[str, str]
    image_token: str

    if TYPE_CHECKING:  # defined by `JanusProProcessor`

        def _default_template(self) -> str:
            """Return the chat template with the processor's own settings."""
            ...

        def _parses(self, parse_special_tokens: bool | None) -> bool:
            """Return whether special tokens in messages are parsed, for the argument of a call."""
            ...

    @overload
    def apply_chat_template(
        self,
        conversation: list[dict[str, Any]],
        chat_template: str | None = None,
        *,
        tokenize: Literal[False] = False,
        **kwargs: Any,
    ) -> str: ...

    @overload
    def apply_chat_template(
        self,
        conversation: list[list[dict[str, Any]]],
        chat_template: str | None = None,
        *,
        tokenize: Literal[False] = False,
        **kwargs: Any,
    ) -> list[str]: ...

    @overload
    def apply_chat_template(
        self,
        conversation: list[dict[str, Any]] | list[list[dict[str, Any]]],
        chat_template: str | None = None,
        *,
        tokenize: Literal[True],
        return_dict: Literal[True],
        **kwargs: Any,
    ) -> BatchFeature: ...

    @overload
    def apply_chat_template(
        self,
        conversation: list[dict[str, Any]] | list[list[dict[str, Any]]],
        chat_template: str | None = None,
        *,
        tokenize: Literal[True],
        return_dict: Literal[False] = False,
        **kwargs: Any,
    ) -> torch.Tensor: ...

    def apply_chat_template(
        self,
        conversation: list[dict[str, Any]] | list[list[dict[str, Any]]],
        chat_template: str | None = None,
        *,
        tokenize: bool = False,
        processor_kwargs: dict[str, Any] | None = None,
        parse_special_tokens: bool | None = None,
        sanitize_control_tokens: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Render conversations as text, or with `tokenize=True, return_dict=True` as a batch for `model.generate`.

        Args:
            conversation: A list of messages `{"role", "content"}`, or a list of such conversations. A role is "user",
                "assistant", "system" in the first message, or a name that is rendered verbatim ("<|User|>", "User",
                ...). A content is a string with one placeholder token per image, or a list of parts
                `{"type": "text", "text"}` and `{"type": "image", "image" | "url" | "path" | "base64"}`. Messages in
                the form of deepseek-ai/Janus, with an "images" list and a final empty assistant message, are accepted
                too.
            chat_template: Template that replaces the processor's for this call.
            tokenize: `False` returns a string, or a list of strings for several conversations. These contain no BOS,
                which `processor(text, images)` adds.
            processor_kwargs: Arguments for `__call__`, e.g. `{"padding": False}`.
            parse_special_tokens: Whether special tokens that stand in a message become special tokens; `None` uses the
                processor's own setting. With `False` images are given as image parts.
            sanitize_control_tokens: The name of transformers for `parse_special_tokens=False`.
            kwargs: `add_generation_prompt`, `continue_final_message`, `return_dict`, `return_tensors`,
                `return_assistant_tokens_mask` as in transformers. `roles`, `system_prompt` and `close_turns` replace
                the processor's for this call; a `system_prompt` of `None` or "" means none. A system message in the
                conversation takes precedence over both system prompts. `tools`, `documents` and further variables are
                accepted if the template reads them.

        Raises:
            FileNotFoundError: If an image is given as a path that does not exist.
            TypeError: If an argument is of the wrong type, or is one that neither transformers nor the template uses.
            ValueError: If a conversation is malformed, holds a key that the template does not read, or its numbers of
                placeholders and images differ; or if an argument cannot be followed.
        """
        template = _Template(chat_template or self.chat_template, self._default_template())
        _check_arguments(chat_template, template, tokenize, processor_kwargs, kwargs)
        is_list = isinstance(conversation, (list, tuple))
        is_batch = is_list and any(isinstance(one, (list, tuple)) for one in conversation)
        conversations: list[Any] = list(conversation) if is_batch else [conversation]
        for one in conversations:
            check_conversation(one, roles=kwargs.get("roles") or self.roles)
            _check_keys(one, template)
        parses = self._parses(parse_special_tokens)
        if check_flag(sanitize_control_tokens, "sanitize_control_tokens"):
            if parse_special_tokens:
                raise ValueError(
                    "`parse_special_tokens` must not be True with sanitize_control_tokens=True, got both: pass one."
                )
            parses = False
        # A keyword of the call counts as one of the template if that reads it, as in transformers.
        of_call = {
            name: kwargs.pop(name) for name in list(kwargs) if name in _CALL_KEYWORDS and not template.reads(name)
        }
        options = {**of_call, **(processor_kwargs or {})}
        if tokenize and "images" not in options:
            token = self.image_token if parses else None
            images = [conversation_images(one, image_token=token) for one in conversations]
            options["images"] = images if is_batch else images[0]
        if parses:
            if tokenize:
                options["parse_special_tokens"] = True
            return super().apply_chat_template(
                conversation, chat_template, tokenize=tokenize, processor_kwargs=options, **kwargs
            )
        return self._apply_to_untrusted(conversation, chat_template, tokenize, options, kwargs)

    def _apply_to_untrusted(
        self, conversation: Any, chat_template: str | None, tokenize: bool, options: dict[str, Any], kwargs: Any
    ) -> Any:
        """Do what `apply_chat_template` does, without special tokens in the texts of messages.

        Args:
            conversation: The caller's conversation or conversations, already checked.
            chat_template: The caller's argument.
            tokenize: The caller's argument.
            options: Arguments of the processor's call.
            kwargs: Further arguments of transformers' `apply_chat_template`, and variables of the template.
        """
        if kwargs.pop("return_assistant_tokens_mask", False):
            raise ValueError(
                "`return_assistant_tokens_mask` must be False with parse_special_tokens=False, got True: leave out "
                "one of them."
            )
        as_dict, tensors = kwargs.pop("return_dict", False), kwargs.pop("return_tensors", "auto")
        if tensors != "auto":
            options["return_tensors"] = tensors

        def render(conversations: Any, **variables: Any) -> str | list[str]:
            texts: str | list[str] = ProcessorMixin.apply_chat_template(
                self, conversations, chat_template, **variables
            )
            return texts

        text = render_marked(render, conversation, kwargs)
        if not tokenize:
            return text
        batch = self(text=text, parse_special_tokens=False, **options)
        return batch if as_dict else batch["input_ids"]


# Keywords of the processor's call that a caller may pass beside those of `apply_chat_template`, as in transformers.
_CALL_KEYWORDS = frozenset(
    {"images", "generation_mode", *JanusProProcessingKwargs.__annotations__} - {"return_tensors"}
)


class _Template:
    """A chat template, of which this class tells what it reads.

    Args:
        template: The template, or several by name, of which the one named "default" counts.
        default: The template of this package.
    """

    def __init__(self, template: str | dict[str, str], default: str) -> None:
        self._text = template.get("default", "") if isinstance(template, dict) else template
        self._is_own = self._text == default

    def reads(self, name: str) -> bool:
        """Return whether the template may read a variable, or a key of a message or part, beyond those known."""
        if self._is_own:
            return name in _OWN_VARIABLES
        return re.search(rf"(?<!\w){re.escape(str(name))}(?!\w)", self._text) is not None


def _check_arguments(
    chat_template: str | None,
    template: "_Template",
    tokenize: bool,
    processor_kwargs: Mapping[str, Any] | None,
    kwargs: Mapping[str, Any],
) -> None:
    """Check the arguments of `JanusProProcessor.apply_chat_template` apart from the conversations.

    Args:
        chat_template: The caller's argument.
        template: The template that will be rendered.
        tokenize: The caller's argument.
        processor_kwargs: The caller's argument.
        kwargs: The caller's other arguments.

    Raises:
        TypeError: If an argument is of the wrong type, or of a name that neither they nor the template know.
        ValueError: If there are not two roles, or an argument cannot be followed.
    """
    if chat_template is not None and not isinstance(chat_template, str):
        raise TypeError(f"`chat_template` must be a Jinja template or None, got {describe(chat_template)}: omit it.")
    check_flag(tokenize, "tokenize")
    for name in ("add_generation_prompt", "return_dict", "return_assistant_tokens_mask"):
        check_flag(kwargs.get(name, False), name)
    if processor_kwargs is not None and not isinstance(processor_kwargs, Mapping):
        raise TypeError(
            "`processor_kwargs` must be a dict of arguments of the processor's call, got "
            f"{describe(processor_kwargs)}: write {{'padding': False}}."
        )
    if not isinstance(prompt := kwargs.get("system_prompt"), str | None):
        raise TypeError(f"`system_prompt` must be a string or None, got {describe(prompt)}: write '' for none.")
    if (roles := kwargs.get("roles")) is not None and (
        not isinstance(roles, (list, tuple)) or len(roles) != 2 or not all(isinstance(role, str) for role in roles)
    ):
        raise ValueError(
            f"`roles` must be the two names of user and assistant, got {describe(roles)}: write ('User', 'Assistant')."
        )
    if kwargs.get("close_turns", "by_role") not in ("by_role", "by_number"):
        raise ValueError(
            f"`close_turns` must be 'by_role' or 'by_number', got {describe(kwargs['close_turns'])}: choose one."
        )
    given = {name: value for name, value in kwargs.items() if value not in (None, False, [], {})}
    for name, advice in {**VARIABLES, **REFUSED}.items():
        if name in given and (name in REFUSED or not template.reads(name)):
            raise ValueError(f"`{name}` must be left out, got it, but the chat template does not read it: {advice}.")
    # A template may have variables of its own.
    known = PASSED_ON | VARIABLES.keys() | REFUSED.keys() | _CALL_KEYWORDS
    if unknown := sorted(name for name in kwargs if name not in known and not template.reads(name)):
        raise TypeError(
            f"`apply_chat_template` must receive arguments that it or the template knows, got {', '.join(unknown)}: "
            "check the spelling."
        )
    if not tokenize:
        settings = {"processor_kwargs": processor_kwargs, **given}
        idle = [name for name in _ONLY_WITH_IDS if settings.get(name) not in (None, {}, "auto")]
        if idle:
            raise ValueError(f"`tokenize` must be True with `{idle[0]}`, which a string cannot follow: set it.")


def _check_keys(conversation: Sequence[Mapping[str, Any]], template: "_Template") -> None:
    """Raise a ValueError if a message or a part holds something that would be left out of the prompt.

    A key whose value is None or empty holds nothing, and a template may read further keys.

    Args:
        conversation: Messages that `check_conversation` has accepted.
        template: The template that will be rendered.
    """

    def check(holder: Mapping[str, Any], known: frozenset[str], name: str) -> None:
        unread = [
            key
            for key, value in holder.items()
            if key not in known and not template.reads(key) and value is not None and value != [] and value != {}
        ]
        if unread:
            raise ValueError(
                f"{name} must hold what the chat template reads, got {unread[0]!r} too: leave it out, write it into "
                "the text, or pass a chat_template that reads it."
            )

    for index, message in enumerate(conversation):
        check(message, _MESSAGE_KEYS, f"Message {index}")
        for part in [] if isinstance(message["content"], str) else message["content"]:
            name = f"A part of message {index}"
            check(part, _PART_KEYS["text" if part["type"] == "text" else "image"], name)
            own = [key for key in IMAGE_KEYS if part.get(key) is not None]
            if part["type"] != "text" and len(own) > 1:
                raise ValueError(f"{name} must name its image once, got {own}: leave one of them.")
            nested = part.get("image_url")
            if isinstance(nested, Mapping) and part["type"] != "text":
                detail = nested.get("detail")
                check({**nested, "detail": None if detail == "auto" else detail}, frozenset({"url"}), name)


__all__ = ["ConversationRendering"]
