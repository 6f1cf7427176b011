"""The pipeline methods `ask` and `chat`, which answer questions about images."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ..answering import Conversation, answer
from .offloading import bring_in


if TYPE_CHECKING:
    from transformers.generation.streamers import BaseStreamer

    from ..modeling import JanusProForConditionalGeneration
    from ..processing import JanusProProcessor
    from ..processing.pictures import ImageSource


class ChatPipelineMixin:
    """Add the methods `ask` and `chat` to a diffusers pipeline that has the components `model` and `processor`."""

    model: "JanusProForConditionalGeneration"
    processor: "JanusProProcessor"
    maybe_free_model_hooks: Callable[[], None]

    def ask(
        self, image: "ImageSource | Sequence[ImageSource]", question: str | list[str], **kwargs: Any
    ) -> str | list[str]:
        """Answer a question about one or several images, or a list of questions about the same images.

        A list of questions is answered as one batch. Each answer is the same as if its question were asked alone. The
        images are encoded only once, and the model processes the prefix that all prompts share only once.

        Args:
            image: PIL image, path, URL or array; or a list of them.
            question: Plain text, or a list of plain texts.
            kwargs: Keyword arguments of `chat`, for example `max_new_tokens`.

        Returns:
            The answer; for a list of questions a list with one answer per question.

        Raises:
            ValueError: If images and question fill the model's context, or an image cannot be read. For a list of
                questions also if `kwargs` asks for a streamer, beam search, several sequences or another cache.
        """
        images = image if isinstance(image, (list, tuple)) else [image]
        shown = [{"type": "image", "image": one} for one in images]

        def messages(text: str) -> Conversation:
            return [{"role": "user", "content": [*shown, {"type": "text", "text": text}]}]

        if isinstance(question, str):
            return self.chat(messages(question), **kwargs)
        if not question:
            return []
        return self._answer([messages(text) for text in question], **kwargs)

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
                of deepseek-ai/Janus does.
            streamer: A transformers streamer, which shows the answer while it is generated.
            system_prompt: "default" uses the processor's system prompt; None or "" uses none.
            generate_kwargs: Further arguments of `model.generate`.

        Returns:
            The assistant's answer, without special tokens.

        Raises:
            ValueError: If the conversation fills the model's context, or a message or an image cannot be read.
        """
        return self._answer(
            [messages],
            max_new_tokens=max_new_tokens,
            do_sample=do_sample,
            streamer=streamer,
            system_prompt=system_prompt,
            **generate_kwargs,
        )[0]

    def _answer(self, conversations: list[Conversation], **kwargs: Any) -> list[str]:
        """Answer a batch of conversations about the same images; return one answer per conversation.

        If the model is offloaded, it is moved to its device and back. `kwargs` are arguments of `answering.answer`.
        """
        device = bring_in(self)
        answers = answer(self.model, self.processor, conversations, share_prefix=True, device=device, **kwargs)
        self.maybe_free_model_hooks()
        return answers


__all__ = ["ChatPipelineMixin"]
