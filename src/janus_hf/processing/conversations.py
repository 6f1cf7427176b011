"""`ConversationRendering`, the method of the processor that renders conversations with the chat template."""

import inspect
from collections.abc import Collection, Mapping
from typing import Any, Literal, overload

import torch
from transformers import BatchFeature, ProcessorMixin

from ..arguments import check_flag, describe
from .prompts import check_conversation, conversation_images


# Names of the arguments of transformers' `apply_chat_template`; all other ones are variables of the template.
_ARGUMENTS = frozenset(inspect.signature(ProcessorMixin.apply_chat_template).parameters)


class ConversationRendering(ProcessorMixin):
    """Base class of `JanusProProcessor` with `apply_chat_template`."""

    roles: tuple[str, str]
    image_token: str

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
            kwargs: `add_generation_prompt`, `continue_final_message`, `return_dict`, `return_tensors`, ... as in
                transformers. `roles` and `system_prompt` replace the processor's for this call; a `system_prompt` of
                `None` or "" means none. A system message in the conversation takes precedence over both system
                prompts.

        Raises:
            FileNotFoundError: If an image is given as a path that does not exist.
            TypeError: If an argument is of the wrong type, or is one that neither transformers nor the template uses.
            ValueError: If a conversation is malformed, or its numbers of placeholders and images differ.
        """
        known = {*_ARGUMENTS, *inspect.signature(self.__call__).parameters}
        _check_arguments(chat_template, chat_template or self.chat_template, tokenize, processor_kwargs, kwargs, known)
        is_list = isinstance(conversation, (list, tuple))
        is_batch = is_list and any(isinstance(one, (list, tuple)) for one in conversation)
        conversations: list[Any] = list(conversation) if is_batch else [conversation]
        for one in conversations:
            check_conversation(one, roles=kwargs.get("roles") or self.roles)
        options = dict(processor_kwargs or {})
        if tokenize and "images" not in options:
            images = [conversation_images(one, image_token=self.image_token) for one in conversations]
            options["images"] = images if is_batch else images[0]
        return super().apply_chat_template(
            conversation, chat_template, tokenize=tokenize, processor_kwargs=options, **kwargs
        )


def _check_arguments(
    chat_template: str | None,
    template: str | dict[str, str],
    tokenize: bool,
    processor_kwargs: Mapping[str, Any] | None,
    kwargs: Mapping[str, Any],
    known: Collection[str],
) -> None:
    """Check the arguments of `JanusProProcessor.apply_chat_template` apart from the conversations.

    Args:
        chat_template: The caller's argument.
        template: The template or templates that will be rendered.
        tokenize: The caller's argument.
        processor_kwargs: The caller's argument.
        kwargs: The caller's other arguments.
        known: Names of the arguments that transformers and the processor's call take.

    Raises:
        TypeError: If an argument is of the wrong type, or of a name that neither they nor the template know.
        ValueError: If there are not two roles.
    """
    if chat_template is not None and not isinstance(chat_template, str):
        raise TypeError(f"`chat_template` must be a Jinja template or None, got {describe(chat_template)}: omit it.")
    check_flag(tokenize, "tokenize")
    for name in ("add_generation_prompt", "return_dict"):
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
    # A template may have variables of its own.
    if unknown := sorted(name for name in kwargs if name not in known and name not in str(template)):
        raise TypeError(
            f"`apply_chat_template` must receive arguments that it or the template knows, got {', '.join(unknown)}: "
            "check the spelling."
        )


__all__ = ["ConversationRendering"]
