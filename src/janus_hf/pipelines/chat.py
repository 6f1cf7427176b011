"""`ask` and `chat`: the methods of the pipeline that answer questions about images."""

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
    """Add `ask` and `chat` to a diffusers pipeline with the components `model` and `processor`."""

    model: "JanusProForConditionalGeneration"
    processor: "JanusProProcessor"
    maybe_free_model_hooks: Callable[[], None]

    def ask(
        self, image: "ImageSource | Sequence[ImageSource]", question: str | list[str], **kwargs: Any
    ) -> str | list[str]:
        """Answer a question about one or several images, or a list of questions about the same images.

        A list of questions is answered as one batch and every answer is that of the question alone. The images are
        encoded once, and the model reads the beginning that all prompts share once.

        Args:
            image: PIL image, path, URL or array; or a list of them.
            question: Plain text, or a list.
            kwargs: See `chat`.

        Returns:
            The answer; for a list of questions a list of answers.

        Raises:
            ValueError: As `chat`; and for a list of questions if `kwargs` names a streamer, beams or another cache.
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
        """Continue a conversation about any number of images.

        Args:
            messages: Standard chat messages; `content` is a string or a list of text and image parts.
            max_new_tokens: Upper bound on the tokens of the answer, which also ends where the context is full.
            do_sample: Sample the answer; the default takes the likeliest token each time, as the original's demo does.
            streamer: A transformers streamer, which shows the answer while it is generated.
            system_prompt: "default" uses the processor's own; None or "" uses none.
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
        """Answer conversations that show the same images."""
        device = bring_in(self)
        answers = answer(self.model, self.processor, conversations, share_prefix=True, device=device, **kwargs)
        self.maybe_free_model_hooks()
        return answers


__all__ = ["ChatPipelineMixin"]
