"""Asking about pictures: the answering half of the pipeline."""

from typing import Any

from ..answering import Conversation, answer


class ChatPipelineMixin:
    """`ask` and `chat` for a pipeline with `model` and `processor`."""

    model: Any
    processor: Any
    _execution_device: Any
    _wake_model: Any
    maybe_free_model_hooks: Any

    def ask(self, image: Any, question: str | list[str], **kwargs: Any) -> Any:
        """Answer a question about a picture (or several), or a list of questions about the same.

        A list is answered as one batch, each question by itself; the picture is encoded and read once.

        Args:
            image: PIL image, path, URL or array; or a list of them.
            question: Plain text, or a list.
            kwargs: See `chat`.

        Returns:
            The answer, a string; of a list of questions a list.
        """
        images = image if isinstance(image, (list, tuple)) else [image]
        pictures = [{"type": "image", "image": picture} for picture in images]

        def messages(text: str) -> list[dict[str, Any]]:
            return [{"role": "user", "content": [*pictures, {"type": "text", "text": text}]}]

        if isinstance(question, str):
            return self.chat(messages(question), **kwargs)
        if not question:
            return []
        return self._answer([messages(text) for text in question], **kwargs)

    def chat(
        self,
        messages: list[dict[str, Any]],
        *,
        max_new_tokens: int = 512,
        do_sample: bool = False,
        streamer: Any = None,
        system_prompt: str | None = "default",
        **generate_kwargs: Any,
    ) -> str:
        """Continue a conversation about any number of pictures.

        Args:
            messages: Standard chat messages; `content` is a string or a list of text and image parts.
            max_new_tokens: Upper bound on the answer's length; the context's end is another.
            do_sample: Greedy by default, like the original's demo.
            streamer: A transformers streamer, to show the answer as it is written.
            system_prompt: "default" is the processor's own; None or "" leaves it out.
            generate_kwargs: Everything else `generate` takes.

        Returns:
            The assistant's answer, without special tokens.

        Raises:
            ValueError: If the conversation fills the model's context.
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
        """Continue conversations that show the same images; their common prefix is run once."""
        self._wake_model()
        answers = answer(
            self.model,
            self.processor,
            conversations,
            share_prefix=True,
            device=self._execution_device,
            **kwargs,
        )
        self.maybe_free_model_hooks()
        return answers


__all__ = ["ChatPipelineMixin"]
