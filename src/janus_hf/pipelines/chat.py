"""Asking about pictures: the answering half of the pipeline."""

from typing import Any

import torch
from transformers.cache_utils import DynamicCache


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

    @torch.no_grad()
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

    @torch.no_grad()
    def _answer(
        self,
        conversations: list[list[dict[str, Any]]],
        *,
        max_new_tokens: int = 512,
        system_prompt: str | None = "default",
        **generate_kwargs: Any,
    ) -> list[str]:
        """Continue conversations that show the same pictures; what they begin with alike is run once."""
        template: dict[str, Any] = {} if system_prompt == "default" else {"system_prompt": system_prompt}
        self._wake_model()
        encoded = [
            self.processor.apply_chat_template(
                messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt", **template
            ).to(self._execution_device)
            for messages in conversations
        ]
        rows = [inputs["input_ids"][0] for inputs in encoded]
        length, limit = max(map(len, rows)), self.model.config.text_config.max_position_embeddings
        if length >= limit:
            raise ValueError(
                f"The conversation takes {length} tokens and the model's context holds {limit}: there is no room for "
                "an answer. Leave out earlier turns or pictures."
            )
        inputs: dict[str, Any] = dict(encoded[0])
        if len(rows) > 1:
            _check_shareable(generate_kwargs)
            inputs = self._share_beginning(rows, inputs.get("pixel_values"))
        output = self.model.generate(
            **inputs,
            max_new_tokens=min(max_new_tokens, limit - length),
            eos_token_id=self.processor.eos_token_id,
            pad_token_id=self.processor.pad_token_id,
            **{"do_sample": False} | generate_kwargs,
        )
        self.maybe_free_model_hooks()
        answers = output[:, inputs["input_ids"].shape[1] :]
        return [self.processor.decode(answer, skip_special_tokens=True).strip() for answer in answers]

    def _share_beginning(self, rows: list[torch.Tensor], pixel_values: torch.Tensor | None) -> dict[str, Any]:
        """Run what the rows begin with, pictures and all, once; the rest is left to `generate`.

        Rows become beginning, padding, rest. Padding is masked, and positions are counted without it.
        """
        shared = min(map(len, rows)) - 1
        differs = torch.stack([row[:shared] != rows[0][:shared] for row in rows]).any(dim=0)
        if differs.any():
            shared = int(differs.int().argmax())
        cache = DynamicCache(config=self.model.config.text_config)
        self.model.model(
            input_ids=rows[0][None, :shared], pixel_values=pixel_values, past_key_values=cache, use_cache=True
        )
        cache.batch_repeat_interleave(len(rows))
        length = max(map(len, rows))
        ids = rows[0].new_full((len(rows), length), self.processor.pad_token_id)
        mask = torch.zeros_like(ids)
        for number, row in enumerate(rows):
            rest = slice(length - (len(row) - shared), length)
            ids[number, :shared], mask[number, :shared] = row[:shared], 1
            ids[number, rest], mask[number, rest] = row[shared:], 1
        return {"input_ids": ids, "attention_mask": mask, "past_key_values": cache}


def _check_shareable(generate_kwargs: dict[str, Any]) -> None:
    """Several questions start from a cache that is already filled."""
    alone = {"num_beams": 1, "num_return_sequences": 1, "use_cache": True, "cache_implementation": None}
    given = [name for name, only in alone.items() if generate_kwargs.get(name, only) not in (only, None)]
    if generate_kwargs.get("streamer") is not None:
        given.append("streamer")
    if given:
        raise ValueError(f"A list of questions cannot be answered with {', '.join(given)}: ask one at a time.")


__all__ = ["ChatPipelineMixin"]
