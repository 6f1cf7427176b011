"""The pipeline methods `ask` and `chat`, which answer questions about images."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, overload

from ..answering import Conversation, answer
from ..arguments import check_flag, describe
from ..processing.batching import check_texts
from ..processing.pictures import flatten_images
from ..processing.prompts import check_conversation
from .offloading import bring_in


if TYPE_CHECKING:
    from transformers.generation.streamers import BaseStreamer

    from ..modeling import JanusProForConditionalGeneration
    from ..processing import JanusProProcessor
    from ..processing.pictures import ImageSource


# Arguments of `generate` that have no effect on the most likely tokens; transformers would only warn.
_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "typical_p")


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
        max_new_tokens: int = 512,
        do_sample: bool = False,
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
        max_new_tokens: int = 512,
        do_sample: bool = False,
        streamer: "BaseStreamer | None" = None,
        system_prompt: str | None = "default",
        **generate_kwargs: Any,
    ) -> list[str]: ...

    def ask(
        self,
        image: "ImageSource | Sequence[ImageSource]",
        question: str | list[str],
        *,
        max_new_tokens: int = 512,
        do_sample: bool = False,
        streamer: "BaseStreamer | None" = None,
        system_prompt: str | None = "default",
        **generate_kwargs: Any,
    ) -> str | list[str]:
        """Answer a question about one or several images, or a list of questions about the same images.

        A list of questions is answered as one batch. Each answer is the same as if its question were asked alone. The
        images are encoded only once, and the model processes the prefix that all prompts share only once.

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
        """
        questions = [] if isinstance(question, (list, tuple)) and not question else check_texts(question, "question")
        images = flatten_images(image, "image")
        if isinstance(image, (list, tuple)) and any(one is None for one in image):
            raise TypeError("`image` must hold images only, got None among them: leave it out of the list.")
        if not images:
            raise ValueError("`image` must hold at least one image, got none: use `chat` for questions without one.")
        shown = [{"type": "image", "image": one} for one in images]
        conversations: list[Conversation] = [
            [{"role": "user", "content": [*shown, {"type": "text", "text": text}]}] for text in questions
        ]
        settings: dict[str, Any] = {
            "max_new_tokens": max_new_tokens,
            "do_sample": do_sample,
            "streamer": streamer,
            "system_prompt": system_prompt,
            **generate_kwargs,
        }
        if isinstance(question, str):
            return self.chat(conversations[0], **settings)
        return self._answer(conversations, **settings)

    def chat(
        self,
        messages: Conversation,
        *,
        max_new_tokens: int = 512,
        do_sample: bool = False,
        streamer: "BaseStreamer | None" = None,
        system_prompt: str | None = "default",
        **generate_kwargs: Any,
    ) -> str:
        """Answer the last message of a conversation, which may contain any number of images.

        Args:
            messages: Chat messages as in transformers, with the keys `role` and `content`; `content` is a string or a
                list of text and image parts.
            max_new_tokens: Upper bound on the number of tokens of the answer. The answer also ends where the model's
                context is full.
            do_sample: Whether to sample the answer. The default takes the most likely token at every step, as the demo
                of deepseek-ai/Janus does; `temperature` and the like are refused then.
            streamer: A transformers streamer, which shows the answer while it is generated.
            system_prompt: "default" uses the processor's system prompt; None or "" uses none.
            generate_kwargs: `parse_special_tokens`, whether special tokens that stand in a message become special
                tokens (None, the default, uses the processor's setting), and further arguments of `model.generate`.

        Returns:
            The assistant's answer, without special tokens.

        Raises:
            FileNotFoundError: If an image is given as a path that does not exist.
            TypeError: If an argument is of the wrong type.
            ValueError: If the conversation fills the model's context, or a message or an image cannot be read.
        """
        check_conversation(messages, roles=self.processor.roles, name="messages")
        return self._answer(
            [messages],
            max_new_tokens=max_new_tokens,
            do_sample=do_sample,
            streamer=streamer,
            system_prompt=system_prompt,
            **generate_kwargs,
        )[0]

    def _answer(
        self, conversations: list[Conversation], *, do_sample: bool, streamer: "BaseStreamer | None", **kwargs: Any
    ) -> list[str]:
        """Answer a batch of conversations about the same images; return one answer per conversation.

        If the model is offloaded, it is moved to its device and back. `kwargs` are arguments of `answering.answer`.
        """
        sample = check_flag(do_sample, "do_sample")
        if not sample and (idle := [name for name in _SAMPLING if kwargs.get(name) is not None]):
            raise ValueError(
                f"`do_sample` must be True with {', '.join(idle)}, which only sampling uses, got False: set it, or "
                "leave them out."
            )
        is_class = isinstance(streamer, type)
        if streamer is not None and (is_class or not (hasattr(streamer, "put") and hasattr(streamer, "end"))):
            raise TypeError(
                f"`streamer` must be a streamer of transformers or None, got {describe(streamer)}: write "
                "TextStreamer(pipe.processor.tokenizer)."
            )
        if not conversations:
            return []
        device = bring_in(self)
        answers = answer(
            self.model,
            self.processor,
            conversations,
            share_prefix=True,
            device=device,
            do_sample=sample,
            streamer=streamer,
            **kwargs,
        )
        self.maybe_free_model_hooks()
        return answers


__all__ = ["ChatPipelineMixin"]
