"""The function `answer`, which answers conversations in batches: it renders the chat template and calls `generate`.

The pipeline, the evaluation, samples during training and the adapters for other evaluation harnesses all call
`answer`, so the same conversation gets the same answer everywhere, and no answer runs past the end of the model's
context.
"""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel, StoppingCriteriaList
from transformers.cache_utils import DynamicCache

from .arguments import check_integer, describe
from .errors import not_finite
from .generation.context import EndOfContext, context_length
from .protocols import ChatProcessor, HasImageTokens
from .tokenizer import check_text_ids


Conversation = list[dict[str, Any]]

# Arguments of `generate` that follow from the conversations, or change what `generate` returns.
_SETTLED = (
    "inputs",
    "input_ids",
    "inputs_embeds",
    "attention_mask",
    "position_ids",
    "pixel_values",
    "past_key_values",
    "return_dict_in_generate",
)


@torch.no_grad()
def answer(
    model: HasImageTokens | PreTrainedModel,
    processor: ChatProcessor,
    conversations: Sequence[Conversation],
    *,
    max_new_tokens: int = 512,
    system_prompt: str | None = "default",
    roles: Sequence[str] | None = None,
    parse_special_tokens: bool | None = None,
    share_prefix: bool = False,
    device: torch.device | None = None,
    dtype: torch.dtype | None = None,
    **generate_kwargs: Any,
) -> list[str]:
    """Answer a batch of conversations. An answer does not depend on the other conversations of the batch.

    Args:
        model: A Janus model, or any transformers model that generates text from its processor's batches.
        processor: The model's processor.
        conversations: Lists of chat messages, each with any number of images.
        max_new_tokens: Upper bound on the number of tokens of an answer. An answer also ends where the model's context
            is full.
        system_prompt: Text of the system prompt; "default" uses the processor's own, None or "" uses none.
        roles: Names of user and assistant in the prompt; None uses those of the processor.
        parse_special_tokens: Whether special tokens that stand in a message become special tokens; None uses the
            setting of the processor.
        share_prefix: Run the longest common prefix of the conversations once, images included, and batch only the
            rest. The conversations must show the same images. For Janus models only.
        device: Device of the inputs; None uses the model's.
        dtype: Dtype to which pixel values are converted, for models that do not convert them themselves; None keeps
            theirs.
        generate_kwargs: Further arguments of `model.generate`. The default is greedy decoding.

    Returns:
        One string per conversation, without special tokens and surrounding white space.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If a conversation leaves no space for an answer in the model's context, images and placeholders do
            not match, or an argument is incompatible with `share_prefix`.
        FloatingPointError: If the text logits of a float16 model are NaN.
    """
    max_new_tokens = check_integer(max_new_tokens, "max_new_tokens", "give the largest number of tokens of an answer")
    _check_generate_arguments(generate_kwargs)
    # Arguments that only JanusProProcessor accepts are left out unless the caller gives them.
    template: dict[str, Any] = {} if system_prompt == "default" else {"system_prompt": system_prompt}
    if roles is not None:
        template["roles"] = list(roles)
    if parse_special_tokens is not None:
        template["parse_special_tokens"] = parse_special_tokens
    shares_prefix = share_prefix and len(conversations) > 1
    if shares_prefix:
        _check_shareable(generate_kwargs)
    batches = [
        processor.apply_chat_template(
            batch,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True, "padding_side": "left"},
            **template,
        ).to(*[target for target in (device or model.device, dtype) if target is not None])
        # A shared prefix must not contain padding, so conversations that share one are tokenized one by one.
        for batch in ([[one] for one in conversations] if shares_prefix else [list(conversations)])
    ]
    num_text_ids = getattr(model.config.get_text_config(), "vocab_size", None)
    for batch in batches:
        if num_text_ids is not None:
            check_text_ids(batch["input_ids"], num_text_ids)
    lengths = [int(length) for batch in batches for length in batch["attention_mask"].sum(dim=1)]
    room = [_room(model, index, length, max_new_tokens) for index, length in enumerate(lengths)]
    # JanusProProcessor has the id of the token that ends an answer; other models have it in their generation_config.
    stop = {name: getattr(processor, name) for name in ("eos_token_id", "pad_token_id") if hasattr(processor, name)}
    inputs: dict[str, Any] = dict(batches[0])
    if shares_prefix:
        rows = [batch["input_ids"][0] for batch in batches]
        inputs = _run_prefix(model, rows, inputs.get("pixel_values"), stop["pad_token_id"])
    if model.dtype == torch.float16:  # other dtypes do not overflow
        guard = _NaNGuard(model, batches[0].get("pixel_values"))
        given = generate_kwargs.pop("logits_processor", None) or []
        generate_kwargs["logits_processor"] = LogitsProcessorList([guard, *given])
    if min(room) < max(room):
        ends = EndOfContext(inputs["input_ids"].shape[1], room)
        generate_kwargs["stopping_criteria"] = StoppingCriteriaList(
            [ends, *(generate_kwargs.get("stopping_criteria") or [])]
        )
    output = model.generate(**inputs, **stop | {"do_sample": False} | generate_kwargs, max_new_tokens=max(room))
    output = output[:: len(output) // len(room)]  # with num_return_sequences, keep the first answer to each
    # Rows that have ended are padded until the last one ends.
    new = output[:, inputs["input_ids"].shape[1] :]
    return [processor.decode(row[:end], skip_special_tokens=True).strip() for row, end in zip(new, room, strict=True)]


class _NaNGuard(LogitsProcessor):
    """Raise an error where text logits are NaN, which would otherwise become an arbitrary answer.

    Args:
        model: The model that answers.
        pixel_values: The images of the batch, or None.
    """

    def __init__(self, model: HasImageTokens | PreTrainedModel, pixel_values: torch.Tensor | None) -> None:
        self.model, self.pixel_values = model, pixel_values

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return the logits `(B, V)` unchanged, or raise a FloatingPointError that names the part of the model."""
        if not scores.isnan().any():
            return scores
        part = "the language model"
        if self.pixel_values is not None and hasattr(self.model, "get_image_features"):
            features = self.model.get_image_features(self.pixel_values).pooler_output
            part = part if features.isfinite().all() else "the vision tower, or its aligner"
        raise not_finite(
            "The model's text logits",
            part,
            self.model.dtype,
            "load the model with dtype='bfloat16', or with dtype='float32' where the device has no bfloat16",
        )


def _check_generate_arguments(generate_kwargs: dict[str, Any]) -> None:
    """Raise an error for arguments of `generate` whose wrong values transformers does not name.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If it is too small, or is one that follows from the conversations or decides what is returned.
    """
    for name in ("num_beams", "num_return_sequences"):
        if generate_kwargs.get(name) is not None:
            check_integer(generate_kwargs[name], name, "give 1 or more, or leave it out")
    kinds = {
        "generation_config": GenerationConfig,
        "assistant_model": PreTrainedModel,
        "logits_processor": list,
        "stopping_criteria": list,
    }
    for name, kind in kinds.items():
        value = generate_kwargs.get(name)
        if value is not None and not isinstance(value, kind):
            raise TypeError(f"`{name}` must be a {kind.__name__} or None, got {describe(value)}: convert it.")
    settled = [name for name in _SETTLED if (value := generate_kwargs.get(name)) is not None and value is not False]
    if settled:
        raise ValueError(
            f"`{settled[0]}` must be left out, got a value: the answer is a string, made from messages and images. "
            "Call `model.generate` to set it."
        )


def _room(model: HasImageTokens | PreTrainedModel, index: int, length: int, max_new_tokens: int) -> int:
    """Return the largest number of new tokens, at most `max_new_tokens`, that fit into the model's context.

    Args:
        model: The model, whose config gives the size of the context.
        index: Number of the conversation, for the error message.
        length: Number of tokens of the conversation.
        max_new_tokens: Upper bound on the result.

    Raises:
        ValueError: If the conversation leaves no space for an answer.
    """
    text_config = model.config.get_text_config()
    if getattr(text_config, "max_position_embeddings", None) is None:
        return max_new_tokens
    limit = context_length(text_config)
    if length >= limit:
        raise ValueError(
            f"Conversation {index} takes {length} tokens and the model's context holds {limit}: there is no room for "
            "an answer. Leave out earlier turns, text or images."
        )
    return min(max_new_tokens, limit - length)


def _run_prefix(
    model: HasImageTokens, rows: list[torch.Tensor], pixel_values: torch.Tensor | None, pad_token_id: int
) -> dict[str, Any]:
    """Run the common prefix of several conversations once, and return the inputs of `generate` for the whole batch.

    Args:
        model: A Janus model.
        rows: Token ids of each conversation, `(T,)`; all conversations have the same images.
        pixel_values: The `M` images of one conversation, `(M, 3, S, S)`, or None.
        pad_token_id: Id of the padding token.

    Returns:
        A dictionary with `input_ids` and `attention_mask` `(B, T)`, in which every row is prefix, padding, rest; and
        `past_key_values`, a cache that holds the prefix. Padding is masked, and positions are counted without it.
    """
    shared = min(map(len, rows)) - 1  # `generate` needs at least one token that is not in the cache
    differs = torch.stack([row[:shared] != rows[0][:shared] for row in rows]).any(dim=0)
    if differs.any():
        shared = int(differs.int().argmax())
    cache = DynamicCache(config=model.config.text_config)
    model.model(input_ids=rows[0][None, :shared], pixel_values=pixel_values, past_key_values=cache, use_cache=True)
    cache.batch_repeat_interleave(len(rows))
    length = max(map(len, rows))
    ids = rows[0].new_full((len(rows), length), pad_token_id)
    mask = torch.zeros_like(ids)
    for number, row in enumerate(rows):
        rest = slice(length - (len(row) - shared), length)
        ids[number, :shared], mask[number, :shared] = row[:shared], 1
        ids[number, rest], mask[number, rest] = row[shared:], 1
    return {"input_ids": ids, "attention_mask": mask, "past_key_values": cache}


def _check_shareable(generate_kwargs: dict[str, Any]) -> None:
    """Raise a ValueError if an argument of `generate` does not work with a cache that already holds the prefix.

    The prefix is the common beginning of the prompts.
    """
    allowed = {"num_beams": 1, "num_return_sequences": 1, "use_cache": True, "cache_implementation": None}
    given = [name for name, value in allowed.items() if generate_kwargs.get(name, value) not in (value, None)]
    if generate_kwargs.get("streamer") is not None:
        given.append("streamer")
    if given:
        raise ValueError(f"A list of questions cannot be answered with {', '.join(given)}: ask one at a time.")


__all__ = ["Conversation", "answer"]
