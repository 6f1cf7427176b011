"""The pipeline methods `ask` and `chat`, which answer questions about images."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, overload

from ..answering import Conversation, answer
from ..arguments import describe
from ..generation.text.text_values import VALUES
from ..processing.batching import check_texts
from ..processing.pictures import flatten_images
from ..processing.prompts import check_conversation
from .diffusers_names import refuse_arguments
from .offloading import move_to_device


if TYPE_CHECKING:
    from transformers.generation.streamers import BaseStreamer

    from ..modeling import JanusProForConditionalGeneration
    from ..processing import JanusProProcessor
    from ..processing.pictures import ImageSource


# Arguments of `answer` that `ask` and `chat` set themselves.
_SET = {
    "share_prefix": "a list of questions shares its images and the beginning of its prompts always",
    "device": "call `pipe.to(device)`",
    "dtype": "call `pipe.to(dtype)`, or load the pipeline with it",
    "conversations": "pass `messages`, which may be a list of conversations",
    "model": "it is that of the pipeline",
    "processor": "it is that of the pipeline",
}


class ChatPipelineMixin:
    """Add the methods `ask` and `chat` to a diffusers pipeline that has the components `model` and `processor`."""

    model: "JanusProForConditionalGeneration"
    processor: "JanusProProcessor"
    maybe_free_model_hooks: Callable[[], None]

    @overload
    def ask(
        self,
        image: "ImageSource | Sequence[ImageSource]",
        question: str,
        *,
        max_new_tokens: int | None = None,
        do_sample: bool | None = None,
        streamer: "BaseStreamer | None" = None,
        system_prompt: str | None = "default",
        **generate_kwargs: Any,
    ) -> str: ...

    @overload
    def ask(
        self,
        image: "ImageSource | Sequence[ImageSource]",
        question: list[str],
        *,
        max_new_tokens: int | None = None,
        do_sample: bool | None = None,
        streamer: "BaseStreamer | None" = None,
        system_prompt: str | None = "default",
        **generate_kwargs: Any,
    ) -> list[str]: ...

    def ask(
        self,
        image: "ImageSource | Sequence[ImageSource]",
        question: str | list[str],
        *,
        max_new_tokens: int | None = None,
        do_sample: bool | None = None,
        streamer: "BaseStreamer | None" = None,
        system_prompt: str | None = "default",
        **generate_kwargs: Any,
    ) -> str | list[str]:
        """Answer a question about one or several images, or a list of questions about the same images.

        A list of questions is answered as one batch; each answer is the same as if its question were asked alone. The
        images, and the prefix that all prompts share, are processed only once.

        Args:
            image: PIL image, path, URL or array; a list of them; or a 4-D array or tensor of images.
            question: Plain text, or a list of plain texts.
            max_new_tokens, do_sample, streamer, system_prompt, generate_kwargs: As in `chat`.

        Returns:
            The answer; for a list of questions a list with one answer per question.

        Raises:
            FileNotFoundError: If an image is given as a path that does not exist.
            TypeError: If an argument is of the wrong type.
            ValueError: If there is no image, images and question fill the model's context, or an image cannot be read.
                For a list of questions also if the arguments ask for a streamer, beam search, several sequences or
                another cache.
            FloatingPointError: If the text logits of a float16 model are NaN.
        """
        questions = [] if isinstance(question, (list, tuple)) and not question else check_texts(question, "question")
        images = flatten_images(image, "image")
        if isinstance(image, (list, tuple)) and any(one is None for one in image):
            raise TypeError("`image` must hold images only, got None among them: leave it out of the list.")
        nested = isinstance(image, (list, tuple)) and any(isinstance(one, (list, tuple)) for one in image)
        if nested and len(questions) > 1:
            raise ValueError(
                "`image` must be one image or a flat list for several questions, which are all about all images, got "
                "lists in a list: call `chat` with a list of conversations to ask about other images each."
            )
        if not images:
            raise ValueError("`image` must hold at least one image, got none: use `chat` for questions without one.")
        shown = [{"type": "image", "image": one} for one in images]
        conversations: list[Conversation] = [
            [{"role": "user", "content": [*shown, {"type": "text", "text": text}]}] for text in questions
        ]
        settings: dict[str, Any] = {
            "max_new_tokens": max_new_tokens,
            "do_sample": do_sample,
            "system_prompt": system_prompt,
            **generate_kwargs,
        }
        if isinstance(question, str):
            return self.chat(conversations[0], streamer=streamer, **settings)
        return self._answer(conversations, True, streamer, **settings)

    @overload
    def chat(
        self,
        messages: Conversation,
        *,
        max_new_tokens: int | None = None,
        do_sample: bool | None = None,
        streamer: "BaseStreamer | None" = None,
        system_prompt: str | None = "default",
        **generate_kwargs: Any,
    ) -> str: ...

    @overload
    def chat(
        self,
        messages: list[Conversation],
        *,
        max_new_tokens: int | None = None,
        do_sample: bool | None = None,
        streamer: "BaseStreamer | None" = None,
        system_prompt: str | None = "default",
        **generate_kwargs: Any,
    ) -> list[str]: ...

    def chat(
        self,
        messages: Conversation | list[Conversation],
        *,
        max_new_tokens: int | None = None,
        do_sample: bool | None = None,
        streamer: "BaseStreamer | None" = None,
        system_prompt: str | None = "default",
        **generate_kwargs: Any,
    ) -> str | list[str]:
        """Answer the last message of a conversation, or of each of several conversations, in one batch.

        Args:
            messages: Chat messages as in transformers, with the keys `role` and `content`; `content` is a string or a
                list of text and image parts, with any number of images. A list of such lists is several
                conversations, and each answer is the same as if its conversation were alone.
            max_new_tokens: Upper bound on the number of tokens of the answer; None is that of `generation_config`, or
                512. The answer also ends where the model's context is full.
            do_sample: Whether to sample the answer; None is as `generation_config` says, or False. False takes the
                most likely token at every step, as the demo of deepseek-ai/Janus does, and refuses arguments that only
                sampling uses, such as `temperature`.
            streamer: A transformers streamer, which receives the tokens of the answer while it is generated.
            system_prompt: "default" uses the processor's system prompt; None or "" uses none.
            generate_kwargs: `parse_special_tokens`, whether special tokens that stand in a message become special
                tokens (None, the default, uses the processor's setting), and further arguments of `model.generate`. A
                `generation_config` decides where no single argument does. What could not change a text answer
                (`num_return_sequences`, `input_ids`, `output_scores`, ...) is refused by name.

        Returns:
            The assistant's answer, without special tokens; for several conversations a list with one answer to each.

        Raises:
            FileNotFoundError: If an image is given as a path that does not exist.
            TypeError: If an argument is of the wrong type.
            ValueError: If the conversation fills the model's context, or a message or an image cannot be read.
            FloatingPointError: If the text logits of a float16 model are NaN.
        """
        several = isinstance(messages, (list, tuple)) and any(isinstance(one, (list, tuple)) for one in messages)
        conversations: list[Any] = list(messages) if several else [messages]  # Any: checked in the next lines
        for number, one in enumerate(conversations):
            check_conversation(one, roles=self.processor.roles, name=f"messages[{number}]" if several else "messages")
        answers = self._answer(
            conversations,
            False,
            streamer,
            max_new_tokens=max_new_tokens,
            do_sample=do_sample,
            system_prompt=system_prompt,
            **generate_kwargs,
        )
        return answers if several else answers[0]

    # Positional, so that no name of a keyword argument is taken.
    def _answer(
        self, conversations: list[Conversation], shares: bool, streamer: "BaseStreamer | None", /, **kwargs: Any
    ) -> list[str]:
        """Answer a batch of conversations; return one answer per conversation.

        An offloaded model is moved to its device first and back afterwards. With `shares`, the prefix that all prompts
        share runs once. `kwargs` are arguments of `answering.answer`.

        Raises:
            TypeError: If `streamer` is of the wrong type, or an argument is one that this method sets.
            ValueError: If there is a streamer for several conversations.
        """
        refuse_arguments({name: value for name, value in kwargs.items() if name in _SET}, _SET, "ask` and `chat")
        if streamer is not None:
            VALUES["streamer"].check(streamer, "streamer")
        if not conversations:
            return []
        if streamer is not None and len(conversations) > 1:
            raise ValueError(
                f"`streamer` must be None with several conversations or questions, got {describe(streamer)} and "
                f"{len(conversations)}: ask one at a time."
            )
        device = move_to_device(self)
        kwargs |= {"device": device, "share_prefix": shares, "streamer": streamer}
        answers = answer(self.model, self.processor, conversations, **kwargs)
        self.maybe_free_model_hooks()
        return answers


__all__ = ["ChatPipelineMixin"]
